"""fused-attention translate: sentences through an encoder-decoder, by beam search."""

from __future__ import annotations

import argparse
from pathlib import Path

from fused_attention import arguments as types
from fused_attention.cli.models import MODEL_HELP, as_trained, load_translator, read_sentences
from fused_attention.cli.output import Output, UsageError
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.transformer import Transformer


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "translate",
        "translate sentences with a Transformer or a recurrent encoder-decoder",
        "fused-attention translate runs/en-fr --file sentences.txt --beams 4",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE")
    parser.add_argument("--file", type=Path, help="more sentences, one in each line")
    parser.add_argument("--beams", type=types.positive_int, default=4, help="default: 4")
    parser.add_argument("--length-penalty", type=float, default=0.6, metavar="X", help="0 is none")


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    sentences = read_sentences(arguments.sentences, arguments.file)
    model, translator = load_translator(arguments.model, Transformer, Seq2Seq)
    try:
        translations = translator.translate(
            model,
            as_trained(arguments.model, sentences),
            beams=arguments.beams,
            length_penalty=arguments.length_penalty,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    for sentence, translation in zip(sentences, translations, strict=True):
        output.line(f"{sentence} -> {translation}")
    output.json({"sentences": sentences, "translations": translations})
    return 0
