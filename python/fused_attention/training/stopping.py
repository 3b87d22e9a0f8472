"""Early stopping: a run ends when its validation loss no longer gets better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyStopping:
    """How long ago the validation loss was at its best; a part of every checkpoint.

    Attributes:
        patience: evaluations in a row without a better loss that end the run; 0 never ends it.
        best: the lowest loss so far.
        best_step: the step of it; 0 before the first evaluation.
        waited: evaluations since then.
    """

    patience: int
    best: float = math.inf
    best_step: int = 0
    waited: int = 0

    def judge(self, step: int, loss: float) -> bool:
        """Take a loss and say whether it is the best so far; one that is no number never is."""
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        return self.waited == 0

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.best, self.best_step, self.waited = (state[n] for n in self.state_dict())
