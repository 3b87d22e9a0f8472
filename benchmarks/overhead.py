"""What each door into the package costs per call, over a direct call of attention().

    python -m fused_attention.benchmarks.overhead

The problem is tiny, so that nearly all of a call is Python and dispatch. All doors are timed in one
run, in turns; a door's overhead is the median over the rounds of its time less that of the direct
call (or of whatever else it does besides attention, such as projections, done by hand) in the same
round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention import attention, attention_varlen
from fused_attention.text import table

from .machine import machine_info

SCHEMA = 1
DIRECT = "attention()"
BATCH, HEADS, LENGTH, HEAD_DIM = 1, 2, 8, 16
LIMIT_US = 30.0

Call = Callable[[], Any]
Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Timed:
    """A call to time, in the context that it needs, and what it is compared with.

    One without a `baseline` is itself no door, but what doors are compared with.
    """

    call: Call
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    baseline: str | None = DIRECT


@dataclass(frozen=True)
class Operands:
    """Query, key and value in the layouts of the doors."""

    heads_first: Three  # [B, H, L, D]
    length_first: Three  # [B, L, H, D]
    packed: Three  # [B * L, H, D]
    ends: Tensor  # of the packed sequences
    features: Tensor  # [B, L, H * D]

    @classmethod
    def make(cls, gradients: bool) -> Operands:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            drawn = torch.randn((BATCH, LENGTH, HEADS, HEAD_DIM), generator=generator)
            return drawn.requires_grad_(gradients)

        q, k, v = draw(), draw(), draw()
        ends = torch.arange(0, (BATCH + 1) * LENGTH, LENGTH, dtype=torch.int32)
        return cls(
            (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
            (q, k, v),
            (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)),
            ends,
            q.detach().flatten(2).requires_grad_(gradients),
        )


def direct(operands: Operands) -> Timed:
    return Timed(lambda: attention(*operands.heads_first, causal=True), baseline=None)


def varlen(operands: Operands) -> Timed:
    def call() -> Tensor:
        return attention_varlen(*operands.packed, operands.ends, max_seqlen_q=LENGTH, causal=True)

    return Timed(call)


def flash_attn(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn import flash_attn_func

    return Timed(lambda: flash_attn_func(*operands.length_first, causal=True))


def flash_attn_varlen(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn import flash_attn_varlen_func

    ends = operands.ends

    def call() -> object:
        return flash_attn_varlen_func(*operands.packed, ends, ends, LENGTH, LENGTH, causal=True)

    return Timed(call, baseline="attention_varlen()")


def _torchs_function(operands: Operands) -> Call:
    # Looked up in each call, as code that uses it does.
    return lambda: F.scaled_dot_product_attention(*operands.heads_first, is_causal=True)


def sdpa_scope(operands: Operands) -> Timed:
    from fused_attention.integrations.torch_sdpa import sdpa

    return Timed(_torchs_function(operands), sdpa)


def sdpa_registered(operands: Operands) -> Timed:
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

    from fused_attention.integrations.torch_sdpa import NAME

    @contextmanager
    def activated() -> Iterator[None]:
        activate_flash_attention_impl(NAME)
        try:
            yield
        finally:
            restore_flash_attention_impl()

    return Timed(_torchs_function(operands), activated)


def transformers(operands: Operands) -> Timed:
    from fused_attention.integrations.transformers import (
        fused_attention_forward,
        fused_attention_mask,
    )

    layer = torch.nn.Module()
    mask = fused_attention_mask(BATCH, LENGTH, LENGTH)
    scaling = HEAD_DIM**-0.5

    def call() -> object:
        # As models call it.
        return fused_attention_forward(
            layer, *operands.heads_first, mask, dropout=0.0, scaling=scaling, position_ids=None
        )

    return Timed(call)


def _module(operands: Operands) -> Any:
    from fused_attention.nn import MultiHeadAttention

    torch.manual_seed(0)
    module = MultiHeadAttention(HEADS * HEAD_DIM, HEADS, batch_first=True).eval()
    return module.requires_grad_(operands.features.requires_grad)


def multi_head(operands: Operands) -> Timed:
    module, x = _module(operands), operands.features
    return Timed(lambda: module(x, x, x, need_weights=False), baseline="projections by hand")


def projections(operands: Operands) -> Timed:
    """What nn.MultiHeadAttention does besides, with attention() in the middle."""
    module, x = _module(operands), operands.features

    def call() -> Tensor:
        packed = F.linear(x, module.in_proj_weight, module.in_proj_bias)
        heads = packed.unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(-3)
        out = attention(*(one.transpose(1, 2) for one in heads))
        joined = out.transpose(1, 2).flatten(2)
        return F.linear(joined, module.out_proj.weight, module.out_proj.bias)

    return Timed(call, baseline=None)


DOORS: dict[str, Callable[[Operands], Timed]] = {
    DIRECT: direct,
    "attention_varlen()": varlen,
    "compat flash_attn_func()": flash_attn,
    "compat flash_attn_varlen_func()": flash_attn_varlen,
    "with sdpa()": sdpa_scope,
    "registered SDPA": sdpa_registered,
    "transformers": transformers,
    "projections by hand": projections,
    "nn.MultiHeadAttention": multi_head,
}


def measure(rounds: int, calls: int, gradients: bool = False) -> dict[str, Any]:
    """Time all doors and report them.

    Args:
        rounds: how often each door has its turn.
        calls: how often it is called in a turn.
        gradients: whether the inputs require gradients; only the forward pass is timed.
    """
    operands = Operands.make(gradients)
    doors: dict[str, Timed] = {}
    report: dict[str, Any] = {}
    for name, build in DOORS.items():
        try:
            doors[name] = build(operands)
        except ImportError as error:
            report[name] = {"status": "missing", "reason": str(error)}
    with torch.set_grad_enabled(gradients):
        samples = _samples(doors, rounds, calls)
    for name, timed in doors.items():
        report[name] = {"status": "ok", "median_us": statistics.median(samples[name])}
        if timed.baseline is not None:
            pairs = zip(samples[name], samples[timed.baseline], strict=True)
            overhead = statistics.median(own - base for own, base in pairs)
            report[name] |= {"over": timed.baseline, "overhead_us": overhead}
    return {
        "schema": SCHEMA,
        "machine": machine_info(),
        "problem": f"fp32 [{BATCH}, {HEADS}, {LENGTH}, {HEAD_DIM}], causal",
        "gradients": gradients,
        "rounds": rounds,
        "calls": calls,
        "doors": {name: report[name] for name in DOORS},
    }


def _samples(doors: dict[str, Timed], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds per call of each door, one number per round."""
    samples: dict[str, list[float]] = {name: [] for name in doors}
    names = list(doors)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            timed = doors[name]
            with ExitStack() as stack:
                stack.enter_context(timed.context())
                timed.call()  # brings back the caches that the neighbour has emptied
                begin = time.perf_counter_ns()
                for _ in range(calls):
                    timed.call()
                samples[name].append((time.perf_counter_ns() - begin) / 1e3 / calls)
    return samples


def too_slow(report: dict[str, Any], limit_us: float) -> list[str]:
    """The doors whose overhead exceeds the limit."""
    doors = report["doors"].items()
    return [name for name, door in doors if door.get("overhead_us", limit_us) > limit_us]


def as_table(report: dict[str, Any]) -> str:
    rows = [("door", "us per call", "overhead, us", "over")]
    for name, door in report["doors"].items():
        if door["status"] != "ok":
            rows.append((name, door["status"], "", door["reason"]))
            continue
        overhead = f"{door['overhead_us']:+.1f}" if "over" in door else ""
        rows.append((name, f"{door['median_us']:.1f}", overhead, door.get("over", "")))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a door costs more than the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_attention.benchmarks.overhead",
        description="Time the doors into the package on a tiny problem.",
    )
    parser.add_argument("--rounds", type=int, default=60, help="default %(default)s")
    parser.add_argument("--calls", type=int, default=50, help="per round, default %(default)s")
    parser.add_argument("--gradients", action="store_true", help="inputs require gradients")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_US, help="microseconds, default %(default)s"
    )
    parser.add_argument("--json", type=Path, help="where to store the report")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny problem has nothing to share
    try:
        report = measure(options.rounds, options.calls, options.gradients)
    finally:
        torch.set_num_threads(threads)
    print(as_table(report))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    slow = too_slow(report, options.limit)
    if slow:
        print(f"over {options.limit:g} us: {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
