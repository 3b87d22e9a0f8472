"""fused-attention embed: one vector for each sentence, by a BERT."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fused_attention import arguments as types
from fused_attention.cli.models import MODEL_HELP, encode, load, read_sentences
from fused_attention.cli.output import Output, UsageError
from fused_attention.models.bert import BERT
from fused_attention.nn.sequences import Sequences
from fused_attention.training.tokenization import Tokenizer

MOST_COMPARED = 12  # sentences that fit into a table
POOLINGS = ("mean", "first")


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "embed",
        "embed sentences with a BERT and compare them",
        "fused-attention embed minilm --file sentences.txt --out vectors.npy",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE")
    parser.add_argument("--file", type=Path, help="more sentences, one in each line")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="default: mean")
    parser.add_argument("--batch", type=types.positive_int, default=64, help="default: 64")
    parser.add_argument(
        "--out", type=types.output_file, metavar="FILE", help="write the vectors as .npy"
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    sentences = read_sentences(arguments.sentences, arguments.file)
    model, tokenizer = load(arguments.model, BERT)
    assert isinstance(model, BERT)
    try:
        parts = [
            embed(model, tokenizer, sentences[n : n + arguments.batch], arguments.pooling)
            for n in range(0, len(sentences), arguments.batch)
        ]
    except ValueError as error:
        raise UsageError(str(error)) from None
    vectors = torch.cat(parts)
    if arguments.out is not None:
        _write(arguments.out, vectors)
        output.line(f"wrote {tuple(vectors.shape)} to {arguments.out}")
    show(output, sentences, vectors)
    output.json({"sentences": sentences, "vectors": vectors.tolist()})
    return 0


@torch.no_grad()
def embed(model: BERT, tokenizer: Tokenizer, sentences: list[str], pooling: str) -> Tensor:
    """Vectors of length 1, fp32 [sentences, dim]; the batch is packed, so lengths may differ."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.config.max_length)
    ids = [torch.tensor(encode(tokenizer, sentence, frame=True)) for sentence in sentences]
    packed = Sequences.packed_from(torch.tensor([len(one) for one in ids]))
    vectors = model.embed(
        torch.cat(ids), sequences=packed, pooling="first" if pooling == "first" else "mean"
    )
    return vectors.float()


def show(output: Output, sentences: list[str], vectors: Tensor) -> None:
    """How alike the sentences are, as far as that fits into a table."""
    few = sentences[:MOST_COMPARED]
    cosines = (vectors[: len(few)] @ vectors[: len(few)].T).tolist()
    rows = [
        [str(n), sentence, *(f"{cosine:.3f}" for cosine in cosines[n])]
        for n, sentence in enumerate(few)
    ]
    output.heading("Cosine similarity")
    output.table(["", "sentence", *map(str, range(len(few)))], rows, left=2)


def _write(path: Path, vectors: Tensor) -> None:
    import numpy

    try:
        with path.open("wb") as file:
            numpy.save(file, vectors.numpy())
    except OSError as error:
        raise UsageError(f"argument --out: cannot write {path} ({error.strerror})") from None
