"""The gate: no contender is timed on a case before its numbers match the fp64 reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_attention import Band
from fused_attention.reference import attention_reference

from .accuracy import error_ratio
from .cases import DTYPES, Case, Inputs
from .contenders import OURS, Contender
from .sample import Sample

# Rows of one fp64 score matrix are computed in chunks of about this size.
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Verdict:
    """The worst error over allowed error of output and gradients; at most 1 is right."""

    ratio: float
    worst: str  # which tensor has that ratio
    failure: str | None = None  # what a contender that raised had to say
    unable: bool = False  # a peer that says that it cannot do the case

    @property
    def right(self) -> bool:
        return self.failure is None and self.ratio <= 1.0


def judge(case: Case, inputs: Inputs, contenders: Iterable[Contender]) -> dict[str, Verdict]:
    """Compare every contender's output (and gradients) with the fp64 reference.

    Of a large problem on a GPU only a sample of the heads is compared; see sample.py.
    """
    dtype = DTYPES[case.dtype]
    sample = Sample.of(case)
    part = (sample.case, sample.inputs(inputs))
    reference = formula_results(*part, torch.float64)
    yardstick = formula_results(*part, torch.float32 if case.dtype == "fp64" else dtype)
    verdicts = {}
    for candidate in contenders:
        try:
            with candidate.around():
                results = sample.results(_results(candidate, case, inputs))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            unable = isinstance(error, NotImplementedError) and candidate.name != OURS
            verdicts[candidate.name] = Verdict(math.inf, "out", reason, unable)
            continue
        ratios = {
            name: error_ratio(results[name], yardstick[name], exact, gradient=name != "out")
            for name, exact in reference.items()
            if name in results
        }
        worst = max(ratios, key=lambda name: ratios[name])
        verdicts[candidate.name] = Verdict(ratios[worst], worst)
    return verdicts


def formula_results(case: Case, inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The plain formula computed in `dtype`: {"out"} and, with backward, {"dq", "dk", "dv"}.

    One key head and one chunk of query rows at a time, against the keys that these rows can see:
    the same numbers, and it fits into memory at any length.
    """
    query, key, value, grad_out = (t.detach().to(dtype) for t in inputs[:4])
    out = torch.zeros_like(query)
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in (query, key, value)]
    groups = case.heads_q // case.heads_kv
    for b, head in itertools.product(range(case.batch), range(case.heads_kv)):
        q_heads = slice(head * groups, (head + 1) * groups)
        for rows, keys, band in _chunks(case, groups):
            at_q = (slice(b, b + 1), q_heads, rows)
            at_kv = (slice(b, b + 1), slice(head, head + 1), keys)
            places = (at_q, at_kv, at_kv)
            leaves = [t[at] for t, at in zip((query, key, value), places, strict=True)]
            for leaf in leaves:
                leaf.requires_grad_(case.backward)
            part, _ = attention_reference(*leaves, band=band, compute_dtype=dtype)
            out[at_q] = part.detach()
            if case.backward:
                gradients = torch.autograd.grad(part, leaves, grad_out[at_q])
                for total, at, gradient in zip(sums, places, gradients, strict=True):
                    total[at] += gradient
    results = {"out": out}
    if case.backward:
        results |= {f"d{x}": total.to(dtype) for x, total in zip("qkv", sums, strict=True)}
    return results


def _chunks(case: Case, groups: int) -> Iterable[tuple[slice, slice, Band]]:
    """Row chunks with the keys that they can see, and the band in the chunk's own coordinates."""
    resolved = case.band.resolve(case.len_q, case.len_k)
    offset = resolved.offset
    assert offset is not None  # resolve() always sets it
    step = max(1, CHUNK_BYTES // (8 * groups * max(case.len_k, 1)))
    for begin in range(0, case.len_q, step):
        end = min(begin + step, case.len_q)
        first = min(max(0, begin + offset - resolved.left), case.len_k)
        last = max(first, min(case.len_k, end - 1 + offset + resolved.right + 1))
        shifted = Band(resolved.left, resolved.right, offset + begin - first)
        yield slice(begin, end), slice(first, last), shifted


def _results(candidate: Contender, case: Case, inputs: Inputs) -> dict[str, Tensor]:
    if not case.backward or not candidate.differentiable:
        return {"out": candidate.forward(case, inputs)()}
    values = candidate.training_step(case, inputs)
    return dict(zip(("out", "dq", "dk", "dv"), values, strict=True))
