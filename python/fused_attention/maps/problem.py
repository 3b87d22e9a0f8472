"""MapsProblem: one call of attention_maps as plain numbers, and the checks of what it adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.problem import Problem


class MapsProblem(NamedTuple):
    """The attention and what is asked about its weights; holds no tensor and prints itself."""

    attention: Problem
    heads: int  # how many are chosen
    rows: int = 0  # queries whose weights are wanted
    column_mass: bool = False
    entropy: bool = False
    argmax: bool = False
    top_k: int = 0

    @property
    def device_type(self) -> str:
        return self.attention.device_type

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**self._asdict(), "attention": self.attention.as_dict()}

    def __str__(self) -> str:
        asked = [f"weights of {self.rows} rows"] if self.rows else []
        asked += [name for name in ("column_mass", "entropy", "argmax") if getattr(self, name)]
        asked += [f"top {self.top_k}"] if self.top_k else []
        return f"{', '.join(asked)} of {self.heads} heads: {self.attention}"


def detached(*tensors: Any) -> tuple[Any, ...]:
    """Anything that is no tensor is told by the checks."""
    return tuple(x.detach() if isinstance(x, Tensor) else x for x in tensors)


def check_asked(rows: Tensor | None, *facts: int) -> None:
    """Something is wanted: the weights of rows, or a fact."""
    if rows is None and not any(facts):
        rule = "must be given where column_mass, column_mean, entropy, argmax and top_k are not"
        checks.wrong_value("rows", rule, None)


def check_lse(lse: Any, query: Tensor, packed: bool) -> None:
    """What attention returned: [B, Hq, Lq], packed [Hq, Tq]; [B, Lq] of queries [B, Lq, D]."""
    checks.check_tensor("lse", lse)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    shape = (query.shape[1], query.shape[0]) if packed else tuple(query.shape[:-1])
    if lse.dtype != dtype:
        checks.wrong_type("lse", f"must be {dtype} for queries in {query.dtype}", lse.dtype)
    if lse.device != query.device:
        checks.wrong_value("lse", f"must be on query's device {query.device}", lse.device)
    if checks.shape_of(lse) != shape:
        dense = "[batch, heads, length]" if query.dim() == 4 else "[batch, length]"
        layout = "[heads, total]" if packed else dense
        rule = f"must have the shape {layout} = {list(shape)}"
        checks.wrong_value("lse", rule, f"shape {checks.shape_of(lse)}")


def chosen_indices(
    argument: str, chosen: Sequence[int] | Tensor | None, count: int, device: torch.device
) -> Tensor | None:
    """Chosen heads or rows as a contiguous int32 tensor; the numbers in a tensor are not read."""
    if chosen is None:
        return None
    rule = "must be a sequence of ints or a 1-D integer tensor"
    if isinstance(chosen, Tensor):
        checks.check_integers(argument, chosen, device, chosen.shape[0] if chosen.dim() else None)
        return chosen.long().clamp(-1, count).to(torch.int32).contiguous()
    if isinstance(chosen, (str, bytes)) or not isinstance(chosen, Sequence):
        checks.wrong_type(argument, rule, type(chosen).__name__)
    for index in chosen:
        if isinstance(index, bool) or not isinstance(index, int):
            checks.wrong_type(argument, rule, f"{type(index).__name__} {index!r}")
        if not 0 <= index < count:
            checks.wrong_value(argument, f"must be in [0, {count})", index)
    return torch.tensor(list(chosen), dtype=torch.int32, device=device)


def check_indices(argument: str, chosen: Tensor | None, count: int) -> None:
    """Check the numbers in chosen heads or rows on the CPU; elsewhere they are trusted."""
    if chosen is None or chosen.device.type != "cpu" or chosen.numel() == 0:
        return
    low, high = torch.aminmax(chosen)
    if low < 0 or high >= count:
        got = "a negative number" if low < 0 else f"{int(high)} or more"
        checks.wrong_value(argument, f"must be in [0, {count})", got)
