"""AdditiveProblem: one call as plain numbers, and every check of its arguments."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.masks import Band

NAMES = ("query_proj", "key_proj", "value")
LAYOUTS = {3: "[batch, length, dim]", 4: "[batch, heads, length, dim]"}


class AdditiveProblem(NamedTuple):
    """Shapes, dtypes and features of one call; holds no tensor and prints itself."""

    dtype: torch.dtype
    device_type: str
    batch: int
    heads: int
    len_q: int
    len_k: int
    dim: int  # of the projections
    value_dim: int
    band: Band = Band()  # as given: an offset of None is still Lk - Lq
    has_key_lengths: bool = False
    needs_grad: bool = False

    @classmethod
    def from_tensors(
        cls,
        query_proj: Tensor,
        key_proj: Tensor,
        value: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,
        g: float | Tensor | None = None,
        key_lengths: Tensor | None = None,
        band: Band,
    ) -> AdditiveProblem:
        """Check the arguments, those of `additive_attention`, and describe the call.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: an argument has a wrong device, shape, layout or value.
        """
        checks.check_tensor(NAMES[0], query_proj)
        rank = query_proj.dim()
        if rank not in LAYOUTS:
            rule = f"must be {' or '.join(LAYOUTS.values())}"
            checks.wrong_value(NAMES[0], rule, f"shape {checks.shape_of(query_proj)}")
        checks.check_operands(query_proj, key_proj, value, rank, NAMES, LAYOUTS)
        sizes = [(tensor.shape[0], *tensor.shape[1:-2]) for tensor in (query_proj, key_proj, value)]
        for name, size in zip(NAMES[1:], sizes[1:], strict=True):
            if size != sizes[0]:
                what = "batch and heads" if rank == 4 else "batch"
                checks.wrong_value(name, f"must have query_proj's {what} {sizes[0]}", size)
        (len_q, dim), (len_k, dim_k) = query_proj.shape[-2:], key_proj.shape[-2:]
        len_v, value_dim = value.shape[-2:]
        checks.check_dims(len_q, len_k, len_v, dim, dim_k, value_dim, NAMES)
        batch, heads = query_proj.shape[0], query_proj.shape[1] if rank == 4 else 1
        checks.check_heads(batch, heads, heads, heads, NAMES)
        device = query_proj.device
        _check_vector("v", v, device, [(dim,), (heads, dim)] if rank == 4 else [(dim,)])
        if bias is not None:
            _check_vector("bias", bias, device, [(dim,)])
        if isinstance(g, Tensor):
            _check_vector("g", g, device, [()])
        elif g is not None:
            checks.check_number("g", g)
        if key_lengths is not None:
            checks.check_integers("key_lengths", key_lengths, device, batch)
        variables = (query_proj, key_proj, value, v, bias, g)
        return cls(
            query_proj.dtype,
            device.type,
            batch,
            heads,
            len_q,
            len_k,
            dim,
            value_dim,
            band,
            key_lengths is not None,
            torch.is_grad_enabled()
            and any(isinstance(x, Tensor) and x.requires_grad for x in variables),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        fields = self._asdict()
        fields["dtype"] = str(self.dtype).removeprefix("torch.")
        fields["band"] = asdict(self.band)
        return fields

    def __str__(self) -> str:
        parts = [
            f"{str(self.dtype).removeprefix('torch.')} on {self.device_type}, additive",
            f"B={self.batch} H={self.heads} Lq={self.len_q} Lk={self.len_k} D={self.dim} "
            f"Dv={self.value_dim}",
            f"band {self.band}",
        ]
        flags = {"key_lengths": self.has_key_lengths, "gradient": self.needs_grad}
        return ", ".join(parts + [name for name, present in flags.items() if present])


def _check_vector(
    argument: str, tensor: Any, device: torch.device, shapes: list[tuple[int, ...]]
) -> None:
    """A small floating tensor of one of these shapes, any strides and any floating dtype."""
    checks.check_tensor(argument, tensor)
    if tensor.dtype not in checks.FLOATING_DTYPES:
        checks.wrong_type(argument, "must be floating point", tensor.dtype)
    if tensor.device != device:
        checks.wrong_value(argument, f"must be on query_proj's device {device}", tensor.device)
    if checks.shape_of(tensor) not in shapes:
        rule = f"must have shape {' or '.join(str(list(shape)) for shape in shapes)}"
        checks.wrong_value(argument, rule, f"shape {checks.shape_of(tensor)}")
