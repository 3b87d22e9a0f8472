"""Local attention with predicted positions against the ways there are to have it from torch alone.

    python -m fused_attention.benchmarks.local --json results/kernels/local.json

`dense` is the formula with a mask: scores [L, L], the window's mask, softmax, times the Gaussian.
`flashbias` is the one way to have the Gaussian in any fused kernel, with mode log_bias only: the
exponent is bilinear in query and key (FlashBias, NeurIPS 2025), so that two more dimensions
q' = [q, p / sigma^2, 1], k' = [k, j, -j^2 / (2 sigma^2)] make scaled_dot_product_attention add it.
It has no window, hence with log_bias all have one of 8 sigma, beyond which nothing is left; and its
terms are large and cancel.

Errors are those of one head of up to 2048 keys against fp64 on gathered windows. What is wrong is
not timed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention import local_attention
from fused_attention.arguments import non_negative, positive_int
from fused_attention.local import Mode
from fused_attention.text import table

from .contenders import OURS
from .machine import machine_info
from .memory import peak_bytes
from .options import parse, parser_of, store
from .timing import LoadMonitor, speedup, time_interleaved

SCHEMA = 1
DENSE, FLASHBIAS = "dense", "flashbias"
BAR = 8.0  # times faster than the dense formula
LARGEST_GROWTH = 2.5  # of the memory of a call whose lengths are doubled
MODES: tuple[Mode, ...] = ("luong", "log_bias")
LONGEST_CHECKED = 2048
MIB = 2**20
ERRORS = ("float32", "bfloat16", "gradients")
HEADER = ("mode", "contender", *ERRORS, "forward ms", "with backward")


@dataclass(frozen=True)
class Setting:
    """One problem: as many queries as keys, each query with a position somewhere among the keys."""

    length: int = 8192
    heads: int = 2
    head_dim: int = 64
    width: int = 10
    sigma: float = 5.0

    def window(self, mode: Mode) -> int:
        return self.width if mode == "luong" else math.ceil(8 * self.sigma)

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """query, key, value [1, H, L, D], position [1, H, L] and sigma [H]."""
        generator = torch.Generator().manual_seed(0)
        shape = (3, 1, self.heads, self.length, self.head_dim)
        operands = torch.randn(shape, generator=generator).to(dtype).unbind()
        position = torch.rand(shape[1:4], generator=generator) * self.length
        return [*operands, position, torch.full((self.heads,), self.sigma)]


def ours(tensors: Sequence[Tensor], width: int, mode: Mode) -> Tensor:
    *operands, sigma = tensors
    return local_attention(*operands, width=width, sigma=sigma, mode=mode)


def dense(tensors: Sequence[Tensor], width: int, mode: Mode) -> Tensor:
    query, key, value, position, sigma = tensors
    distance = torch.arange(key.shape[2]) - position[..., None]
    exponent = -0.5 * (distance / sigma[:, None, None]).square()
    outside = (torch.arange(key.shape[2]) - position.floor()[..., None]).abs() > width
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mode == "log_bias":
        scores = scores + exponent
    weights = scores.masked_fill(outside, -math.inf).softmax(-1)
    out: Tensor = (weights * exponent.exp() if mode == "luong" else weights) @ value
    return out


def gathered(tensors: Sequence[Tensor], width: int, mode: Mode) -> Tensor:
    """The same from a copy of each query's window; slow, and exact in fp64."""
    query, key, value, position, sigma = tensors
    window = position.floor().long()[..., None] + torch.arange(-width, width + 1)  # [1, H, L, W]
    exists = (window >= 0) & (window < key.shape[2])
    near = window.clamp(0, key.shape[2] - 1)
    head = torch.arange(key.shape[1])[:, None, None]
    keys, values = (x[0, head, near[0]][None] for x in (key, value))
    exponent = -0.5 * ((window - position[..., None]) / sigma[:, None, None]).square()
    scores = (keys @ query[..., None])[..., 0] * query.shape[-1] ** -0.5
    if mode == "log_bias":
        scores = scores + exponent
    weights = scores.masked_fill(~exists, -math.inf).softmax(-1)
    weights = weights * exponent.exp() if mode == "luong" else weights
    out: Tensor = (weights[..., None, :] @ values)[..., 0, :]
    return out


def flashbias(tensors: Sequence[Tensor], width: int, mode: Mode) -> Tensor:
    query, key, value, position, sigma = tensors
    length, variance = key.shape[2], sigma.square()[:, None, None]
    middle = length / 2  # counted from there, positions are half as large
    offset, far = position[..., None] - middle, torch.arange(length)[:, None] - middle
    extra_query = torch.cat([offset / variance, torch.ones_like(offset)], -1)
    bilinear = far.expand(*key.shape[1:3], 1), -far.square() / (2 * variance)
    extra_key = torch.cat(bilinear, -1).expand(*key.shape[:3], 2)
    longer_query = torch.cat([query * query.shape[-1] ** -0.5, extra_query.to(query)], -1)
    longer_key = torch.cat([key, extra_key.to(key)], -1)
    return F.scaled_dot_product_attention(longer_query, longer_key, value, scale=1.0)


CONTENDERS = {OURS: ours, DENSE: dense, FLASHBIAS: flashbias}
PEERS = {"luong": (OURS, DENSE), "log_bias": (OURS, DENSE, FLASHBIAS)}
RACERS = {"luong": (OURS, DENSE), "log_bias": (OURS, FLASHBIAS)}  # the formula takes its time


def errors(setting: Setting, mode: Mode) -> dict[str, dict[str, float]]:
    """The largest error of out in each dtype; that of gradients, relative to the largest one."""
    width, length = setting.window(mode), min(setting.length, LONGEST_CHECKED)
    setting = dataclasses.replace(setting, heads=1, length=length)
    exact = [x.double().requires_grad_() for x in setting.inputs()]
    expected = gathered(exact, width, mode)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, exact, upstream.double())
    found: dict[str, dict[str, float]] = {name: {} for name in PEERS[mode]}
    for name in PEERS[mode]:
        leaves = [x.requires_grad_() for x in setting.inputs()]
        out = CONTENDERS[name](leaves, width, mode)
        found[name]["float32"] = _difference(out, expected)
        if name != FLASHBIAS:
            actual = torch.autograd.grad(out, leaves, upstream)
            found[name]["gradients"] = max(
                _difference(a, e) / float(e.abs().max())
                for a, e in zip(actual, gradients, strict=True)
            )
        del out, leaves
    with torch.no_grad():
        low = setting.inputs(torch.bfloat16)
        expected = gathered([x.double() for x in low], width, mode)
        for name in PEERS[mode]:
            if name != DENSE:
                out = CONTENDERS[name](low, width, mode)
                found[name]["bfloat16"] = _difference(out, expected)
    return found


def _difference(actual: Tensor, exact: Tensor) -> float:
    return float((actual.detach().double() - exact.detach()).abs().max())


def right(found: dict[str, dict[str, float]]) -> bool:
    """Whether ours is as exact as the dense formula, whose error it may not exceed by far."""
    return all(found[OURS][key] <= 3 * found[DENSE][key] + 1e-6 for key in ("float32", "gradients"))


def times(setting: Setting, mode: Mode, seconds: float) -> dict[str, Any]:
    """Median seconds of each contender, and how many times faster ours is."""
    tensors = setting.inputs()
    leaves = [x.clone().requires_grad_() for x in tensors]
    upstream = torch.randn(tensors[0].shape)

    def forward(name: str) -> Any:
        with torch.no_grad():
            return CONTENDERS[name](tensors, setting.window(mode), mode)

    def both(name: str) -> Any:
        out = CONTENDERS[name](leaves, setting.window(mode), mode)
        return torch.autograd.grad(out, leaves, upstream)

    report = {}
    for step, run in (("forward", forward), ("forward + backward", both)):
        racers = {name: functools.partial(run, name) for name in RACERS[mode]}
        timings = time_interleaved(racers, seconds, min_rounds=2)
        report[step] = {
            "seconds": {name: timing.median_s for name, timing in timings.items()},
            "speedups": {
                name: speedup(timings[OURS], timing)
                for name, timing in timings.items()
                if name != OURS
            },
        }
    return report


def memory(setting: Setting) -> int | None:
    """Peak bytes of forward and backward above the inputs; to be called in a fresh process."""
    for one in (dataclasses.replace(setting, length=64), setting):
        leaves = [x.requires_grad_() for x in one.inputs()]

        def call(leaves: list[Tensor] = leaves) -> Any:
            out = ours(leaves, setting.width, "luong")
            return torch.autograd.grad(out.sum(), leaves)

        peak, _ = peak_bytes(call)
    return peak


def growth(setting: Setting, factors: Sequence[int] = (1, 2, 4)) -> dict[str, int | None]:
    """`memory` at multiples of the length."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for factor in factors:
        longer = dataclasses.replace(setting, length=factor * setting.length)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[str(longer.length)] = pool.submit(memory, longer).result()
    return found


def measure(setting: Setting, seconds: float) -> dict[str, Any]:
    """Memory, errors and, where these are right, times."""
    monitor = LoadMonitor().start()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine_info(),
        "setting": dataclasses.asdict(setting),
        "memory_bytes": growth(setting),
        "errors": {mode: errors(setting, mode) for mode in MODES},
        "times": {},
    }
    for mode in MODES:
        if right(report["errors"][mode]):
            report["times"][mode] = times(setting, mode, seconds)
    report["load"] = monitor.report()
    return report


def fails(report: dict[str, Any]) -> list[str]:
    """What the report says against us."""
    found = [f"{mode}: wrong results" for mode in MODES if mode not in report["times"]]
    for mode, steps in report["times"].items():
        for step, one in steps.items():
            ratio = one["speedups"].get(DENSE, BAR)
            if ratio < BAR:
                found.append(f"{mode}, {step}: {ratio:.1f}x is below {BAR:g}x")
    peaks = [peak for peak in report["memory_bytes"].values() if peak]
    for before, after in zip(peaks, peaks[1:], strict=False):
        if after > LARGEST_GROWTH * before:
            found.append(f"memory grows {after / before:.1f}x where lengths double")
    return found


def as_table(report: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [HEADER]
    for mode, found in report["errors"].items():
        for name, one in found.items():
            told = [f"{one[key]:.1e}" if key in one else "-" for key in ERRORS]
            steps = report["times"].get(mode, {}).values()
            taken = [step["seconds"].get(name) for step in steps] or [None, None]
            told += ["-" if s is None else f"{s * 1e3:.1f}" for s in taken]
            rows.append((mode, name, *told))
    peaks = [
        f"L={length}: {'unknown' if peak is None else f'{peak / MIB:.1f} MiB'}"
        for length, peak in report["memory_bytes"].items()
    ]
    return f"{table(rows)}\npeak memory of {OURS}, forward and backward: {', '.join(peaks)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if `fails` finds something."""
    parser = parser_of("local", "Local attention against torch's formula.", 5.0, "per race")
    for field in dataclasses.fields(Setting):
        name = f"--{field.name.replace('_', '-')}"
        kind = positive_int if isinstance(field.default, int) else non_negative
        parser.add_argument(name, type=kind, default=field.default)
    options = vars(parse(parser, arguments))
    _, seconds, path = (options.pop(name) for name in ("threads", "seconds", "json"))
    report = measure(Setting(**options), seconds)
    print(as_table(report))
    for mode, steps in report["times"].items():
        for step, one in steps.items():
            told = ", ".join(f"{x:.1f}x {name}" for name, x in one["speedups"].items())
            print(f"{mode}, {step}: {OURS} is as fast as {told}")
    store(report, path)
    print("\n".join(against := fails(report)))
    return int(bool(against))


if __name__ == "__main__":
    raise SystemExit(main())
