"""A GPT trained by nanoGPT's recipe for a CPU, on our kernels and on torch's, in the same run.

    fused-attention fetch shakespeare
    python -m fused_attention.benchmarks.char_gpt --json results/char_gpt.json

Both models begin with the same weights and see the same batches; they are trained in turns of some
steps, so that whatever disturbs the machine disturbs both.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fused_attention.arguments import positive_int
from fused_attention.nn import attention_layers
from fused_attention.text import table
from fused_attention.training import Trainer
from fused_attention.training.datasets import MissingDataError
from fused_attention.training.families import prepare
from fused_attention.training.recipe import GPT, Run

from .contenders import OURS
from .machine import machine_info
from .options import parse, parser_of, store
from .sdpa_models import SdpaAttention
from .timing import LoadMonitor

SCHEMA = 1
PEER = "sdpa"
BAR = 1.90  # validation loss; nanoGPT's README promises about 1.88 on a smaller Shakespeare
STEPS_PER_TURN = 20


def measure(run: Run) -> dict[str, Any]:
    """Train both and report their losses and times."""
    racers = trainers(run)
    wall, cpu = dict.fromkeys(racers, 0.0), dict.fromkeys(racers, 0.0)
    monitor = LoadMonitor().start()
    names, turn = list(racers), 0
    while racers[PEER].step < run.settings.steps:
        for name in names[turn % 2 :] + names[: turn % 2]:
            begin = time.perf_counter(), time.process_time()
            for _ in range(min(STEPS_PER_TURN, run.settings.steps - racers[name].step)):
                racers[name].train_step()
            wall[name] += time.perf_counter() - begin[0]
            cpu[name] += time.process_time() - begin[1]
        turn += 1
    contenders = {
        name: {
            "validation_loss": trainer.evaluate(),
            "seconds": wall[name],
            "cpu_seconds": cpu[name],
        }
        for name, trainer in racers.items()
    }
    return {
        "schema": SCHEMA,
        "machine": machine_info(),
        "run": dataclasses.asdict(run),
        "parameters": sum(p.numel() for p in racers[OURS].model.parameters()),
        "load": monitor.report(),
        "contenders": contenders,
        "speedup": wall[PEER] / wall[OURS],
        "cpu_speedup": cpu[PEER] / cpu[OURS],
    }


def trainers(run: Run) -> dict[str, Trainer]:
    """Two models with the same weights, one of them on torch's attention."""
    found = {}
    for name in (OURS, PEER):
        with tempfile.TemporaryDirectory() as empty:
            prepared = prepare(run, Path(empty))
        found[name] = Trainer(
            prepared.model, prepared.batches, run.settings, validation=prepared.validation
        )
    for layer in attention_layers(found[PEER].model).values():
        layer.__class__ = SdpaAttention
    return found


def as_table(report: dict[str, Any]) -> str:
    rows = [("attention", "validation loss", "seconds", "CPU seconds")]
    for name, values in report["contenders"].items():
        numbers = [f"{values[key]:.1f}" for key in ("seconds", "cpu_seconds")]
        rows.append((name, f"{values['validation_loss']:.4f}", *numbers))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if our model misses the bar or takes longer than the peer's."""
    parser = parser_of("char_gpt", "Train a character-level GPT on our kernels and on torch's.")
    steps = GPT.settings.steps
    parser.add_argument("--steps", type=positive_int, default=steps, help="default %(default)s")
    options = parse(parser, arguments)
    run = dataclasses.replace(GPT, settings=dataclasses.replace(GPT.settings, steps=options.steps))
    try:
        report = measure(run)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_table(report))
    print(f"{report['speedup']:.2f}x as fast, {report['cpu_speedup']:.2f}x by CPU time")
    store(report, options.json)
    loss = report["contenders"][OURS]["validation_loss"]
    return int(loss > BAR or report["speedup"] < 1)


if __name__ == "__main__":
    raise SystemExit(main())
