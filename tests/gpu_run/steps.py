"""What is done, the most important first."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from gpu_run.context import FAILED, OK, SKIPPED, Context, Result, Step
from gpu_run.install import install
from gpu_run.matrix import run_matrix

REPEATS = 250
SANITIZER_ERROR = 86  # the exit status that compute-sanitizer shall give for what it finds
SANITIZER_SUMMARIES = ("ERROR SUMMARY", "RACECHECK SUMMARY")


def find_gpu(context: Context, limit_s: float) -> Result:
    gpus = context.machine["gpus"]
    if not gpus:
        return Result(FAILED, "nvidia-smi shows no GPU")
    first = gpus[0]
    return Result(OK, f"{len(gpus)} x {first['name']}, driver {first['driver_version']}")


def smoke(context: Context, limit_s: float) -> Result:
    path = context.fresh("smoke.json")
    outcome = context.module("smoke", "gpu_run.calls", limit_s, "--json", path)
    data = read_json(path)
    if data is None:
        return without_answer(context, "smoke", outcome)
    wrong = [line for line in data["lines"] if not line["ok"]]
    if not data["backends"] or not data["lines"]:
        return Result(FAILED, f"no backend runs here: {data['reasons']}", data)
    what = f"{', '.join(data['backends'])}: {len(data['lines'])} calls, {len(wrong)} wrong"
    if data["load_errors"]:  # other backends must not hide that a library is of no use here
        return Result(FAILED, f"{'; '.join(data['load_errors'])}; {what}", data)
    return Result(OK if outcome.ok and not wrong else FAILED, what, data)


def sanitize(context: Context, limit_s: float, tool: str) -> Result:
    """The calls of calls.py under one tool of compute-sanitizer."""
    program = context.machine["compute_sanitizer"]
    if program is None:
        return Result(SKIPPED, "compute-sanitizer was not found")
    path = context.fresh(f"{tool}.json")
    # Every tensor in an allocation of its own: an address beyond it is nobody's.
    environment = {**context.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    log = context.out / f"{tool}.log"
    already = log.stat().st_size if log.exists() else 0
    command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
    command += ["--target-processes", "all", "--print-limit", "20"]
    if tool == "memcheck":  # of our kernels: torch asks the driver for things that it may not have
        command += ["--report-api-errors", "no"]
    command += [context.python, "-m", "gpu_run.calls", "--json", str(path)]
    outcome = context.runner.run(command, log, limit_s, environment, context.root / "tests")
    lines = log.read_text(errors="replace")[already:].splitlines()
    told = [line.strip("= ") for line in lines if any(s in line for s in SANITIZER_SUMMARIES)]
    data = read_json(path)
    if outcome.ending != "exit":
        done = 0 if data is None else len(data["lines"])
        return Result(FAILED, f"{how(outcome)} after {done} calls", data)
    if not told:
        return Result(FAILED, f"compute-sanitizer gave no summary: {how(outcome)}", data)
    return Result(OK if outcome.ok else FAILED, "; ".join(told), data)


def races(context: Context, limit_s: float) -> Result:
    path = context.fresh("races.json")
    arguments = ["--repeats", REPEATS, "--seconds", limit_s - 5.0, "--json", path]
    outcome = context.module("races", "gpu_run.repeat", limit_s, *arguments)
    data = read_json(path)
    if data is None:
        return without_answer(context, "races", outcome)
    differing = [line["name"] for line in data["lines"] if line["differing"]]
    fewest = min((line["repeats"] for line in data["lines"]), default=0)
    what = f"{len(data['lines'])} calls repeated {fewest} times or more, {len(differing)} differ"
    right = outcome.ok and not differing and fewest > 0
    return Result(OK if right else FAILED, what + f" {differing[:3]}" * bool(differing), data)


def benchmark(context: Context, limit_s: float) -> Result:
    path = context.fresh("benchmark.json")
    arguments = ["--seconds", limit_s - 5.0, "--json", path]
    outcome = context.module("benchmark", "gpu_run.bench", limit_s, *arguments)
    data = read_json(path)
    if data is None:
        return without_answer(context, "benchmark", outcome)
    return Result(OK if outcome.ok else FAILED, data["summary"], {"file": path.name})


def conformance(context: Context, limit_s: float) -> Result:
    """The PTX emulator's microkernels on the GPU: does it do what the emulator does?"""
    if not context.modules.get("numpy"):
        return Result(SKIPPED, "the emulator needs numpy")
    path = context.fresh("conformance.json")
    outcome = context.module("conformance", "ptxsim.conformance", limit_s, "--json", path)
    data = read_json(path)
    if data is None:
        return without_answer(context, "conformance", outcome)
    answers = [case.get("device") for case in data["cases"]]
    agree, other = answers.count("agrees"), answers.count("not for this GPU")
    what = f"{agree} of {len(answers) - other} kernels agree, {other} are for another GPU"
    return Result(OK if outcome.ok and agree else FAILED, what, data)


def without_answer(context: Context, name: str, outcome: Any) -> Result:
    """The result of a program that has left no JSON: how it ended and what it said last."""
    lines = (context.out / f"{name}.log").read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return Result(FAILED, f"{how(outcome)}: {last}")


def how(outcome: Any) -> str:
    """How a process ended, in words."""
    if outcome.ending != "exit":
        return f"killed after {outcome.seconds:.0f} s ({outcome.ending})"
    return f"exit status {outcome.code}"


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _sanitizer(tool: str, does: str, least_s: float, most_s: float) -> Step:
    return Step(tool, does, least_s, most_s, functools.partial(sanitize, tool=tool))


def steps(carried: bool) -> tuple[Step, ...]:
    """All steps, the most important first.

    Args:
        carried: whether nothing has to be built.
    """
    setup = (
        Step("install", "unpack what was built", 30, 60, install, ("machine",))
        if carried
        else Step("install", "build the kernels for this GPU", 90, 200, install, ("machine",))
    )
    return (
        Step("machine", "find a GPU", 1, 2, find_gpu, needs=()),
        setup,
        Step("smoke", "forward, backward, decoding once by every backend", 25, 45, smoke),
        Step("matrix", "every test that is marked gpu", 80, 200, run_matrix),
        _sanitizer("memcheck", "no access beyond a tensor", 40, 75),
        Step("races", f"{REPEATS} repeats must be equal bit by bit", 20, 40, races),
        Step("conformance", "the emulator's microkernels on the GPU", 15, 40, conformance),
        Step("benchmark", "against torch's attention kernels", 40, 90, benchmark),
        _sanitizer("synccheck", "barriers are reached by all their threads", 25, 50),
        _sanitizer("racecheck", "no race in shared memory", 35, 75),
    )
