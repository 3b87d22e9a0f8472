"""What attention_maps returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionMaps(NamedTuple):
    """Facts about the weights P = exp(scores - lse) of one attention; None: not asked for.

    fp32 (fp64 for fp64) and int64, contiguous, without gradients. H counts the chosen heads, in the
    order in which they were asked for. Of a packed batch B is left out, Lq and Lk are Tq and Tk,
    and keys are numbered by their rows in `key`.
    """

    weights: Tensor | None = None
    """[B, H, rows, Lk]: of the chosen queries; 0 where a key is hidden."""
    column_mass: Tensor | None = None
    """[B, H, Lk]: what a key receives, the sum of its weights over the queries."""
    column_mean: Tensor | None = None
    """[B, H, Lk]: the same divided by the number of queries whose band and length let them see the
    key; 0 where there is none."""
    entropy: Tensor | None = None
    """[B, H, Lq]: -sum P ln P of a query in nats, 0 if it sees no key."""
    argmax: Tensor | None = None
    """[B, H, Lq]: the key with the highest weight, -1 if the query sees none."""
    top_weights: Tensor | None = None
    """[B, H, Lq, k]: the k highest weights, descending; 0 behind the last visible key."""
    top_indices: Tensor | None = None
    """[B, H, Lq, k]: their keys, of equal ones the lower first; -1 behind the last visible key."""
