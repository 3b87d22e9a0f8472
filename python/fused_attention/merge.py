"""Attention over a split set of keys is the merge of the attentions over its parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fused_attention import checks


def merge_attention(
    out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor
) -> tuple[Tensor, Tensor]:
    """Merge the attentions of the same queries over two disjoint sets of keys.

    Exact: the result, its lse and all gradients are those of attention over both sets at once,
    so split, ring and cascade attention need no backward of their own. Merging is associative.

    Args:
        out1: [B, H, L, Dv], packed [T, H, Dv].
        lse1: [B, H, L], packed [H, T], natural log; -inf where a query saw no key.
        out2: like out1.
        lse2: like lse1.

    Returns:
        out in out1's and out2's promoted dtype, and lse.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not belong together.
    """
    _check_merge(out1, lse1, out2, lse2)
    # The derivative of log(exp(a) + exp(b)) at -inf is NaN, so rows that only one side has (or
    # none) take that side, and the formulas see zeros instead.
    alive1, alive2 = lse1 != -torch.inf, lse2 != -torch.inf
    both = alive1 & alive2
    log1, log2 = torch.where(both, lse1, 0.0), torch.where(both, lse2, 0.0)
    lse = torch.where(both, log1 - F.logsigmoid(log1 - log2), torch.where(alive1, lse1, lse2))
    share1 = torch.where(both, torch.sigmoid(log1 - log2), alive1.to(lse1.dtype))
    share2 = torch.where(both, torch.sigmoid(log2 - log1), alive2.to(lse2.dtype))
    if out1.dim() == 3:
        share1, share2 = share1.t(), share2.t()
    out = out1 * share1.unsqueeze(-1) + out2 * share2.unsqueeze(-1)
    return out.to(torch.promote_types(out1.dtype, out2.dtype)), lse


def _check_merge(out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor) -> None:
    named = {"out1": out1, "lse1": lse1, "out2": out2, "lse2": lse2}
    for argument, tensor in named.items():
        checks.check_tensor(argument, tensor)
        if tensor.dtype not in checks.FLOATING_DTYPES:
            checks.wrong_type(argument, "must be floating point", tensor.dtype)
        if tensor.device != out1.device:
            checks.wrong_value(argument, f"must be on out1's device {out1.device}", tensor.device)
    shape = tuple(out1.shape)
    if len(shape) not in (3, 4):
        rule = "must be 4-D [B, H, L, D] or packed [T, H, D]"
        checks.wrong_value("out1", rule, f"shape {shape}")
    if tuple(out2.shape) != shape:
        checks.wrong_value("out2", f"must have out1's shape {shape}", tuple(out2.shape))
    rows = shape[:-1] if len(shape) == 4 else (shape[1], shape[0])
    for argument, tensor in (("lse1", lse1), ("lse2", lse2)):
        if tuple(tensor.shape) != rows:
            rule = f"must have shape {rows}, one number per row of out1"
            checks.wrong_value(argument, rule, tuple(tensor.shape))
