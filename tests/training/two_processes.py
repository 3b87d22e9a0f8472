"""What torchrun starts in test_processes: trains the small model and writes what came out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from training.small_model import SmallModel, Uneven, windows

from fused_attention.training import Settings, Trainer
from fused_attention.training.processes import Processes, whole

# With this epsilon AdamW does not blow up the noise of gradients that are 0 on paper (key biases).
SETTINGS = Settings(
    steps=6, learning_rate=1e-2, epsilon=1e-3, warmup=2, log_every=1, checkpoint_every=3
)


def run(strategy, folder, **changes):
    """Half of a run, then a new trainer that resumes it; the losses and the final weights."""
    processes = Processes.start("cpu", strategy)
    settings = dataclasses.replace(SETTINGS, **changes)
    # A model of another seed in each process: the first one's has to win.
    first = Trainer(
        SmallModel(0.0, seed=processes.rank),
        Uneven(windows()),
        settings,
        folder=folder,
        processes=processes,
        validation=[windows()[n] for n in range(100, 103)],
    )
    while first.step < 3:
        first.train_step()
    first.save()
    second = Trainer(
        SmallModel(0.0, seed=9),
        Uneven(windows()),
        settings,
        folder=folder,
        processes=processes,
        validation=first.validation,
    )
    assert second.resume() == 3
    entries = second.run().entries
    parts = [parameter.detach() for parameter in second.model.parameters()]
    result = {
        "losses": [entry["loss"] for entry in entries],
        "validation": entries[-1]["validation_loss"] if entries else None,
        "weights": [whole(part).flatten().tolist() for part in parts],
        "sharded": sum(type(part) is not torch.Tensor for part in parts),
    }
    if processes.is_first:
        (folder / "result.json").write_text(json.dumps(result))
    processes.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))
