"""The training loop: steps, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.files import remove_partial
from fused_attention.training import checkpoint
from fused_attention.training.batch import Batch, Batches
from fused_attention.training.history import Entry, History
from fused_attention.training.layers import Loss, checkpoint_layers, layers_of
from fused_attention.training.optimizer import make_optimizer
from fused_attention.training.precision import AUTOCAST, settled
from fused_attention.training.processes import Processes, whole
from fused_attention.training.seeds import seed_of
from fused_attention.training.settings import Settings
from fused_attention.training.stopping import EarlyStopping


class StepResult(NamedTuple):
    """What a step reports, summed or averaged over accumulated batches and processes."""

    loss: Tensor  # the mean over all predicted tokens
    gradient_norm: Tensor  # before clipping
    tokens: int  # predicted


class Trainer:
    """Trains a model, alone or as one of several processes.

    Args:
        model: has `loss(**batch)`, the mean over the batch's predicted tokens.
        batches: what to train on; step n takes its batches by their index.
        settings: of the run.
        validation: batches whose mean loss is the validation loss.
        folder: for checkpoints and the log; None keeps nothing.
        processes: which one of how many this is.
        on_checkpoint: called in the first process to export the model: after each checkpoint or,
            with early stopping, after each evaluation that is the best so far.

    Raises:
        ValueError: settings.patience needs validation batches, and there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: Settings,
        *,
        validation: Sequence[Batch] = (),
        folder: Path | None = None,
        processes: Processes | None = None,
        on_checkpoint: Callable[[dict[str, Tensor]], object] | None = None,
    ) -> None:
        if settings.patience and not validation:
            wrong_value("patience", "needs validation batches", settings.patience)
        self.processes = processes or Processes()
        self.device = self.processes.device
        settings = settled(settings, self.device)
        self.settings, self.batches, self.validation = settings, batches, validation
        self.model = model.to(self.device)
        if settings.checkpoint_layers:
            checkpoint_layers(model)
        loss = Loss(model)
        sharded = self.processes.together and self.processes.strategy == "fsdp"
        if settings.compile and not sharded:
            loss.compile()
        for layer in layers_of(model) if settings.compile and sharded else ():
            layer.compile()
        self.module = self.processes.share(loss)
        self.optimizer = make_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.folder, self.on_checkpoint = folder, on_checkpoint
        self.history = History(folder if self.processes.is_first else None)
        self.stopping = EarlyStopping(settings.patience)
        self.step = 0

    def resume(self) -> int:
        """Go back to the newest checkpoint in the folder and return its step; 0 if there is none.

        Raises:
            CheckpointError: it cannot be read, or is not of this model.
        """
        if self.folder is None:
            return self.step
        if self.processes.is_first:
            remove_partial(self.folder)
        found = checkpoint.checkpoints(self.folder)
        if found:
            step, path = found[-1]
            tensors, values = checkpoint.load(path)
            checkpoint.restore_model(self.model, tensors)
            checkpoint.restore_optimizer(self.model, self.optimizer, tensors)
            if values["scaler"]:
                self.scaler.load_state_dict(values["scaler"])
            if "stopping" in values:
                self.stopping.load_state_dict(values["stopping"])
            self.step = step
        self.history.return_to(self.step)
        self.processes.wait()
        return self.step

    def run(self, on_step: Callable[[int, Entry | None], object] | None = None) -> History:
        """Train up to the last step, or until validation no longer gets better.

        `on_step` gets each step and its log entry, if it has one.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        settings, tokens, seconds = self.settings, 0, 0.0
        while not self.is_over:
            begin = time.perf_counter()
            result = self.train_step()
            tokens, seconds = tokens + result.tokens, seconds + time.perf_counter() - begin
            due = {
                name: self._due(getattr(settings, f"{name}_every"))
                for name in ("log", "evaluate", "checkpoint")
            }
            entry: Entry = {}
            if due["log"]:
                entry |= self._entry(result) | {"tokens_per_second": round(tokens / seconds)}
                tokens, seconds = 0, 0.0
            if due["evaluate"] and self.validation:
                entry["validation_loss"] = self.evaluate()
            if entry:
                self.history.add({"step": self.step, **entry})
            if "validation_loss" in entry:
                self._judge(entry["validation_loss"])
            if due["checkpoint"] or self.is_over:
                self.save()
            if on_step is not None:
                on_step(self.step, self.history.entries[-1] if entry else None)
        return self.history

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end."""
        return self.step >= self.settings.steps or self.stopping.is_over

    def train_step(self) -> StepResult:
        """One optimizer step."""
        settings, processes = self.settings, self.processes
        self.module.train()
        batches = self._batches_of_step()
        weight = sum(batch.weight for batch in batches)
        total = int(processes.sum(torch.tensor(float(weight), device=self.device)))
        loss = torch.zeros((), device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        for n, batch in enumerate(batches):
            torch.manual_seed(seed_of("dropout", settings.seed, self.step, n, processes.rank))
            with processes.synchronising(self.module, n == len(batches) - 1):
                # DDP and FSDP divide the sum of the gradients by the number of processes.
                share = self._loss(batch) * (batch.weight / total)
                self.scaler.scale(share * processes.count).backward()
            loss += share.detach()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), settings.clip_norm or math.inf
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        return StepResult(processes.sum(loss), whole(norm), total)

    def evaluate(self) -> float:
        """The mean loss over the predicted tokens of the validation batches."""
        processes = self.processes
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.module.eval()
        with torch.no_grad():
            for first in range(0, len(self.validation), processes.count):
                # Every process takes part in every call: FSDP gathers the layers together.
                index = first + processes.rank
                batch = self.validation[min(index, len(self.validation) - 1)].to(self.device)
                loss = self._loss(batch)
                if index < len(self.validation):
                    sums += torch.stack(
                        (loss.double() * batch.weight, sums.new_tensor(batch.weight))
                    )
        self.module.train()
        total, weight = processes.sum(sums).tolist()
        return float(total / weight)

    def save(self) -> None:
        """Write a checkpoint of this step; every process has to call this."""
        if self.folder is None:
            return
        model = checkpoint.gather(checkpoint.model_tensors(self.model))
        optimizer = checkpoint.gather(checkpoint.optimizer_tensors(self.model, self.optimizer))
        if self.processes.is_first:
            values = {"scaler": self.scaler.state_dict(), "stopping": self.stopping.state_dict()}
            checkpoint.save(self.folder, self.step, {**model, **optimizer}, values)
            if not self.settings.patience:
                self._export(model)
        self.processes.wait()

    def _judge(self, loss: float) -> None:
        """Let early stopping know of a validation loss, and export the best model."""
        best = self.stopping.judge(self.step, loss)
        if best and self.settings.patience and self.folder is not None:
            # Before the checkpoint that knows of it: a run that is killed in between does it again.
            model = checkpoint.gather(checkpoint.model_tensors(self.model))
            if self.processes.is_first:
                self._export(model)

    def _export(self, model: dict[str, Tensor]) -> None:
        if self.on_checkpoint is not None:
            self.on_checkpoint({n.removeprefix("model/"): t for n, t in model.items()})

    def _due(self, every: int) -> bool:
        last = self.step == self.settings.steps
        return last or (every > 0 and self.step % every == 0)

    def _batches_of_step(self) -> list[Batch]:
        count, accumulate = self.processes.count, self.settings.accumulate
        first = self.step * accumulate * count + self.processes.rank
        return [self.batches[first + n * count].to(self.device) for n in range(accumulate)]

    def _loss(self, batch: Batch) -> Tensor:
        dtype = AUTOCAST.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss: Tensor = self.module(**batch.inputs)
        return loss

    def _entry(self, result: StepResult) -> dict[str, Any]:
        loss = float(result.loss)
        if not math.isfinite(loss):
            message = f"loss: must be finite, got {loss} in step {self.step}"
            raise FloatingPointError(f"{message} (a lower learning rate may help)")
        return {
            "loss": loss,
            "gradient_norm": float(result.gradient_norm),
            "learning_rate": self.settings.learning_rate_at(self.step - 1),
        }
