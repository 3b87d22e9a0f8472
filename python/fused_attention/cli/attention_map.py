"""fused-attention attention-map: which token looks at which, as a picture, arrays or a summary."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fused_attention import arguments as types
from fused_attention.cli.models import MODEL_HELP, as_trained, encode, load
from fused_attention.cli.output import Output, UsageError, require
from fused_attention.models.bert import BERT
from fused_attention.models.gpt import GPT
from fused_attention.models.transformer import Transformer
from fused_attention.training.mapping import LayerMap, text_maps, text_summary

Facts = TypeVar("Facts")

MOST_LABELLED = 48  # tokens that have room for their names
MOST_CELLS = 64  # maps in a picture
LAYERS_HELP = "default: all, of a Transformer those that look at the source"


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "attention-map",
        "draw which token looks at which, in chosen layers and heads",
        "fused-attention attention-map minilm hello --layers 0,5 --heads 0,1 --out map.png",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--layers", type=types.numbers, metavar="N[,N]", help=LAYERS_HELP)
    parser.add_argument("--heads", type=types.numbers, metavar="N[,N]", help="default: all")
    parser.add_argument("--out", type=types.output_file, metavar="FILE", help="a picture: .png ...")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="what each head does, without the weights: a text may be as long as the model takes",
    )
    parser.add_argument(
        "--npz", type=types.output_file, metavar="FILE", help="arrays [1, heads, queries, keys]"
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    if arguments.summary:
        return summarise(arguments, output)
    if arguments.out is None and arguments.npz is None and arguments.json is None:
        rule = "--out for a picture, --npz or --json for the numbers, --summary for a table"
        raise UsageError(f"say where to: {rule}")
    if arguments.out is not None:
        require("matplotlib")
    maps = compute(arguments, text_maps)
    heads = arguments.heads or tuple(range(next(iter(maps.values())).weights.shape[1]))
    if arguments.out is not None:
        draw(arguments.out, maps, heads)
        output.line(f"wrote {arguments.out}")
    if arguments.npz is not None:
        write_arrays(arguments.npz, maps, heads)
        output.line(f"wrote {arguments.npz}")
    layers = {
        name: {"queries": each.queries, "keys": each.keys, "weights": each.weights[0].tolist()}
        for name, each in maps.items()
    }
    output.json({"heads": list(heads), "layers": layers})
    return 0


def summarise(arguments: argparse.Namespace, output: Output) -> int:
    """Print what each head does."""
    if arguments.out is not None or arguments.npz is not None:
        raise UsageError("argument --summary: has no weights for --out or --npz")
    heads = compute(arguments, text_summary)
    headers = ["layer", "head", "entropy", "first", "itself", "previous", "most read", "weight"]
    rows = [
        [
            *(head.layer, str(head.head), f"{head.entropy:.2f}"),
            *(f"{share:.0%}" for share in (head.first, head.itself, head.previous)),
            *(repr(head.most_read), f"{head.most_weight:.0%}"),
        ]
        for head in heads
    ]
    output.table(headers, rows)
    output.json({"heads": [head._asdict() for head in heads]})
    return 0


def compute(arguments: argparse.Namespace, look: Callable[..., Facts]) -> Facts:
    """What `look` finds in the text: text_maps or text_summary.

    Raises:
        UsageError: a layer or head does not exist, or the text does not fit the model.
    """
    model, tokenizer = load(arguments.model, GPT, BERT, Transformer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    (text,) = as_trained(arguments.model, [arguments.text])
    if not encode(tokenizer, text):
        raise UsageError("argument TEXT: must not be empty")
    try:
        return look(model, tokenizer, text, arguments.layers, arguments.heads)
    except ValueError as error:
        raise UsageError(f"argument --{error}") from None


def draw(path: Path, maps: dict[str, LayerMap], heads: tuple[int, ...]) -> None:
    """One row of maps for each layer, one column for each head.

    Raises:
        UsageError: there are too many of them, or the file cannot be written.
    """
    if len(maps) * len(heads) > MOST_CELLS:
        rule = f"must choose at most {MOST_CELLS} maps"
        raise UsageError(f"arguments --layers, --heads: {rule}, got {len(maps) * len(heads)}")
    figure = require("matplotlib.figure").Figure(
        figsize=(2.2 * len(heads) + 1.5, 2.4 * len(maps) + 0.6), layout="constrained"
    )
    axes = figure.subplots(len(maps), len(heads), squeeze=False)
    last = len(maps) - 1
    for row, (name, each) in enumerate(maps.items()):
        below = row == last or each.keys != list(maps.values())[row + 1].keys
        for column, head in enumerate(heads):
            cell = axes[row][column]
            cell.imshow(each.weights[0, column].numpy(), vmin=0.0, cmap="Blues", aspect="equal")
            cell.set_title(f"{name}, head {head}", fontsize=7)
            cell.set_xticks([])
            cell.set_yticks([])
            _label(cell.set_xticks, each.keys if below else [], rotation=90)
            _label(cell.set_yticks, each.queries if column == 0 else [])
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"argument --out: cannot write {path} ({error})") from None


def _label(set_ticks: Callable[..., Any], tokens: list[str], **options: Any) -> None:
    if 0 < len(tokens) <= MOST_LABELLED:
        shown = [token.replace("$", r"\$").replace("\n", "\\n") for token in tokens]
        set_ticks(range(len(tokens)), shown, fontsize=min(8.0, 130.0 / len(tokens)), **options)


def write_arrays(path: Path, maps: dict[str, LayerMap], heads: tuple[int, ...]) -> None:
    """layer_0, layer_1, ... [1, heads, queries, keys]: a tuple of them is what BertViz takes."""
    import numpy

    arrays: dict[str, Any] = {"names": list(maps), "heads": heads}
    for n, each in enumerate(maps.values()):
        arrays[f"layer_{n}"] = each.weights.numpy()
        arrays |= {f"queries_{n}": each.queries, f"keys_{n}": each.keys}
    try:
        with path.open("wb") as file:
            numpy.savez_compressed(file, **arrays)
    except OSError as error:
        raise UsageError(f"argument --npz: cannot write {path} ({error.strerror})") from None
