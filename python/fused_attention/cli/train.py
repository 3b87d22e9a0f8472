"""fused-attention train: a GPT, a BERT, a Transformer or a recurrent encoder-decoder."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from fused_attention import arguments as types
from fused_attention.cli.output import Output, UsageError
from fused_attention.models.seq2seq_config import ATTENTIONS, CELLS
from fused_attention.training.history import Entry
from fused_attention.training.loop import Trainer
from fused_attention.training.processes import STRATEGIES, Processes
from fused_attention.training.recipe import (
    DEFAULTS,
    NOT_SEQ2SEQ,
    SEQ2SEQ_ONLY,
    TOKENIZERS,
    Recipe,
    Run,
    changed,
    default_run,
)
from fused_attention.training.runs import begin, go_on
from fused_attention.training.schedules import SCHEDULES
from fused_attention.training.settings import PRECISIONS, Settings

_SWITCHES = {
    "checkpoint_layers": "recompute layers in the backward pass instead of keeping activations",
    "compile": "compile the model with torch.compile",
    "input_feeding": "seq2seq: a step also gets the attentional vector of the step before",
    "reverse_source": "seq2seq: the encoder reads the source backwards",
    "next_sentence": "bert: also learn whether one text follows another",
}
_CHOICES = {
    "tokenizer": TOKENIZERS,
    "target_tokenizer": TOKENIZERS,
    "attention": ATTENTIONS,
    "cell": CELLS,
    "schedule": tuple(SCHEDULES),
    "precision": PRECISIONS,
}
_HELP = {
    "data": "a dataset (see fused-attention fetch), of seq2seq also dates, which need no fetch, "
    "or a file of your own, for translators of source, tab, translation in each line",
    "tokenizer": "of seq2seq the sources' own, unless there is no --target-tokenizer",
    "target_tokenizer": "seq2seq's for targets; default: that of the data",
    "vocab_size": "of words and bpe, at most",
    "layers": "blocks or recurrent layers (of encoder and decoder each)",
    "attention": "seq2seq's; default: bahdanau",
    "cell": "seq2seq's; default: gru, for cmudict lstm",
    "width": "seq2seq: local-m and local-p see so many tokens to each side",
    "directions": "seq2seq: in which its encoder reads, 1 or 2; default: 2",
    "embedding_dim": "seq2seq's; 0 is dim",
    "label_smoothing": "seq2seq's; default: 0.0",
    "patience": "evaluations without a better validation loss that end the run; 0 never does",
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
    parser.add_argument("family", nargs="?", choices=DEFAULTS, metavar="|".join(DEFAULTS))
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
    _check_family(arguments.family, given)
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


def _check_family(family: str | None, given: dict[str, Any]) -> None:
    """Refuse options that the family would not heed."""
    others = NOT_SEQ2SEQ if family == "seq2seq" else SEQ2SEQ_ONLY
    for name in given:
        if name in others:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"argument {flag}: means nothing to the family {family}")


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
            plan: Run = changed(default_run(arguments.family, given.get("data")), given)
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
        "steps": trainer.step,
        "resumed_from": first,
        "best_step": trainer.stopping.best_step,
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
        [
            str(entry["step"]),
            f"{entry['loss']:.4f}" if "loss" in entry else "",
            f"{entry['validation_loss']:.4f}",
        ]
        for entry in report["log"]
        if "validation_loss" in entry
    ]
    output.heading(f"{report['parameters']:,} parameters, {report['steps']} steps")
    output.table(["step", "loss", "validation loss"], rows, left=0)
    if "bleu" in report:
        right = f"BLEU {report['bleu']:.1f}, exact match {100 * report['exact_match']:.1f} %"
        output.line(f"{right} on {report['held_out']} sources that it has never seen")
    if "next_sentence_accuracy" in report:
        right = 100 * report["next_sentence_accuracy"]
        output.line(f"right about what follows what in {right:.1f} % of pairs it has never seen")
    cpu, seconds = report["cpu_seconds"], report["seconds"]
    output.line(
        f"{seconds:.0f} seconds ({cpu:.0f} of CPU time); the model is in {report['folder']}"
    )
