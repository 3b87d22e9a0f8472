"""flash-attn's conventions written out plainly, in fp64: what tests/compat compares with.

Nothing of the package is used. A mask is a function of a query's and a key's number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(
    len_q: int, len_k: int, causal: bool = False, window: tuple[int, int] = (-1, -1), chunk: int = 0
) -> Tensor:
    """Bool [len_q, len_k]; bottom-right aligned, both ends of the window inclusive."""
    left, right = window
    if causal:
        right = 0
    rows = []
    for i in range(len_q):
        position = i + len_k - len_q
        first = position - left if left >= 0 else 0
        last = position + right if right >= 0 else len_k
        if chunk:
            first = max(first, position // chunk * chunk)
            last = min(last, position // chunk * chunk + chunk - 1)
        rows.append([first <= j <= last for j in range(len_k)])
    return torch.tensor(rows, dtype=torch.bool).reshape(len_q, len_k)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    chunk: int = 0,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    keep: Tensor | None = None,
    keep_probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One sequence: q [len_q, heads, dim], k and v [len_k, heads_k, dim].

    Args:
        slopes: ALiBi's, [heads].
        keep: bool [heads, len_q, len_k], what dropout leaves.

    Returns:
        out [len_q, heads, dim_v] and lse [heads, len_q].
    """
    len_q, heads, dim = q.shape
    len_k, heads_k, _ = k.shape
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(heads // heads_k, dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * (dim**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        distance = torch.tensor(
            [[abs(i + len_k - len_q - j) for j in range(len_k)] for i in range(len_q)]
        ).reshape(len_q, len_k)
        scores = scores - slopes.double()[:, None, None] * distance
    visible = visible_keys(len_q, len_k, causal, window, chunk)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    if keep is not None:
        weights = weights * keep / keep_probability
    return torch.einsum("hij,jhd->ihd", weights, v), lse


def plain_batch(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, **options: object
) -> tuple[Tensor, Tensor]:
    """[batch, seqlen, heads, dim] tensors; slopes [heads] or [batch, heads]."""
    results = []
    for b in range(len(q)):
        own = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
        results.append(plain_attention(q[b], k[b], v[b], slopes=own, **options))
    return torch.stack([out for out, _ in results]), torch.stack([lse for _, lse in results])


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [tokens, heads, dim] turned, token by token, by the rows of cos and sin [tokens, half]."""
    out = x.double().clone()
    half = cos.shape[1]
    for pair in range(half):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        c, s = cos[:, pair, None].double(), sin[:, pair, None].double()
        out[..., a] = x[..., a].double() * c - x[..., b].double() * s
        out[..., b] = x[..., a].double() * s + x[..., b].double() * c
    return out


def sequences(cu_seqlens: Tensor) -> list[slice]:
    ends = cu_seqlens.tolist()
    return [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]
