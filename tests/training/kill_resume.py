"""Kills a training run at random moments and resumes it, until it has reached its last step.

    PYTHONPATH=tests python -m training.kill_resume --kills 20 --model recurrent

Its losses have to be those of a run that nobody disturbed, every checkpoint complete, and the
weights at the end the same bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import random
import resource
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
MODELS = {"attention": (SmallModel, windows), "recurrent": (small_translator, pair_batches)}
FORK = multiprocessing.get_context("fork")  # a child has torch imported already


def train(folder, settings, model):
    """Go on with the run to its end."""
    torch.set_num_threads(1)
    build, batches = MODELS[model]
    trainer = Trainer(build(), batches(), settings, folder=folder)
    trainer.resume()
    trainer.run()


def kill_after(child, cpu_seconds):
    """kill -9 after so much CPU time, which passes evenly on a busy machine, too."""
    clock = ~child.pid << 3 | 2  # Linux: all threads of a process; see clock_getcpuclockid(3)
    while child.is_alive():
        if time.clock_gettime(clock) >= cpu_seconds:
            child.kill()
            return
        time.sleep(0.001)


def run_killed(folder, settings, moments, model):
    """Start, kill, resume, and so on; then let it end. Steps of the checkpoints at the kills."""
    reached = []
    for moment in (*moments, None):
        child = FORK.Process(target=train, args=(folder, settings, model))
        child.start()
        if moment is not None:
            kill_after(child, moment)
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
        trial = Path(name) / "trial"
        trial.mkdir()
        begin = _cpu_seconds_of_children()
        run_killed(trial, dataclasses.replace(settings, steps=1), (), model)
        started = _cpu_seconds_of_children()
        run_killed(whole, settings, (), model)
        # Shorter than even parts: the run must not end before its last kill.
        span = (_cpu_seconds_of_children() - started) / (1.5 * kills + 1)
        chance = random.Random(seed)
        moments = [started - begin + chance.uniform(0.0, 1.6) * span for _ in range(kills)]
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


def _cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
