"""Early stopping: when a run ends, which model it leaves, and that resuming changes neither."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from training.small_model import LENGTH, SmallModel, tokens, windows

from fused_attention.training import Settings, Trainer
from fused_attention.training.stopping import EarlyStopping
from fused_attention.training.windows import even_windows

# Its noise is another than the training text's, which the model learns by heart.
VALIDATION = even_windows(tokens(60, seed=9), LENGTH, 4, 2)
EVERY = 12  # steps between checkpoints
SETTINGS = Settings(
    steps=400,
    learning_rate=1e-2,
    warmup=2,
    log_every=1,
    evaluate_every=2,
    checkpoint_every=EVERY,
    patience=3,
)


class StopError(Exception):
    """Stands for a kill."""


class Exports(list):
    """The models that a run exported."""

    def __call__(self, tensors):
        self.append({name: tensor.clone() for name, tensor in tensors.items()})


def trainer(folder=None, settings=SETTINGS, exports=None, seed=0):
    return Trainer(
        SmallModel(seed=seed),
        windows(),
        settings,
        validation=VALIDATION,
        folder=folder,
        on_checkpoint=exports,
    )


def test_patience_counts_from_the_best():
    stopping = EarlyStopping(patience=2)
    told = [stopping.judge(step, loss) for step, loss in enumerate((3.0, 2.0, 2.0), 1)]
    assert told == [True, True, False] and not stopping.is_over
    assert stopping.judge(4, 1.5) and (stopping.best, stopping.best_step) == (1.5, 4)
    assert not stopping.judge(5, math.nan) and not stopping.is_over
    assert not stopping.judge(6, 1.6) and stopping.is_over
    endless = EarlyStopping(patience=0)
    assert not any([endless.judge(n, 1.0 + n) for n in range(50)][1:]) and not endless.is_over


def test_the_run_ends_and_leaves_its_best_model(tmp_path):
    exports = Exports()
    ended = trainer(tmp_path, exports=exports)
    entries = [entry for entry in ended.run().entries if "validation_loss" in entry]
    losses = [entry["validation_loss"] for entry in entries]
    best = losses.index(min(losses))
    assert ended.step < SETTINGS.steps
    assert best == len(losses) - 1 - SETTINGS.patience
    assert ended.stopping.best_step == entries[best]["step"]
    again = SmallModel(seed=7)
    again.load_state_dict(exports[-1], strict=False)
    judged = Trainer(again, windows(), SETTINGS, validation=VALIDATION)
    assert judged.evaluate() == losses[best]


def test_without_patience_it_goes_on_and_leaves_the_latest(tmp_path):
    exports = Exports()
    settings = dataclasses.replace(SETTINGS, steps=60, patience=0)
    ended = trainer(tmp_path, settings, exports)
    ended.run()
    assert ended.step == 60
    assert torch.equal(exports[-1]["embedding.weight"], ended.model.embedding.weight)


@pytest.mark.parametrize("killed_at", [13, 33, 37])
def test_a_resumed_run_ends_alike(tmp_path, killed_at):
    def losses(history):
        return [{k: v for k, v in e.items() if k.endswith("loss")} for e in history.entries]

    exported, again = Exports(), Exports()
    (tmp_path / "whole").mkdir()
    wanted = trainer(tmp_path / "whole", exports=exported)
    wanted.run()

    def kill(step, entry):
        if step == killed_at:
            raise StopError

    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(StopError):
        trainer(folder, exports=again).run(kill)
    second = trainer(folder, exports=again, seed=5)
    assert second.resume() == killed_at // EVERY * EVERY
    assert losses(second.run()) == losses(wanted.history)
    assert second.stopping == wanted.stopping
    assert all(torch.equal(again[-1][name], exported[-1][name]) for name in exported[-1])
    third = trainer(folder, seed=6)
    assert third.resume() == wanted.step and third.is_over
    assert third.run().entries == second.history.entries


def test_patience_needs_something_to_judge_by():
    with pytest.raises(ValueError, match="patience: needs validation batches, got 3"):
        Trainer(SmallModel(), windows(), SETTINGS)
    with pytest.raises(ValueError, match="patience: must be at least 0, got -1"):
        dataclasses.replace(SETTINGS, patience=-1)
