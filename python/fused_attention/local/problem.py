"""LocalProblem: one call of local attention as plain numbers, and the checks of its arguments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.local.call import LocalCall
from fused_attention.masks import UNBOUNDED
from fused_attention.problem import dense_sizes, one_or_both

MODES = ("luong", "log_bias")
MIN_SIGMA = 2.0**-30  # the square of a distance over this is still finite in fp32
_SIGMA_RULE = "must be at least 2**-30 (inf is no Gaussian)"


class LocalProblem(NamedTuple):
    """Shapes, dtypes and features of one call; holds no tensor and prints itself."""

    dtype: torch.dtype
    device_type: str
    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_k: int
    head_dim: int
    value_dim: int
    width: float
    sigma: float | None = None  # None: a tensor
    mode: str = "luong"
    scale: float = 1.0
    has_key_lengths: bool = False
    needs_grad: bool = False

    @classmethod
    def from_tensors(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        *,
        width: float,
        sigma: float | Tensor | None,
        key_lengths: Tensor | None,
        mode: str,
        scale: float | None,
    ) -> LocalProblem:
        """Check everything but the numbers inside tensors; arguments as `local_attention`.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: an argument has a wrong device, shape, layout or value.
        """
        checks.check_operands(query, key, value, 4)
        sizes = batch, heads_q, _, len_q, _, head_dim, _ = dense_sizes(query, key, value)
        device, rows = query.device, (batch, heads_q, len_q)
        _check_rows("position", position, device, (rows, (batch, 1, len_q)), "[B, Hq or 1, Lq]")
        width = _check_width(width)
        if sigma is None:
            sigma = width / 2
            if sigma < MIN_SIGMA:
                rule = f"must be given with width {width:g}: its default is width / 2"
                checks.wrong_value("sigma", rule, "None")
        if isinstance(sigma, Tensor):
            _check_rows("sigma", sigma, device, ((), (heads_q,), rows), "[], [Hq] or [B, Hq, Lq]")
        else:
            sigma = checks.check_number("sigma", sigma)
            if not sigma >= MIN_SIGMA:
                checks.wrong_value("sigma", _SIGMA_RULE, sigma)
        if mode not in MODES:
            checks.wrong_value("mode", f"must be one of {', '.join(map(repr, MODES))}", repr(mode))
        scale, _, _ = checks.check_scalars(head_dim**-0.5 if scale is None else scale, 0.0, 0.0)
        if key_lengths is not None:
            checks.check_integers("key_lengths", key_lengths, device, batch)
        tensors = query, key, value, position, sigma
        return cls(
            query.dtype,
            device.type,
            *sizes,
            width,
            None if isinstance(sigma, Tensor) else sigma,
            mode,
            scale,
            key_lengths is not None,
            torch.is_grad_enabled()
            and any(isinstance(x, Tensor) and x.requires_grad for x in tensors),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**self._asdict(), "dtype": str(self.dtype).removeprefix("torch.")}

    def __str__(self) -> str:
        heads = one_or_both(self.heads_q, self.heads_kv)
        dims = one_or_both(self.head_dim, self.value_dim)
        parts = [
            f"{str(self.dtype).removeprefix('torch.')} on {self.device_type}",
            f"B={self.batch} H={heads} Lq={self.len_q} Lk={self.len_k} D={dims}",
            f"local {self.mode} width {self.width:g}",
            "sigma of a tensor" if self.sigma is None else f"sigma {self.sigma:g}",
            f"scale {self.scale:.6g}",
        ]
        flags = {"key_lengths": self.has_key_lengths, "gradient": self.needs_grad}
        return ", ".join(parts + [name for name, present in flags.items() if present])


def check_local_values(call: LocalCall) -> None:
    """Check the numbers inside the tensors of a call on the CPU; on accelerators they are trusted.

    Raises:
        ValueError: key_lengths, position or sigma is out of range.
    """
    if call.query.device.type != "cpu":
        return
    if call.key_lengths is not None:
        len_k = call.key.shape[2]
        rule = f"must be in [0, {len_k}] ({len_k} is key's length)"
        checks.check_range("key_lengths", call.key_lengths, 0, len_k, rule)
    rule = "must be finite and in [-2**30, 2**30]"
    _check_numbers("position", call.position, -UNBOUNDED, UNBOUNDED, rule)
    if call.sigma is not None:
        _check_numbers("sigma", call.sigma, MIN_SIGMA, math.inf, _SIGMA_RULE)


def _check_numbers(argument: str, tensor: Tensor, low: float, high: float, rule: str) -> None:
    if tensor.numel() == 0:
        return
    least, most = (float(end) for end in torch.aminmax(tensor.detach()))
    if not (least >= low and most <= high):
        wrong = tensor[~((tensor >= low) & (tensor <= high))]
        checks.wrong_value(argument, rule, float(wrong[0]))


def _check_width(width: Any) -> float:
    number = checks.check_number("width", width)
    if not (0.0 <= number <= UNBOUNDED or number == math.inf):
        checks.wrong_value("width", "must be in [0, 2**30] or inf (every key)", number)
    return number


def _check_rows(
    argument: str,
    tensor: Any,
    device: torch.device,
    shapes: tuple[tuple[int, ...], ...],
    names: str,
) -> None:
    """A real number for every query, or what broadcasts to that."""
    checks.check_tensor(argument, tensor)
    if tensor.dtype not in (*checks.FLOATING_DTYPES, *checks.INTEGER_DTYPES):
        checks.wrong_type(argument, "must be floating point or integer", tensor.dtype)
    if tensor.device != device:
        checks.wrong_value(argument, f"must be on query's device {device}", tensor.device)
    shape = checks.shape_of(tensor)
    if shape not in shapes:
        told = " or ".join(str(list(wanted)) for wanted in dict.fromkeys(shapes))
        checks.wrong_value(argument, f"must have shape {names}, here {told}", f"shape {shape}")
