"""fused-attention check: every backend that can run here against the fp64 reference."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fused_attention import arguments as types
from fused_attention import backends
from fused_attention.backends import get
from fused_attention.benchmarks.accuracy import error_ratio, finite
from fused_attention.benchmarks.headlines import too_far_off
from fused_attention.benchmarks.machine import machine_info
from fused_attention.cli.check_cases import (
    CHECK_CASES,
    CheckCase,
    make_inputs,
    run_backend,
    run_reference,
)
from fused_attention.cli.output import OnStep, Output, UsageError
from fused_attention.support import devices_of

CHECK_WEIGHT = 0.1  # of one check, beside the weights of benchmarks.run
WIDEST_TABLE = 4  # columns of numbers; beyond them each backend gets a table of its own
PASS, FAIL, CANNOT = "pass", "FAIL", "cannot"


@dataclass(frozen=True)
class CheckResult:
    """One case on one backend in one dtype."""

    case: str
    backend: str
    dtype: str
    status: str  # PASS, FAIL or CANNOT
    ratio: float | None = None  # worst error over allowed error; at most 1 passes, None: infinite
    worst: str = ""  # the tensor with that ratio
    reason: str = ""  # why it cannot run, or what it raised

    @property
    def cell(self) -> str:
        if self.status == CANNOT:
            return "—"
        if self.ratio is None:
            return FAIL
        return f"{self.ratio:.2f}" + (f" {FAIL}" if self.status == FAIL else "")


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "check",
        "compare every backend that can run here with the fp64 reference",
        "fused-attention check --backend cpu --dtype fp32,bf16",
        run,
    )
    parser.add_argument("--backend", metavar="NAME", help="this one only (default: all)")
    parser.add_argument(
        "--dtype", type=types.dtypes, default=tuple(types.DTYPES), help="default: all four"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    names = available_backends(arguments.backend)
    with output.progress(weight(names, arguments.dtype)) as begin:
        results = list(check(names, arguments.dtype, arguments.seed, begin))
    show(output, results)
    output.json(as_json(results))
    return 0 if passed(results) else 1


def available_backends(wanted: str | None = None) -> list[str]:
    """Names of the backends that can run here, or of the wanted one.

    Raises:
        UsageError: the wanted backend does not exist or cannot run here.
    """
    known = {info.name: info for info in backends()}
    if wanted is None:
        return [name for name, info in known.items() if info.available]
    if wanted not in known:
        raise UsageError(f"argument --backend: must be of {', '.join(known)}, got {wanted!r}")
    if not known[wanted].available:
        raise UsageError(f"argument --backend: {wanted} cannot run here: {known[wanted].reason}")
    return [wanted]


def device_of(name: str) -> str:
    """The kind of device on which a backend that runs here is checked: the CPU if it can."""
    devices = devices_of(get(name))
    return "cpu" if "cpu" in devices else devices[0]


def weight(names: Sequence[str], dtypes: Sequence[str]) -> float:
    """Sum of the weights of `check`'s steps."""
    return len(CHECK_CASES) * len(names) * len(dtypes) * CHECK_WEIGHT


def check(
    names: Sequence[str],
    dtypes: Sequence[str],
    seed: int,
    begin: OnStep,
    cases: Sequence[CheckCase] = CHECK_CASES,
) -> Iterator[CheckResult]:
    """Forward and backward of every case; `begin` is told of each before it runs."""
    devices = {name: device_of(name) for name in names}
    for case in cases:
        for dtype in dtypes:
            torch_dtype = types.DTYPES[dtype]
            inputs = make_inputs(case, torch_dtype, seed)
            exact = run_reference(inputs, torch.float64)
            # In fp64 the plain formula is the exact result; its fp32 error is scaled down instead.
            naive = run_reference(inputs, torch.float32 if dtype == "fp64" else torch_dtype)
            for name in names:
                begin(f"{case.name}, {name}, {dtype}", CHECK_WEIGHT)
                try:
                    actual = run_backend(inputs, name, devices[name])
                except NotImplementedError as error:
                    yield CheckResult(case.name, name, dtype, CANNOT, reason=str(error))
                except Exception as error:  # whatever a broken kernel raises is its result
                    reason = f"{type(error).__name__}: {error}"
                    yield CheckResult(case.name, name, dtype, FAIL, reason=reason)
                else:
                    ratio, worst = worst_ratio(actual, naive, exact)
                    status = PASS if ratio <= 1.0 else FAIL
                    yield CheckResult(case.name, name, dtype, status, finite(ratio), worst)


def worst_ratio(
    actual: dict[str, Tensor], naive: dict[str, Tensor], exact: dict[str, Tensor]
) -> tuple[float, str]:
    """The worst error over allowed error, and of which tensor."""
    ratios = {
        name: error_ratio(actual[name], naive[name], exact[name], gradient="gradient" in name)
        for name in exact
    }
    worst = max(ratios, key=lambda name: ratios[name])
    return ratios[worst], worst


def passed(results: Sequence[CheckResult]) -> bool:
    return all(result.status != FAIL for result in results)


def summary(results: Sequence[CheckResult]) -> str:
    """One sentence about all results."""
    failed = [result for result in results if result.status == FAIL]
    ran = sum(result.status != CANNOT for result in results)
    if failed:
        return f"{len(failed)} of {ran} checks FAILED"
    ratios = [result.ratio for result in results if result.ratio is not None]
    worst = f"; the worst error is {max(ratios):.2f} of what is allowed" if ratios else ""
    return f"all {ran} checks passed{worst}"


def show(output: Output, results: Sequence[CheckResult]) -> None:
    """A table of worst ratios, then what failed, then the summary."""
    seen = dict.fromkeys((r.backend, r.dtype) for r in results)
    columns = sorted(seen, key=lambda column: column[0])  # stable: dtypes keep their order
    cells = {(r.case, (r.backend, r.dtype)): r.cell for r in results}
    output.heading("Accuracy, forward and backward: worst error / allowed error (1 is the limit)")
    for group in [columns] if len(columns) <= WIDEST_TABLE else _by_backend(columns):
        rows = [
            [case, *(cells[case, column] for column in group)]
            for case in dict.fromkeys(r.case for r in results)
        ]
        headers = ["", *(" ".join(column) for column in group)]
        output.table(headers, rows, style=lambda cell: "bold red" if FAIL in cell else None)
    for result in results:
        if result.status == FAIL:
            why = result.reason or too_far_off(result.worst, result.ratio)
            output.line(f"FAIL {result.case}, {result.backend}, {result.dtype}: {why}")
    output.line(summary(results))


def _by_backend(columns: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    groups = itertools.groupby(columns, key=lambda column: column[0])
    return [list(group) for _, group in groups]


def as_json(results: Sequence[CheckResult]) -> dict[str, object]:
    return {
        "machine": machine_info(),
        "passed": passed(results),
        "results": [asdict(result) for result in results],
    }
