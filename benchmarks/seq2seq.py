"""What attention does for recurrent encoder-decoders: dates, long words, the places of local-p.

    fused-attention fetch cmudict g2p-en
    python -m fused_attention.benchmarks.seq2seq benchmarks/results/models [dates lengths places]

Trains, stores seq2seq_<experiment>.json in the folder and says which bars are missed. The pictures
of these reports are drawn by seq2seq_pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from fused_attention.arguments import output_folder
from fused_attention.text import table
from fused_attention.training.datasets import MissingDataError

from .machine import machine_info
from .options import parse, parser_of, store
from .seq2seq_runs import dates, lengths, places
from .timing import LoadMonitor

SCHEMA = 1
TRAINING_SECONDS = 30.0  # dates: at most
WITHIN = 0.03  # places: the exact matches that local-p may lose against global attention
MONOTONE = 0.95  # places: the rank correlation with their steps, at least

Report = dict[str, Any]
EXPERIMENTS: dict[str, Callable[[], Report]] = {
    "dates": dates,
    "lengths": lengths,
    "places": places,
}


def report_of(name: str) -> Report:
    """An experiment's report, with the machine that it ran on."""
    monitor = LoadMonitor().start()
    found = EXPERIMENTS[name]()
    return {"schema": SCHEMA, "machine": machine_info(), "load": monitor.report(), **found}


def average(runs: Sequence[Report], figure: str, length: int | None = None) -> float:
    """The mean of a figure over some seeds' runs; of the words of one row of lengths."""
    rows = [run if length is None else run["by_length"][length] for run in runs]
    return float(mean(row[figure] for row in rows))


def misses(name: str, report: Report) -> list[str]:
    """The bars that a report misses."""
    judged: list[tuple[bool, str]] = []
    if name == "dates":
        right, seconds = report["exact_match"], report["seconds"]
        judged.append((right == 1, f"exact match must be 1, got {right:.3f}"))
        rule = f"training must take {TRAINING_SECONDS:.0f} seconds, got {seconds:.0f}"
        judged.append((seconds <= TRAINING_SECONDS, rule))
    elif name == "lengths":
        without, with_attention = (
            average(report["models"][kind], "bleu", -1) for kind in ("none", "bahdanau")
        )
        rule = f"long words' BLEU must gain by attention, got {with_attention:.1f}, {without:.1f}"
        judged.append((with_attention > without, rule))
    else:
        local, everywhere = (
            average(report["attentions"][kind], "exact_match")
            for kind in ("local-p", "luong-general")
        )
        rule = f"local-p must come within {WITHIN} of {everywhere:.3f}, got {local:.3f}"
        judged.append((local >= everywhere - WITHIN, rule))
        for run in report["attentions"]["local-p"]:
            found = run["rank_correlation"]
            rule = f"places must rise in seed {run['seed']}, got a correlation of {found:.3f}"
            judged.append((found >= MONOTONE, rule))
    return [rule for passed, rule in judged if not passed]


def as_table(name: str, report: Report) -> str:
    if name == "dates":
        row = (f"{report['exact_match']:.3f}", f"{report['seconds']:.1f}")
        return table(
            [("exact match", "seconds", "CPU seconds"), (*row, f"{report['cpu_seconds']:.1f}")]
        )
    if name == "lengths":
        lines = next(iter(report["models"].values()))[0]["by_length"]
        spans = ["-".join(map(str, line["letters"])) for line in lines]
        rows = [
            (f"{kind}, {figure}", *(f"{average(runs, key, n):{form}}" for n in range(len(lines))))
            for key, figure, form in (("bleu", "BLEU", ".1f"), ("exact_match", "exact", ".3f"))
            for kind, runs in report["models"].items()
        ]
        return table([("letters", *spans), *rows])
    rows = [("attention", "seed", "validation loss", "exact match", "rank correlation", "rising")]
    for kind, runs in report["attentions"].items():
        for run in runs:
            names = ("validation_loss", "exact_match", "rank_correlation", "rising")
            cells = (f"{run[name]:.3f}" if name in run else "" for name in names)
            rows.append((kind, str(run["seed"]), *cells))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a bar is missed, 2 if data are missing."""
    summary = "Train recurrent encoder-decoders with and without attention."
    parser = parser_of("seq2seq", summary, report=False)
    parser.add_argument("folder", type=output_folder, help="where to store the reports")
    parser.add_argument("names", nargs="*", metavar="|".join(EXPERIMENTS), help="default: all")
    options = parse(parser, arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"names: must be of {', '.join(EXPERIMENTS)}, got {', '.join(unknown)}")
    missed = []
    for name in options.names or EXPERIMENTS:
        try:
            report = report_of(name)
        except MissingDataError as error:
            print(error, file=sys.stderr)
            return 2
        store(report, options.folder / f"seq2seq_{name}.json", indent=None)
        print(as_table(name, report))
        missed += misses(name, report)
    for rule in missed:
        print(rule, file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
