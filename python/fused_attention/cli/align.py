"""fused-attention align: where a recurrent encoder-decoder looks while it translates, drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fused_attention import arguments as types
from fused_attention.cli.models import MODEL_HELP, as_trained, load_translator
from fused_attention.cli.output import Output, UsageError, require
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.training.aligning import TextAlignment, align_text

SHARES = " .:-=+*#%@"  # of a weight, in letters


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "align",
        "draw where a recurrent encoder-decoder looks while it translates a sentence",
        "fused-attention align runs/dates 'saturday 9 may 2018' --out alignment.png",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("sentence", metavar="SENTENCE")
    parser.add_argument("--target", metavar="TEXT", help="default: what the model says itself")
    parser.add_argument("--beams", type=types.positive_int, default=4, help="default: 4")
    parser.add_argument("--out", type=types.output_file, metavar="FILE", help="a picture: .png ...")


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    if arguments.out is not None:
        require("matplotlib")
    model, translator = load_translator(arguments.model, Seq2Seq)
    assert isinstance(model, Seq2Seq)
    (sentence,) = as_trained(arguments.model, [arguments.sentence])
    target = arguments.target
    if target is not None:
        (target,) = as_trained(arguments.model, [target])
    try:
        alignment = align_text(model, translator, sentence, target, beams=arguments.beams)
    except RuntimeError as error:
        raise UsageError(f"argument MODEL: {error}") from None
    if arguments.out is None:
        show(output, alignment)
    else:
        draw(arguments.out, alignment)
        output.line(f"wrote {arguments.out}")
    output.json(as_dict(alignment))
    return 0


def show(output: Output, alignment: TextAlignment) -> None:
    """A line for each step: what it says, its weights in letters, what it looks at most."""
    width = max(map(len, alignment.target))
    for n, (said, row) in enumerate(zip(alignment.target, alignment.weights, strict=True)):
        letters = "".join(SHARES[min(9, int(10 * weight))] for weight in row.tolist())
        most = alignment.source[int(row.argmax())]
        place = "" if alignment.places is None else f"  p = {alignment.places[n]:.1f}"
        output.line(f"{said:>{width}} |{letters}| {most!r}{place}")


def draw(path: Path, alignment: TextAlignment) -> None:
    """The picture, in a file.

    Raises:
        UsageError: the file cannot be written.
    """
    from fused_attention.benchmarks.heat_maps import alignment_figure

    try:
        alignment_figure(alignment).savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"argument --out: cannot write {path} ({error})") from None


def as_dict(alignment: TextAlignment) -> dict[str, Any]:
    return {**alignment._asdict(), "weights": alignment.weights.tolist()}
