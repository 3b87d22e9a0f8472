"""fused-attention attention-map: which token looks at which, as a picture and as arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_attention.cli import arguments as types
from fused_attention.cli.models import MODEL_HELP, Loaded, encode, load
from fused_attention.cli.output import Output, UsageError, require
from fused_attention.models.bert import BERT
from fused_attention.models.gpt import GPT
from fused_attention.nn.attention_maps import attention_layers, attention_maps

MOST_LABELLED = 48  # tokens that have room for their names
MOST_CELLS = 64  # maps in a picture


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
    parser.add_argument("--layers", type=types.numbers, metavar="N[,N]", help="default: all")
    parser.add_argument("--heads", type=types.numbers, metavar="N[,N]", help="default: all")
    parser.add_argument("--out", type=types.output_file, metavar="FILE", help="a picture: .png ...")
    parser.add_argument(
        "--npz", type=types.output_file, metavar="FILE", help="arrays [1, heads, length, length]"
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    if arguments.out is None and arguments.npz is None and arguments.json is None:
        raise UsageError("say where to: --out for a picture, --npz or --json for the numbers")
    if arguments.out is not None:
        require("matplotlib")
    loaded = load(arguments.model, GPT, BERT)
    names, maps = compute(loaded, arguments.text, arguments.layers, arguments.heads)
    tokens = names
    heads = arguments.heads or tuple(range(next(iter(maps.values())).shape[1]))
    if arguments.out is not None:
        draw(arguments.out, tokens, maps, heads)
        output.line(f"wrote {arguments.out}")
    if arguments.npz is not None:
        write_arrays(arguments.npz, tokens, maps, heads)
        output.line(f"wrote {arguments.npz}")
    layers = {name: weights[0].tolist() for name, weights in maps.items()}
    output.json({"tokens": tokens, "heads": list(heads), "layers": layers})
    return 0


@torch.no_grad()
def compute(
    loaded: Loaded, text: str, layers: tuple[int, ...] | None, heads: tuple[int, ...] | None
) -> tuple[list[str], dict[str, Tensor]]:
    """The tokens and, for each layer's name, its weights fp32 [1, heads, length, length].

    Raises:
        UsageError: a layer or head does not exist, or the text does not fit the model.
    """
    model, tokenizer = loaded
    names = list(attention_layers(model))
    for number in layers or ():
        if number >= len(names):
            raise UsageError(f"argument --layers: must be below {len(names)}, got {number}")
    chosen = [names[number] for number in layers] if layers else names
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = encode(tokenizer, text, frame=isinstance(model, BERT))
    if not ids:
        raise UsageError("argument TEXT: must not be empty")
    try:
        with attention_maps(model, chosen, heads) as maps:
            model(torch.tensor([ids]))
    except ValueError as error:
        raise UsageError(f"argument --{error}") from None
    stacked = {name: _whole(found[0]) for name, found in maps.items()}
    return [tokenizer.decode([one], skip_special_tokens=False) for one in ids], stacked


def _whole(weights: Tensor) -> Tensor:
    """[1, heads, length, length] of a map of one sequence or of a batch of one."""
    return weights if weights.dim() == 4 else weights.unsqueeze(0)


def draw(path: Path, tokens: list[str], maps: dict[str, Tensor], heads: tuple[int, ...]) -> None:
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
    for row, (name, weights) in enumerate(maps.items()):
        for column, head in enumerate(heads):
            cell = axes[row][column]
            cell.imshow(weights[0, column].numpy(), vmin=0.0, cmap="Blues", aspect="equal")
            cell.set_title(f"{name}, head {head}", fontsize=7)
            _label(cell, tokens, left=column == 0, below=row == len(maps) - 1)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"argument --out: cannot write {path} ({error})") from None


def _label(cell: Any, tokens: list[str], left: bool, below: bool) -> None:
    """Keys below the last row, queries left of the first column."""
    cell.set_xticks([])
    cell.set_yticks([])
    if len(tokens) > MOST_LABELLED:
        return
    size = min(8.0, 130.0 / len(tokens))
    shown = [token.replace("$", r"\$").replace("\n", "\\n") for token in tokens]
    if below:
        cell.set_xticks(range(len(tokens)), shown, rotation=90, fontsize=size)
    if left:
        cell.set_yticks(range(len(tokens)), shown, fontsize=size)


def write_arrays(
    path: Path, tokens: list[str], maps: dict[str, Tensor], heads: tuple[int, ...]
) -> None:
    """layer_0, layer_1, ... [1, heads, length, length]: a tuple of them is what BertViz takes."""
    import numpy

    arrays: dict[str, Any] = {
        f"layer_{n}": weights.numpy() for n, weights in enumerate(maps.values())
    }
    arrays |= {"names": list(maps), "tokens": tokens, "heads": heads}
    try:
        with path.open("wb") as file:
            numpy.savez_compressed(file, **arrays)
    except OSError as error:
        raise UsageError(f"argument --npz: cannot write {path} ({error.strerror})") from None
