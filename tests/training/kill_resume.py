"""Kills a training run at random moments and resumes it, until it has reached its last step.

    PYTHONPATH=tests python -m training.kill_resume --kills 20

Its losses have to be those of a run that nobody disturbed, every checkpoint complete, and the
weights at the end the same bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
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

FORK = multiprocessing.get_context("fork")  # a child has torch imported already


def train(folder, settings):
    torch.set_num_threads(1)
    trainer = Trainer(SmallModel(), windows(), settings, folder=folder)
    trainer.resume()
    trainer.run()


def run_killed(folder, settings, moments):
    """Start, kill after so many seconds, resume, and so on; then let it end. Steps at the kills."""
    reached = []
    for moment in moments:
        child = FORK.Process(target=train, args=(folder, settings))
        child.start()
        time.sleep(moment)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
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


def compare(kills, seconds, seed=0):
    """A killed run beside an undisturbed one; `seconds` is about how long the latter takes."""
    settings = Settings(steps=1, learning_rate=1e-2, log_every=1, checkpoint_every=3)
    with tempfile.TemporaryDirectory() as name:
        settings, steps_per_second = _sized(settings, Path(name) / "trial", seconds)
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        killed.mkdir()
        run_killed(whole, settings, [])
        chance = random.Random(seed)
        span = settings.steps / steps_per_second / (kills + 1)
        moments = [chance.uniform(0.1, 1.8) * span for _ in range(kills)]
        reached = run_killed(killed, settings, moments)
        logs = [[entry["loss"] for entry in read_log(f / "log.jsonl")] for f in (whole, killed)]
        ends = [checkpoint.load(checkpoint.checkpoints(f)[-1][1])[0] for f in (whole, killed)]
        return {
            "kills": kills,
            "steps": settings.steps,
            "checkpoints at the kills": reached,
            "partial files left": len(list(killed.glob(".*"))),
            "same losses": len(logs[0]) == settings.steps and logs[0] == logs[1],
            "same weights": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        }


def _sized(settings, folder, seconds):
    """Settings with as many steps as a child process takes in about this time."""
    folder.mkdir()
    trial = dataclasses.replace(settings, steps=60)
    begin = time.perf_counter()
    run_killed(folder, trial, [])
    per_second = 60 / (time.perf_counter() - begin)
    return dataclasses.replace(settings, steps=max(60, int(seconds * per_second))), per_second


def passed(report):
    return report["same losses"] and report["same weights"] and not report["partial files left"]


def main():
    parser = argparse.ArgumentParser(prog="python -m training.kill_resume")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the undisturbed run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = compare(options.kills, options.seconds, options.seed)
    print(json.dumps(report, indent=1))
    return 0 if passed(report) else 1


if __name__ == "__main__":
    sys.exit(main())
