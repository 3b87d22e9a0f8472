"""Calls of scaled_dot_product_attention in all its forms, and torch's own answers to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

BUILTIN = F.scaled_dot_product_attention
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
PLAIN: Shapes = ((2, 4, 13, 16), (2, 4, 13, 16), (2, 4, 13, 16))
CROSS: Shapes = ((2, 4, 9, 16), (2, 4, 13, 16), (2, 4, 13, 16))
LONG: Shapes = ((2, 4, 13, 16), (2, 4, 9, 16), (2, 4, 9, 16))


@dataclass(frozen=True)
class SdpaCall:
    """The arguments of one call.

    Attributes:
        mask: makes attn_mask; fp64 masks are cast to the call's dtype.
        learned: the mask needs a gradient.
        band: how the log names the band that the mask is recognised as; None: a bias, or no mask.
    """

    name: str
    shapes: Shapes = PLAIN
    mask: Callable[[], Tensor] | None = None
    learned: bool = False
    band: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def make(self, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
        """The differentiable tensors (a learned mask last) and the keywords."""
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        tensors = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in self.shapes
        ]
        options = dict(self.options)
        if self.mask is not None:
            mask = self.mask()
            options["attn_mask"] = mask.to(dtype) if mask.dtype == torch.float64 else mask
            tensors += [options["attn_mask"]] if self.learned else []
        return [x.requires_grad_() for x in tensors], options

    def results(
        self, function: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, Any]
    ) -> list[Tensor]:
        """out and the gradients of the tensors."""
        out = function(*tensors[:3], **options)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        loss = (out * weights.to(out.dtype)).sum()
        return [out, *torch.autograd.grad(loss, tensors)]

    def torchs(self, dtype: torch.dtype, compute: torch.dtype) -> list[Tensor]:
        """What torch gives for the numbers of `dtype`, computed in `compute`."""
        tensors, options = self.make(dtype)
        tensors = [x.detach().to(compute).requires_grad_() for x in tensors]
        mask = options.get("attn_mask")
        if self.learned:
            options["attn_mask"] = tensors[3]
        elif mask is not None and mask.is_floating_point():
            options["attn_mask"] = mask.to(compute)
        return self.results(BUILTIN, tensors, options)

    def assert_right(self, found: list[Tensor], dtype: torch.dtype) -> None:
        """Out and gradients are within their error budgets, in torch's shapes and dtypes."""
        exact = self.torchs(dtype, torch.float64)
        baseline = self.torchs(dtype, torch.float32 if dtype == torch.float64 else dtype)
        names = ("out", "gradient of query", "of key", "of value", "of the mask")
        for n, triple in enumerate(zip(found, exact, baseline, strict=True)):
            assert triple[0].dtype == dtype, f"{self}: {names[n]}: {triple[0].dtype}"
            factor = 2.0 if n == 0 else GRADIENT_FACTOR
            assert_within_budget(*triple, factor=factor, name=f"{self}: {names[n]}")


def triangle(shapes: Shapes, diagonal: int = 0) -> Tensor:
    return torch.ones(shapes[0][-2], shapes[1][-2], dtype=torch.bool).tril(diagonal)


def added(mask: Tensor, hides: float = -torch.inf) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, hides)


def padding(*lengths: int, keys: int = 13) -> Tensor:
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None]


def random_bool() -> Tensor:
    mask = torch.rand(2, 4, 13, 13) < 0.6
    mask[:, :, 3] = False
    return mask


CALLS = [
    SdpaCall("plain"),
    SdpaCall("2-D", ((5, 16), (7, 16), (7, 16))),
    SdpaCall("3-D", ((3, 5, 16), (3, 7, 16), (3, 7, 16))),
    SdpaCall("5-D", ((2, 3, 2, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8))),
    SdpaCall("other value size", (PLAIN[0], PLAIN[1], (2, 4, 13, 6))),
    SdpaCall("odd sizes", ((2, 3, 7, 5), (2, 3, 11, 5), (2, 3, 11, 3)), options={"scale": 0.3}),
    SdpaCall("negative scale", options={"scale": -0.4}),
    SdpaCall("batch broadcasts", ((2, 4, 5, 16), (1, 4, 7, 16), (2, 1, 7, 16))),
    SdpaCall("query broadcasts", ((1, 4, 5, 16), (3, 4, 7, 16), (3, 4, 7, 16))),
    SdpaCall("one shared head", ((2, 4, 5, 16), (2, 1, 7, 16), (2, 1, 7, 16))),
    SdpaCall("ranks broadcast", ((3, 5, 16), (2, 1, 7, 16), (7, 16))),
    SdpaCall("causal", options={"is_causal": True}),
    SdpaCall("causal from the top left", CROSS, options={"is_causal": True}),
    SdpaCall("causal with rows to spare", LONG, options={"is_causal": True}),
    SdpaCall("3-D causal", ((3, 5, 16), (3, 7, 16), (3, 7, 16)), options={"is_causal": True}),
    SdpaCall(
        "grouped heads",
        ((2, 4, 5, 16), (2, 2, 7, 16), (2, 2, 7, 16)),
        options={"enable_gqa": True, "is_causal": True},
    ),
    SdpaCall(
        "3-D grouped heads",
        ((4, 5, 16), (2, 7, 16), (2, 7, 16)),
        options={"enable_gqa": True},
    ),
    SdpaCall(
        "grouped heads, batch broadcasts",
        ((2, 4, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16)),
        options={"enable_gqa": True},
    ),
    SdpaCall("causal mask", mask=lambda: triangle(PLAIN), band="causal(offset=0)"),
    SdpaCall("causal to add", mask=lambda: added(triangle(PLAIN)), band="causal(offset=0)"),
    SdpaCall(
        "lowest number",
        mask=lambda: added(triangle(PLAIN), torch.finfo(torch.float32).min).float(),
        band="causal(offset=0)",
    ),
    SdpaCall("bottom right mask", CROSS, mask=lambda: triangle(CROSS, 4), band="causal(offset=4)"),
    SdpaCall("rows without a key", LONG, mask=lambda: triangle(LONG, -4), band="causal(offset=-4)"),
    SdpaCall(
        "window mask",
        mask=lambda: triangle(PLAIN, 1).triu(-2)[None, None],
        band="window(3, 0, offset=1)",
    ),
    SdpaCall("padding mask", mask=lambda: padding(5, 13), band="full"),
    SdpaCall("row of padding alone", mask=lambda: padding(0, 4), band="full"),
    SdpaCall(
        "causal and padding mask",
        mask=lambda: triangle(PLAIN) & padding(7, 3),
        band="causal(offset=0)",
    ),
    SdpaCall("expanded mask", mask=lambda: padding(5, 9).expand(2, 4, 13, 13), band="full"),
    SdpaCall(
        "rows of the lowest number alone",
        mask=lambda: added(triangle(PLAIN, -3), torch.finfo(torch.float32).min).float(),
    ),
    SdpaCall("left padding mask", mask=lambda: ~padding(5, 1)),
    SdpaCall("bool mask", mask=random_bool),
    SdpaCall("bias", mask=lambda: torch.randn(13, 13, dtype=torch.float64)),
    SdpaCall("bias per head", mask=lambda: torch.randn(4, 13, 13, dtype=torch.float64)),
    SdpaCall("bias per key", mask=lambda: torch.randn(2, 1, 1, 13, dtype=torch.float64)),
    SdpaCall("fp32 bias", mask=lambda: torch.randn(2, 4, 13, 13)),
    SdpaCall(
        "learned bias", mask=lambda: torch.randn(1, 4, 13, 13, dtype=torch.float64), learned=True
    ),
    SdpaCall(
        "learned bias that hides",
        mask=lambda: torch.randn(13, 13).double().masked_fill(~triangle(PLAIN, -1), -torch.inf),
        learned=True,
    ),
    SdpaCall(
        "3-D bias", ((4, 9, 16), (4, 13, 16), (4, 13, 16)), mask=lambda: torch.randn(4, 1, 13)
    ),
    SdpaCall(
        "5-D mask",
        ((2, 3, 2, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8)),
        mask=lambda: torch.rand(2, 1, 1, 5, 7) < 0.7,
    ),
]
EMPTY: dict[str, Shapes] = {
    "no query": ((2, 4, 0, 8), (2, 4, 3, 8), (2, 4, 3, 8)),
    "no key": ((2, 4, 3, 8), (2, 4, 0, 8), (2, 4, 0, 8)),
    "no batch": ((0, 4, 3, 8), (0, 4, 3, 8), (0, 4, 3, 8)),
    "no head dimension": ((2, 4, 3, 0), (2, 4, 3, 0), (2, 4, 3, 8)),
}
