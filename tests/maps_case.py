"""attention_maps on the problems of shapes.py: everything that can be asked, and its budget.

    maps = MapsInputs(case.make(0))
    maps.check(maps.run("cpu"))

The exact result is the formula in fp64 on the very inputs of the kernel, lse among them; the
baseline is the same in fp32, where the scale is applied first, as the kernels do: products of
16-bit operands would else be exact.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from attention_inputs import AttentionInputs, statistics_dtype
from budget import assert_within_budget
from torch import Tensor

from fused_attention import AttentionMaps, attention_maps
from fused_attention.maps.reference import maps_reference

TOP_K = 3
FLOATING = ("weights", "column_mass", "entropy", "top_weights")


class MapsInputs:
    """One problem: its attention, the exact lse of it, and which rows and heads are chosen."""

    def __init__(self, inputs: AttentionInputs, *, top_k: int = TOP_K) -> None:
        self.inputs = inputs
        case = inputs.case
        options = {k: v for k, v in inputs.options.items() if not k.startswith("dropout")}
        self.sinks = options.pop("sinks", None)
        self.options = options
        self.lse = inputs.exact[1].to(statistics_dtype(case.dtype))
        count = inputs.query.shape[0 if case.packed else 2]
        # Runs of rows, rows alone, rows twice; an odd choice of heads where there are several.
        self.rows = [*range(count // 3, count), *range(0, count, 7)]
        self.heads = [case.heads_q - 1, 0] if case.heads_q > 1 and len(case.name) % 2 else None
        self.asked: dict[str, Any] = {"rows": self.rows, "heads": self.heads, "top_k": top_k}
        self.asked |= {"column_mass": True, "entropy": True, "argmax": True}

    def run(self, backend: str | None, **changes: Any) -> AttentionMaps:
        """attention_maps; `changes` replaces what is asked for."""
        operands = (self.inputs.query, self.inputs.key, self.lse)
        return attention_maps(*operands, backend=backend, **self.options, **self.asked | changes)

    def formulas(self, dtype: torch.dtype, **changes: Any) -> AttentionMaps:
        """The formulas in this dtype."""
        device = self.inputs.query.device
        chosen = self.asked | changes
        for name in ("rows", "heads"):
            if chosen[name] is not None:
                chosen[name] = torch.tensor(chosen[name], dtype=torch.int32, device=device)
        query, options = self.inputs.query, self.options
        if dtype == torch.float32:
            scale = options.get("scale", query.shape[-1] ** -0.5)
            query, options = query.to(dtype) * scale, options | {"scale": 1.0}
        operands = (query, self.inputs.key, self.lse)
        return maps_reference(*operands, compute_dtype=dtype, **options, **chosen)

    @cached_property
    def exact(self) -> AttentionMaps:
        return self.formulas(torch.float64)

    @cached_property
    def baseline(self) -> AttentionMaps:
        return self.formulas(torch.float32)

    @cached_property
    def log_weights(self) -> Tensor:
        """ln P of every key in fp64, -inf where it is hidden."""
        count = self.inputs.query.shape[0 if self.inputs.case.packed else 2]
        weights = self.formulas(torch.float64, rows=list(range(count))).weights
        assert weights is not None
        return weights.log()

    def check(self, found: AttentionMaps) -> None:
        """All that was asked is there, in its dtype, within budget; the keys are right."""
        title = str(self.inputs.case)
        for name in FLOATING:
            actual = getattr(found, name)
            assert actual.dtype == self.lse.dtype, f"{title}: {name} is {actual.dtype}"
            assert actual.is_contiguous() and not actual.requires_grad
            self._check_budget(name, actual)
        assert found.argmax is not None and found.top_indices is not None
        self._check_keys(found.argmax.unsqueeze(-1), f"{title}: argmax")
        self._check_keys(found.top_indices, f"{title}: top_indices")

    def _check_budget(self, name: str, actual: Tensor) -> None:
        """The largest error is that of a few large weights: a baseline can be right by luck.

        More draws of the problem take that luck away; they are made where it seems to matter.
        """
        exact, baseline = getattr(self.exact, name), getattr(self.baseline, name)
        title = f"{self.inputs.case}: {name}"
        try:
            assert_within_budget(actual, exact, baseline, name=title)
        except AssertionError:
            device = self.inputs.query.device
            more = [MapsInputs(self.inputs.case.make(seed, device)) for seed in range(1, 5)]
            draws = [(getattr(m.exact, name), getattr(m.baseline, name)) for m in more]
            assert_within_budget(actual, exact, baseline, name=title, more_draws=draws)

    def _check_keys(self, actual: Tensor, name: str) -> None:
        """Different keys, in the order of their weights as far as these are apart."""
        assert actual.dtype == torch.int64 and self.exact.top_indices is not None
        expected = self.exact.top_indices[..., : actual.shape[-1]]
        assert torch.equal(actual == -1, expected == -1), f"{name}: other keys are missing"
        for other in range(1, actual.shape[-1]):
            twice = (actual[..., other:] == actual[..., :-other]) & (actual[..., other:] >= 0)
            assert not twice.any(), f"{name}: a key stands there twice"
        if self.log_weights.shape[-1] == 0:
            return
        found, right = (self.log_weights.gather(-1, x.clamp(min=0)) for x in (actual, expected))
        near = 1e-5 + 2e-6 * right.masked_fill(right.isinf(), 0.0).abs()
        if self.lse.dtype == torch.float64:
            near *= 1e-8
        wrong = ~((found - right).abs() <= near) & (expected >= 0)
        assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()} are other keys"
