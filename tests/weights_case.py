"""Facts about weights that lie in memory as a whole, in the words of AttentionMaps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention import AttentionMaps

TOP_K = 4
ALL: dict[str, Any] = {
    "column_mass": True,
    "column_mean": True,
    "entropy": True,
    "argmax": True,
    "top_k": TOP_K,
}


def assert_facts_of(
    weights: Tensor, visible: Tensor, found: AttentionMaps, rows: list[int]
) -> None:
    """Everything was asked for, in fp64, and is right.

    Args:
        weights: [B, (H,) Lq, Lk] in fp64.
        visible: bool, which keys a query sees.
        found: the maps.
        rows: the queries whose weights were asked for.
    """
    count, mass = visible.sum(-2), weights.sum(-2)
    expected = {
        "weights": weights[..., rows, :],
        "column_mass": mass,
        "column_mean": mass / count.clamp(min=1),
        "entropy": torch.special.entr(weights).sum(-1),
    }
    for name, wanted in expected.items():
        actual = getattr(found, name)
        assert actual.shape == wanted.shape and actual.dtype == torch.float64, name
        assert not actual.requires_grad and actual.is_contiguous()
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11, msg=name)
    assert found.argmax is not None and found.top_indices is not None
    assert found.top_weights is not None
    assert found.top_indices.dtype == found.argmax.dtype == torch.int64
    assert found.top_indices.shape == found.top_weights.shape == (*weights.shape[:-1], TOP_K)
    _assert_keys(weights, visible, found.argmax.unsqueeze(-1), None)
    _assert_keys(weights, visible, found.top_indices, found.top_weights)


def _assert_keys(weights: Tensor, visible: Tensor, keys: Tensor, values: Tensor | None) -> None:
    """Visible keys, none of them twice, whose weights are the highest ones; then -1 and 0."""
    k = keys.shape[-1]
    seen = visible.sum(-1, keepdim=True)
    assert torch.equal(keys >= 0, torch.arange(k) < seen), "other keys are missing"
    for other in range(1, k):
        assert not ((keys[..., other:] == keys[..., :-other]) & (keys[..., other:] >= 0)).any()
    exists = keys >= 0
    assert (visible.gather(-1, keys.clamp(min=0)) | ~exists).all()
    own = weights.gather(-1, keys.clamp(min=0)).masked_fill(~exists, 0.0)
    highest = weights.sort(-1, descending=True).values[..., :k]
    short = k - highest.shape[-1]
    highest = torch.nn.functional.pad(highest, (0, short)).masked_fill(~exists, 0.0)
    torch.testing.assert_close(own, highest, rtol=1e-11, atol=1e-11)
    if values is not None:
        torch.testing.assert_close(values, highest, rtol=1e-11, atol=1e-11)
