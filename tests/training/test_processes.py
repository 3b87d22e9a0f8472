"""DDP and FSDP2 on two processes that torchrun starts, against one process with all the data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training.small_model import Joined, SmallModel, Uneven, windows
from training.two_processes import SETTINGS

from fused_attention.training import Trainer, checkpoint
from fused_attention.training.processes import Processes

TESTS = Path(__file__).resolve().parents[1]


def torchrun(strategy, folder, **changes):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(TESTS / "training" / "two_processes.py")
    done = subprocess.run(
        [sys.executable, *launcher, script, strategy, str(folder), json.dumps(changes)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize(
    "strategy, changes",
    [
        ("ddp", {"accumulate": 2}),
        ("fsdp", {"accumulate": 2, "checkpoint_layers": True}),
        ("fsdp", {"precision": "bf16"}),
    ],
    ids=str,
)
def test_two_processes_are_one(tmp_path, strategy, changes):
    result = torchrun(strategy, tmp_path, **changes)
    count = 2 * changes.pop("accumulate", 1)
    settings = dataclasses.replace(SETTINGS, **changes)
    alone = Trainer(
        SmallModel(0.0, seed=0),
        Joined(Uneven(windows()), count),
        settings,
        validation=[windows()[n] for n in range(100, 103)],
    )
    entries = alone.run().entries
    near = 1e-5 if settings.precision == "fp32" else 2e-2
    assert result["losses"] == pytest.approx([entry["loss"] for entry in entries][3:], rel=near)
    assert result["validation"] == pytest.approx(entries[-1]["validation_loss"], rel=near)
    own = [parameter.detach().flatten() for parameter in alone.model.parameters()]
    for part, wanted in zip(result["weights"], own, strict=True):
        torch.testing.assert_close(torch.tensor(part), wanted, rtol=10 * near, atol=10 * near)
    assert (result["sharded"] == len(own)) == (strategy == "fsdp")
    # One process goes on with what two have written.
    (step, path) = checkpoint.checkpoints(tmp_path)[-1]
    assert step == settings.steps
    one = SmallModel(seed=7)
    checkpoint.restore_model(one, checkpoint.load(path)[0])
    assert torch.equal(one.head.weight.flatten(), torch.tensor(result["weights"][0]))


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = Processes.start()
    assert (processes.rank, processes.count, processes.together) == (0, 1, False)
    module = SmallModel()
    assert processes.share(module) is module


def test_unknown_strategy():
    with pytest.raises(ValueError, match="strategy: must be one of ddp, fsdp, got 'zero'"):
        Processes.start("cpu", "zero")
