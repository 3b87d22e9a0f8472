"""A GPT trained by nanoGPT's recipe for a CPU, on our kernels and on torch's, in the same run.

    fused-attention fetch shakespeare
    python -m fused_attention.benchmarks.char_gpt --json results/char_gpt.json

Both models begin with the same weights and see the same batches; they are trained in turns of some
steps, so that whatever disturbs the machine disturbs both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention.masks import Band
from fused_attention.nn import attention as layer
from fused_attention.text import table
from fused_attention.training import Trainer
from fused_attention.training.datasets import MissingDataError
from fused_attention.training.families import prepare
from fused_attention.training.recipe import GPT, Run

from .machine import machine_info
from .timing import LoadMonitor

SCHEMA = 1
OURS, PEER = "fused_attention", "sdpa"
BAR = 1.90  # validation loss; nanoGPT's README promises about 1.88 on a smaller Shakespeare
STEPS_PER_TURN = 20


def sdpa(query: Tensor, key: Tensor, value: Tensor, *, band: Band, **options: Any) -> Tensor:
    """What the layer calls, by torch's own function; this model needs no more than that."""
    used = {name for name, value in options.items() if value not in (None, 0.0)}
    if band != Band.causal() or used:
        raise NotImplementedError(f"sdpa: takes a causal mask alone, got {band}, {used}")
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


@contextlib.contextmanager
def on(contender: str) -> Iterator[None]:
    if contender == OURS:
        yield
    else:
        with mock.patch.object(layer, "attention", sdpa):
            yield


def measure(run: Run) -> dict[str, Any]:
    """Train both and report their losses and times."""
    trainers = {name: _trainer(run) for name in (OURS, PEER)}
    wall, cpu = dict.fromkeys(trainers, 0.0), dict.fromkeys(trainers, 0.0)
    monitor = LoadMonitor().start()
    names, turn = list(trainers), 0
    while trainers[PEER].step < run.settings.steps:
        for name in names[turn % 2 :] + names[: turn % 2]:
            with on(name):
                begin = time.perf_counter(), time.process_time()
                for _ in range(min(STEPS_PER_TURN, run.settings.steps - trainers[name].step)):
                    trainers[name].train_step()
                wall[name] += time.perf_counter() - begin[0]
                cpu[name] += time.process_time() - begin[1]
        turn += 1
    contenders = {}
    for name, trainer in trainers.items():
        with on(name):
            loss = trainer.evaluate()
        contenders[name] = {
            "validation_loss": loss,
            "seconds": wall[name],
            "cpu_seconds": cpu[name],
        }
    return {
        "schema": SCHEMA,
        "machine": machine_info(),
        "run": dataclasses.asdict(run),
        "parameters": sum(p.numel() for p in trainers[OURS].model.parameters()),
        "load": monitor.report(),
        "contenders": contenders,
        "speedup": wall[PEER] / wall[OURS],
        "cpu_speedup": cpu[PEER] / cpu[OURS],
    }


def _trainer(run: Run) -> Trainer:
    with tempfile.TemporaryDirectory() as empty:
        prepared = prepare(run, Path(empty))
    return Trainer(prepared.model, prepared.batches, run.settings, validation=prepared.validation)


def as_table(report: dict[str, Any]) -> str:
    rows = [("attention", "validation loss", "seconds", "CPU seconds")]
    for name, values in report["contenders"].items():
        numbers = [f"{values[key]:.1f}" for key in ("seconds", "cpu_seconds")]
        rows.append((name, f"{values['validation_loss']:.4f}", *numbers))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if our model misses the bar or takes longer than the peer's."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_attention.benchmarks.char_gpt",
        description="Train a character-level GPT on our kernels and on torch's.",
    )
    parser.add_argument("--steps", type=int, default=GPT.settings.steps, help="default %(default)s")
    parser.add_argument("--threads", type=int, help="of torch, default as many as it uses")
    parser.add_argument("--json", type=Path, help="where to store the report")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    run = dataclasses.replace(GPT, settings=dataclasses.replace(GPT.settings, steps=options.steps))
    try:
        report = measure(run)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_table(report))
    print(f"{report['speedup']:.2f}x as fast, {report['cpu_speedup']:.2f}x by CPU time")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    loss = report["contenders"][OURS]["validation_loss"]
    return int(loss > BAR or report["speedup"] < 1)


if __name__ == "__main__":
    raise SystemExit(main())
