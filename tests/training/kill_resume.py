"""Kills a training run at random moments and resumes it, until it has reached its last step.

    PYTHONPATH=tests python -m training.kill_resume --kills 20

Its losses have to be those of a run that nobody disturbed, every checkpoint complete, and the
weights at the end the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from training.small_model import SmallModel, windows

from fused_attention.training import Settings, Trainer, checkpoint
from fused_attention.training.history import read_log

CHECKPOINT_EVERY = 8
CYCLES_PER_KILL = 8  # about three pass until a kill; on a busy machine more
FORK = multiprocessing.get_context("fork")  # a child has torch imported already


def train(folder, settings):
    torch.set_num_threads(1)
    trainer = Trainer(SmallModel(), windows(), settings, folder=folder)
    trainer.resume()
    trainer.run()


def run_killed(folder, settings, kills, chance):
    """Start, kill, resume, and so on; then let it end. Steps of the checkpoints at the kills.

    A kill comes at any point of the cycle from one checkpoint to the next, writing included; how
    long that takes is measured each time, so it does not matter how busy the machine is.
    """
    reached = []
    for _ in range(kills):
        child = FORK.Process(target=train, args=(folder, settings))
        child.start()
        before = time.perf_counter()
        for _ in range(2):
            before, cycle = time.perf_counter(), _wait_for_checkpoint(folder, child) - before
        time.sleep(chance.uniform(0.0, 1.2) * cycle)
        child.kill()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the run ended after {len(reached)} kills; it needs more steps")
        found = checkpoint.checkpoints(folder)
        for _, path in found:
            checkpoint.load(path)  # raises when it is torn
        reached.append(found[-1][0] if found else 0)
    last = FORK.Process(target=train, args=(folder, settings))
    last.start()
    last.join()
    if last.exitcode:
        raise RuntimeError(f"the resumed run ended with exit code {last.exitcode}")
    return reached


def _wait_for_checkpoint(folder, child):
    """When the child has written its next checkpoint."""
    known = checkpoint.checkpoints(folder)[-1:]
    while checkpoint.checkpoints(folder)[-1:] == known and child.is_alive():
        time.sleep(0.001)
    return time.perf_counter()


def compare(kills, seed=0):
    """A killed run beside an undisturbed one."""
    steps = CHECKPOINT_EVERY * CYCLES_PER_KILL * (kills + 1)
    settings = Settings(
        steps=steps, learning_rate=1e-2, log_every=1, checkpoint_every=CHECKPOINT_EVERY
    )
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        killed.mkdir()
        run_killed(whole, settings, 0, chance)
        reached = run_killed(killed, settings, kills, chance)
        logs = [[entry["loss"] for entry in read_log(f / "log.jsonl")] for f in (whole, killed)]
        ends = [checkpoint.load(checkpoint.checkpoints(f)[-1][1])[0] for f in (whole, killed)]
        return {
            "kills": kills,
            "steps": steps,
            "checkpoints at the kills": reached,
            "partial files left": len(list(killed.glob(".*"))),
            "same losses": len(logs[0]) == steps and logs[0] == logs[1],
            "same weights": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        }


def passed(report):
    return report["same losses"] and report["same weights"] and not report["partial files left"]


def main():
    parser = argparse.ArgumentParser(prog="python -m training.kill_resume")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = compare(options.kills, options.seed)
    print(json.dumps(report, indent=1))
    return 0 if passed(report) else 1


if __name__ == "__main__":
    sys.exit(main())
