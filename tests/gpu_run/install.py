"""The step `install`: a Python that imports fused_attention, with kernels for this machine's GPU.

A carried wheel is unpacked, which takes a second and needs neither network, compiler nor pip. If
there is none, or one of other sources, `make setup` builds here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from gpu_run import carry
from gpu_run.context import FAILED, OK, Context, Result

SITE = "build/gpu-run/site"  # in the checkout; a folder for PYTHONPATH
MODULES = ("torch", "fused_attention", "pytest", "hypothesis", "numpy", "triton", "rich")
# Printed by the Python that runs all other steps.
PROBE = f"""
import importlib.util, json
found = {{name: importlib.util.find_spec(name) is not None for name in {MODULES!r}}}
facts = {{"modules": found}}
if found["torch"]:
    import torch
    facts |= {{"torch": torch.__version__, "cuda": torch.version.cuda}}
    facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
if found["fused_attention"]:
    import fused_attention
    facts["package"] = fused_attention.__file__
    facts["backends"] = fused_attention.backends().as_dicts()
if found["triton"]:
    import triton
    facts["triton"] = triton.__version__
print(json.dumps(facts))
"""


def install(context: Context, limit_s: float) -> Result:
    end = context.runner.elapsed() + limit_s
    tests = str(context.root / "tests")
    why_not = carry.why_not_carried(context.root, context.carry)
    site = context.root / SITE
    shutil.rmtree(site, ignore_errors=True)
    if why_not is None:
        wheel = carry.find_wheel(context.carry)
        assert wheel is not None
        carry.unpack(wheel, site)
        how = f"unpacked {wheel.name}"
    else:
        how = f"built here ({why_not})"
        problem = build(context, limit_s)
        if problem:
            return Result(FAILED, f"make setup: {problem}; {why_not}")
        context.python = str(context.root / ".venv" / "bin" / "python")
    context.environment["PYTHONPATH"] = os.pathsep.join((str(site), tests))
    unpack_tools(context, site, end - context.runner.elapsed())
    facts = probe(context, end - context.runner.elapsed())
    if facts is None:
        return Result(FAILED, f"{context.python} cannot say what it sees; {how}")
    context.modules = facts["modules"]
    facts["how"] = how
    missing = [m for m in ("torch", "fused_attention") if not facts["modules"][m]]
    if missing:
        return Result(FAILED, f"{' and '.join(missing)} cannot be imported; {how}", facts)
    what = f"{how}; torch {facts['torch']}, triton {facts.get('triton', 'none')}"
    lacking = [m for m in ("pytest", "hypothesis") if not facts["modules"][m]]
    what += f", without {' and '.join(lacking)}" if lacking else ""
    if facts["gpu"] is None:
        return Result(FAILED, f"torch finds no GPU; {what}", facts)
    return Result(OK, what, facts)


def build(context: Context, limit_s: float) -> str | None:
    """`make setup` for the GPUs here; None if it worked, else what became of it."""
    environment = {
        **context.environment,
        "FUSED_ATTENTION_CUDA": "1",
        "FUSED_ATTENTION_CUDA_ARCHS": "native",
        "MAX_JOBS": str(context.machine["cores"]),
        # Without network pip would wait and try again; with carried wheels it needs none.
        "PIP_RETRIES": "1",
        "PIP_DEFAULT_TIMEOUT": "10",
        "PIP_FIND_LINKS": str(context.carry / carry.TOOLS),
    }
    command = ["make", "setup", f"PYTHON={sys.executable}"]
    log = context.out / "install.log"
    outcome = context.runner.run(command, log, limit_s, environment, context.root)
    if outcome.ending != "exit":
        return f"not ready after {outcome.seconds:.0f} s"
    return None if outcome.ok else f"exit status {outcome.code}"


def unpack_tools(context: Context, site: Path, limit_s: float) -> None:
    """Whatever the Python in use lacks and the carried folder has."""
    wheels = carry.tool_wheels(context.carry)
    for name in missing_distributions(context, list(wheels), limit_s):
        carry.unpack(wheels[name], site)


def missing_distributions(context: Context, names: list[str], limit_s: float) -> list[str]:
    """Those of the names under which nothing is installed."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower().replace('-', '_') for d in m.distributions()}\n"
        "print(json.dumps([n for n in sys.argv[1:] if n.lower() not in have]))"
    )
    answer = ask_python(context, code, limit_s, *names)
    return [] if answer is None else answer


def probe(context: Context, limit_s: float) -> dict[str, Any] | None:
    """What the Python in use can import and sees; None if it cannot say."""
    return ask_python(context, PROBE, limit_s)


def ask_python(context: Context, code: str, limit_s: float, *arguments: str) -> Any:
    """The JSON that a few lines of Python print last; None if they fail."""
    log = context.out / "install.log"
    already = log.stat().st_size if log.exists() else 0
    outcome = context.call("install", [context.python, "-c", code, *arguments], limit_s)
    if not outcome.ok:
        return None
    try:
        return json.loads(log.read_bytes()[already:].decode().splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        return None
