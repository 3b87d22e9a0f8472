"""fused-attention train: a GPT, a BERT or a Transformer on one's own or on fetched data."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from fused_attention.cli import arguments as types
from fused_attention.cli.output import Output, UsageError
from fused_attention.training.history import Entry
from fused_attention.training.loop import Trainer
from fused_attention.training.processes import STRATEGIES, Processes
from fused_attention.training.recipe import DEFAULTS, TOKENIZERS, Recipe, Run, changed
from fused_attention.training.runs import begin, go_on
from fused_attention.training.schedules import SCHEDULES
from fused_attention.training.settings import PRECISIONS, Settings

_SWITCHES = {
    "checkpoint_layers": "recompute layers in the backward pass instead of keeping activations",
    "compile": "compile the model with torch.compile",
    "next_sentence": "bert: also learn whether one text follows another",
}
_CHOICES = {"tokenizer": TOKENIZERS, "schedule": tuple(SCHEDULES), "precision": PRECISIONS}
_HELP = {
    "data": "a dataset (see fused-attention fetch) or a file of your own",
    "vocab_size": "of bpe, at most",
    "layers": "blocks (of encoder and decoder each)",
    "context": "tokens that the model sees at most",
    "batch_tokens": "tokens per batch and process",
    "words": "take sentences of at most so many words; 0 takes all",
    "held_out": "sentences, or percent of a text, that are not trained on",
    "precision": "of products; auto: bf16 where the device multiplies it, else fp32",
    "accumulate": "batches per step and process",
    "checkpoint_every": "steps; 0 is at the end only",
    "evaluate_every": "steps; 0 is at the end only",
}


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "train",
        "train a model; stopped by anything, it goes on from its last checkpoint with --resume",
        "fused-attention train gpt --out runs/gpt --steps 500",
        run,
    )
    parser.add_argument("family", nargs="?", choices=DEFAULTS, metavar="gpt|bert|transformer")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=types.output_folder, metavar="FOLDER", help="of a new run")
    place.add_argument("--resume", type=Path, metavar="FOLDER", help="of a run to go on with")
    parser.add_argument("--device", default="cpu", help="default: cpu; under torchrun cpu or cuda")
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default="ddp", help="under torchrun; default: ddp"
    )
    _add_fields(parser.add_argument_group("the model and its data"), Recipe)
    _add_fields(parser.add_argument_group("the training"), Settings)


def _add_fields(group: Any, of: type) -> None:
    """An option for each field of a dataclass; what is not given stays out of the arguments."""
    for field in dataclasses.fields(of):
        if field.name == "family":
            continue
        flag = f"--{field.name.replace('_', '-')}"
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if field.name in _SWITCHES:
            group.add_argument(flag, action="store_true", help=_SWITCHES[field.name], **options)
            continue
        options["help"] = _HELP.get(field.name, _defaults(field.name))
        if field.name in _CHOICES:
            options["choices"] = _CHOICES[field.name]
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        group.add_argument(flag, type=kind, metavar=_metavar(field.name, kind), **options)


def _metavar(name: str, kind: type) -> str:
    return (
        "|".join(_CHOICES[name]) if name in _CHOICES else {int: "N", float: "X"}.get(kind, "TEXT")
    )


def _defaults(name: str) -> str:
    """What a field is in each family's recipe."""
    values = {
        family: getattr(run.recipe if hasattr(run.recipe, name) else run.settings, name)
        for family, run in DEFAULTS.items()
    }
    if len(set(values.values())) == 1:
        return f"default: {next(iter(values.values()))}"
    return "default: " + ", ".join(f"{value} ({family})" for family, value in values.items())


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    given = _given(arguments)
    if arguments.resume is not None and (given or arguments.family):
        name = f"--{next(iter(given)).replace('_', '-')}" if given else "the family"
        raise UsageError(f"argument --resume: the run keeps its settings, got {name} too")
    if arguments.out is not None and arguments.family is None:
        raise UsageError(f"choose a family, one of {', '.join(DEFAULTS)}")
    processes = _processes(arguments)
    try:
        report = _train(arguments, given, processes, output)
    finally:
        processes.stop()
    if processes.is_first:
        show(output, report)
        output.json(report)
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {field.name for of in (Recipe, Settings) for field in dataclasses.fields(of)}
    return {name: v for name, v in vars(arguments).items() if name in names - {"family"}}


def _processes(arguments: argparse.Namespace) -> Processes:
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        raise UsageError(
            f"argument --device: must be cpu or cuda, got {arguments.device!r}"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("argument --device: cuda needs a GPU, and torch finds none")
    return Processes.start(device, arguments.strategy)


def _train(
    arguments: argparse.Namespace, given: dict[str, Any], processes: Processes, output: Output
) -> dict[str, Any]:
    try:
        if arguments.resume is not None:
            trainer, prepared = go_on(arguments.resume, processes)
        else:
            plan: Run = changed(DEFAULTS[arguments.family], given)
            trainer, prepared = begin(plan, arguments.out, processes)
        report = _run(trainer, output, processes)
        if prepared.judge is not None and processes.is_first and trainer.folder is not None:
            report |= prepared.judge(type(prepared.model).from_pretrained(trainer.folder))
        return report
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        raise UsageError(str(error)) from None


def _run(trainer: Trainer, output: Output, processes: Processes) -> dict[str, Any]:
    """Train with a progress bar in the first process; what is told at the end."""
    first, begun, cpu = trainer.step, time.perf_counter(), time.process_time()
    steps = trainer.settings.steps
    if processes.is_first and not output.quiet:
        with output.progress(steps - first) as begin_step:
            trainer.run(lambda step, entry: begin_step(_status(step, steps, trainer), 1.0))
    else:
        trainer.run()
    return {
        "folder": str(trainer.folder),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "steps": steps,
        "resumed_from": first,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "log": trainer.history.entries,
    }


def _status(step: int, steps: int, trainer: Trainer) -> str:
    entries: list[Entry] = trainer.history.entries
    parts = [f"step {step} of {steps}"]
    for key, name in (("loss", "loss"), ("validation_loss", "validation")):
        found = [entry[key] for entry in entries[-200:] if key in entry]
        parts += [f"{name} {found[-1]:.3f}"] if found else []
    return ", ".join(parts)


def show(output: Output, report: dict[str, Any]) -> None:
    rows = [
        [str(entry["step"]), f"{entry['loss']:.4f}", f"{entry['validation_loss']:.4f}"]
        for entry in report["log"]
        if "validation_loss" in entry and "loss" in entry
    ]
    output.heading(f"{report['parameters']:,} parameters, {report['steps']} steps")
    output.table(["step", "loss", "validation loss"], rows, left=0)
    if "bleu" in report:
        output.line(f"BLEU {report['bleu']:.1f} on sentences that it has never seen")
    if "next_sentence_accuracy" in report:
        right = 100 * report["next_sentence_accuracy"]
        output.line(f"right about what follows what in {right:.1f} % of pairs it has never seen")
    cpu, seconds = report["cpu_seconds"], report["seconds"]
    output.line(
        f"{seconds:.0f} seconds ({cpu:.0f} of CPU time); the model is in {report['folder']}"
    )
