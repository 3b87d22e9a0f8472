"""Kills a training run at random moments and resumes it, until it has reached its last step.

    PYTHONPATH=tests python -m training.kill_resume --kills 20 --model recurrent

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
from training.small_model import SmallModel, pair_batches, small_translator, windows

from fused_attention.training import Settings, Trainer, checkpoint
from fused_attention.training.history import read_log

CHECKPOINT_EVERY = 6
STEPS_PER_KILL = 60
LONGEST_DELAY = 0.02  # seconds: a few steps
MODELS = {"attention": (SmallModel, windows), "recurrent": (small_translator, pair_batches)}
FORK = multiprocessing.get_context("fork")  # a child has torch imported already


def train(folder, settings, model):
    """Go on with the run to its end."""
    torch.set_num_threads(1)
    build, batches = MODELS[model]
    trainer = Trainer(build(), batches(), settings, folder=folder)
    trainer.resume()
    trainer.run()


def kill_after(child, log, step, seconds):
    """kill -9 so long after a step, which comes on a busy machine, too, and on a fast one."""
    while child.is_alive():
        if log.exists() and log.read_bytes().count(b"\n") >= step:
            time.sleep(seconds)
            child.kill()
            return
        time.sleep(0.001)


def run_killed(folder, settings, moments, model):
    """Start, kill, resume, and so on; then let it end. Steps of the checkpoints at the kills.

    moments: the steps after which a run is killed, counted from where it resumed, and seconds more.
    """
    reached = []
    for moment in (*moments, None):
        child = FORK.Process(target=train, args=(folder, settings, model))
        found = checkpoint.checkpoints(folder)
        child.start()
        if moment is not None:
            steps, seconds = moment
            kill_after(child, folder / "log.jsonl", steps + (found[-1][0] if found else 0), seconds)
        child.join()
        found = checkpoint.checkpoints(folder)
        for _, path in found:
            checkpoint.load(path)  # raises when it is torn
        if child.exitcode == -signal.SIGKILL:
            reached.append(found[-1][0] if found else 0)
        elif child.exitcode:
            raise RuntimeError(f"the run ended with exit code {child.exitcode}")
    return reached


def compare(kills, seed=0, model="attention"):
    """A killed run beside an undisturbed one."""
    steps = STEPS_PER_KILL * (kills + 1)
    settings = Settings(
        steps=steps, learning_rate=1e-2, log_every=1, checkpoint_every=CHECKPOINT_EVERY
    )
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        killed.mkdir()
        run_killed(whole, settings, (), model)
        # A few steps behind a random one, or while a checkpoint is written; never behind the end.
        chance = random.Random(seed)
        moments = [
            (chance.randrange(STEPS_PER_KILL // 2), chance.uniform(0.0, LONGEST_DELAY))
            for _ in range(kills)
        ]
        reached = run_killed(killed, settings, moments, model)
        logs = [[entry["loss"] for entry in read_log(f / "log.jsonl")] for f in (whole, killed)]
        ends = [checkpoint.load(checkpoint.checkpoints(f)[-1][1])[0] for f in (whole, killed)]
        return {
            "kills": len(reached),
            "steps": steps,
            "checkpoints at the kills": reached,
            "partial files left": len(list(killed.glob(".*"))),
            "same losses": len(logs[0]) == steps and logs[0] == logs[1],
            "same weights": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        }


def passed(report, kills):
    """So many kills struck a run that had something to lose, and nothing tells of them."""
    struck = report["kills"] >= kills and any(report["checkpoints at the kills"])
    same = report["same losses"] and report["same weights"]
    return struck and same and not report["partial files left"]


def main():
    parser = argparse.ArgumentParser(prog="python -m training.kill_resume")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=MODELS, default="attention")
    options = parser.parse_args()
    report = compare(options.kills, options.seed, options.model)
    print(json.dumps(report, indent=1))
    return 0 if passed(report, options.kills) else 1


if __name__ == "__main__":
    sys.exit(main())
