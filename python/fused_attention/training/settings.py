"""The settings of a training run; a run is a function of them, its model and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fused_attention.checks import wrong_value
from fused_attention.training.schedules import SCHEDULES

AUTO = "auto"
PRECISIONS = ("fp32", "bf16", "fp16", AUTO)


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: the highest that the schedule gives.
        schedule: a name of schedules.SCHEDULES.
        warmup: steps in which the learning rate rises linearly.
        final_ratio: the cosine schedule ends at learning_rate * final_ratio.
        beta1, beta2, epsilon: AdamW's.
        weight_decay: of matrices; biases and norms have none.
        clip_norm: the gradient's norm is at most this; 0 leaves it as it is.
        accumulate: batches per step and process.
        precision: fp32, or the dtype of autocast; parameters and optimizer stay fp32. auto is bf16
            where the device multiplies it, else fp32.
        checkpoint_layers: recompute each layer in backward instead of keeping its activations.
        compile: compile the model with torch.compile.
        seed: of batches, dropout and (by the caller) initial parameters.
        log_every, evaluate_every, checkpoint_every: in steps; 0 is never but at the end.
        patience: evaluations in a row without a better validation loss that end the run, whose
            exported model is then the best one instead of the latest; 0 goes on to the last step.

    Raises:
        ValueError: one of them is out of its range.
    """

    steps: int
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    final_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1
    precision: str = "fp32"
    checkpoint_layers: bool = False
    compile: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        zero_or_more = ("warmup", "evaluate_every", "checkpoint_every", "patience", "clip_norm")
        for name in (*zero_or_more, "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                wrong_value(name, "must be at least 0", getattr(self, name))
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                wrong_value(name, "must be above 0", getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                wrong_value(name, "must be in [0, 1)", getattr(self, name))
        if not 0 <= self.final_ratio <= 1:
            wrong_value("final_ratio", "must be in [0, 1]", self.final_ratio)
        if self.schedule not in SCHEDULES:
            wrong_value("schedule", f"must be one of {', '.join(SCHEDULES)}", repr(self.schedule))
        if self.precision not in PRECISIONS:
            rule = f"must be one of {', '.join(PRECISIONS)}"
            wrong_value("precision", rule, repr(self.precision))

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step`, the first being 0."""
        share = SCHEDULES[self.schedule](step, self.steps, self.warmup, self.final_ratio)
        return self.learning_rate * share
