"""Runs in folders: begun, gone on with after whatever stopped them, and exported as models."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fused_attention.models.pretrained import PretrainedModel
from fused_attention.training import checkpoint, tokenization
from fused_attention.training.families import prepare
from fused_attention.training.loop import Trainer
from fused_attention.training.precision import settled
from fused_attention.training.prepared import Prepared
from fused_attention.training.processes import Processes
from fused_attention.training.recipe import NAME, Run, RunError


def begin(run: Run, folder: Path, processes: Processes) -> tuple[Trainer, Prepared]:
    """A trainer at step 0 whose folder holds the tokenizers and run.json.

    Raises:
        RunError: the folder holds a run already.
        MissingDataError, DataError, ValueError: the data or the model cannot be had.
    """
    if (folder / NAME).exists():
        raise RunError(f"{folder}: holds a run already; --resume {folder} goes on with it")
    processes.wait()
    run = Run(run.recipe, settled(run.settings, processes.device))
    prepared = prepare(run, folder)
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        tokenization.save(prepared.tokenizer, folder)
        if prepared.target_tokenizer is not None:
            tokenization.save(prepared.target_tokenizer, folder, tokenization.TARGET_NAME)
        run.save(folder, prepared.fingerprint)
    processes.wait()
    return _trainer(run, prepared, folder, processes), prepared


def go_on(folder: Path, processes: Processes) -> tuple[Trainer, Prepared]:
    """A trainer at the newest checkpoint of the folder's run.

    Raises:
        RunError: there is no run, or its data are no longer what they were.
        CheckpointError: its checkpoint cannot be read.
    """
    run, fingerprint = Run.load(folder)
    prepared = prepare(run, folder)
    if prepared.fingerprint != fingerprint:
        raise RunError(f"{folder}: {run.recipe.data} must be what the run began with, and differs")
    trainer = _trainer(run, prepared, folder, processes)
    trainer.resume()
    return trainer, prepared


def _trainer(run: Run, prepared: Prepared, folder: Path, processes: Processes) -> Trainer:
    def export(tensors: dict[str, Tensor]) -> None:
        """Write the model beside the checkpoint; the trained one may be in shards."""
        model: PretrainedModel = type(prepared.model)(prepared.model.config)
        checkpoint.restore_model(model, {f"model/{name}": t for name, t in tensors.items()})
        model.save_pretrained(folder)

    return Trainer(
        prepared.model,
        prepared.batches,
        run.settings,
        validation=prepared.validation,
        folder=folder,
        processes=processes,
        on_checkpoint=export,
    )
