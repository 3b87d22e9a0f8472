"""Attention of a recurrent decoder, global and local (Luong et al. 2015)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fused_attention.additive import additive_attention
from fused_attention.checks import wrong_value
from fused_attention.formulas import without_padding
from fused_attention.functional import attention
from fused_attention.local import local_attention
from fused_attention.masks import Band
from fused_attention.nn.annotations import Annotations, check_query, check_states

SCORES = ("dot", "general", "concat", "location")
WINDOWS = ("global", "local-m", "local-p")
FULL = Band.full()


class LuongAttention(nn.Module):
    """The attentional vector h~ = tanh(W_c [c; h]) of the decoder's current state h.

    The context c is the mean of the encoder's states h_s, weighted by the softmax of

        dot       h . h_s
        general   h . W_a h_s
        concat    v_a . tanh(W_1 h + W_2 h_s), W_a [h; h_s] in the paper
        location  W_a h, one number for each place of a source

    over all of the source ("global") or over a window of `width` tokens to each side of a place p.
    Step t of "local-m" has p = t (section 3.2), whose window is empty, and c zero, where t is more
    than `width` beyond the source. "local-p" predicts p = S sigmoid(v_p . tanh(W_p h)), S the
    length of the source, looks from floor(p) - width to floor(p) + width, and multiplies the
    weights by a Gaussian around p, after which they are not normalised again (equation 10).

    Args:
        query_dim: features of the decoder's state h.
        key_dim: features of the encoder's states.
        score: dot, general, concat or location.
        window: global, local-m or local-p.
        width: D, in tokens.
        sigma: standard deviation of the Gaussian of local-p in tokens; default D / 2, inf is none.
        last_place: whether p is at most S - 1, the last token, as in the authors' program, instead
            of S.
        dim: of the hidden layer of concat; default query_dim.
        max_length: places that location knows; it gives further tokens no weight.

    Raises:
        ValueError: an argument is out of its range, or the score does not go with the window.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        score: str = "general",
        *,
        window: str = "global",
        width: float = 10.0,
        sigma: float | None = None,
        last_place: bool = False,
        dim: int | None = None,
        max_length: int = 100,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim = query_dim if dim is None else dim
        sigma = width / 2 if sigma is None else sigma
        _check_settings(score, window, query_dim, key_dim)
        for argument, size in (("dim", dim), ("max_length", max_length)):
            if size < 1:
                wrong_value(argument, "must be at least 1", size)
        if not 0 <= width < math.inf:
            wrong_value("width", "must be finite and at least 0", width)
        if window == "local-p" and not sigma > 0:
            wrong_value("sigma", "must be above 0", sigma)
        self.query_dim, self.key_dim, self.score, self.window = query_dim, key_dim, score, window
        self.width, self.sigma, self.last_place = float(width), float(sigma), last_place

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        outputs = {"general": key_dim, "concat": dim, "location": max_length}
        self.query_proj = None if score == "dot" else linear(query_dim, outputs[score])
        self.key_proj = linear(key_dim, dim) if score == "concat" else None
        self.v = linear(dim, 1) if score == "concat" else None
        self.place_proj = linear(query_dim, query_dim) if window == "local-p" else None
        self.place_v = linear(query_dim, 1) if window == "local-p" else None
        self.out_proj = linear(key_dim + query_dim, query_dim)

    def remember(self, states: Tensor, lengths: Tensor | None = None) -> Annotations:
        """What `forward` needs of a source, for all its steps.

        Args:
            states: [batch, length, key_dim] in the order of the source, however it was read; what
                lies beyond the lengths may be NaN.
            lengths: integer [batch], default all.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        check_states(states, lengths, self.key_dim)
        # 0 * NaN would be NaN in plain products and in the gradient of key_proj's weight.
        clean = without_padding(states[:, None], lengths)[:, 0]
        if self.score == "location":
            return Annotations(clean, clean, lengths)
        keys = states if self.key_proj is None else self.key_proj(clean)
        return Annotations(states, keys, lengths)

    def forward(self, query: Tensor, annotations: Annotations, first_step: int = 0) -> Tensor:
        """The attentional vectors [batch, steps, query_dim] of decoder states, all steps at once.

        Args:
            query: [batch, steps, query_dim].
            annotations: from `remember`.
            first_step: the number t of the first of these steps, which local-m looks at.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        context = self.context(query, annotations, first_step)
        vectors: Tensor = torch.tanh(self.out_proj(torch.cat((context, query), -1)))
        return vectors

    def context(self, query: Tensor, annotations: Annotations, first_step: int = 0) -> Tensor:
        """The weighted means [batch, steps, features of the states] alone, as `forward`."""
        check_query(query, annotations, self.query_dim)
        asked = query if self.query_proj is None else self.query_proj(query)
        states, keys, lengths = annotations
        if self.score == "location":
            return _located(asked, annotations)
        band = FULL
        if self.window == "local-m":
            band = Band.window(int(self.width), int(self.width), first_step)
        if self.v is not None:
            v = self.v.weight[0]
            additive: Tensor = additive_attention(
                asked, keys, states, v, key_lengths=lengths, band=band
            )
            return additive
        heads = (asked[:, None], keys[:, None], states[:, None])
        if self.window == "local-p":
            out = local_attention(
                *heads,
                self.places(query, annotations)[:, None],
                width=self.width,
                sigma=self.sigma,
                key_lengths=lengths,
                scale=1.0,
            )
        else:
            out = attention(*heads, scale=1.0, kv_lengths=lengths, band=band)
        return out[:, 0]

    def weights(self, query: Tensor, annotations: Annotations, first_step: int = 0) -> Tensor:
        """The weights [batch, steps, length] of the contexts; local-p's sum to less than 1."""
        return self.context(query, annotations.with_unit_states(), first_step)

    def places(self, query: Tensor, annotations: Annotations, first_step: int = 0) -> Tensor:
        """The places p [batch, steps] around which the windows lie, 0 is the first token.

        Raises:
            RuntimeError: the attention is global.
        """
        if self.window == "local-m":
            steps = torch.arange(first_step, first_step + query.shape[1], device=query.device)
            return steps.to(torch.float32).expand(query.shape[:2])
        if self.place_proj is None or self.place_v is None:
            raise RuntimeError(f"window: must be local to have places, got {self.window}")
        logits = self.place_v(torch.tanh(self.place_proj(query)))[..., 0]
        # bf16 would tell no places apart beyond the 256th.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        farthest = annotations.true_lengths()
        if self.last_place:
            farthest = (farthest - 1).clamp(min=0)
        return torch.sigmoid(logits) * farthest[:, None]

    def extra_repr(self) -> str:
        local = "" if self.window == "global" else f", {self.window}, width={self.width:g}"
        return f"{self.query_dim}, {self.key_dim}, {self.score}{local}"


def _located(scores: Tensor, annotations: Annotations) -> Tensor:
    """Contexts by the softmax of one score for each place, [batch, steps, max_length]."""
    known = min(scores.shape[2], annotations.states.shape[1])
    places = torch.arange(known, device=scores.device)
    hidden = places >= annotations.true_lengths()[:, None, None]
    weights = scores[..., :known].masked_fill(hidden, -torch.inf).softmax(-1)
    # A row without a token is NaN here.
    weights = weights.masked_fill(hidden, 0.0)
    return weights @ annotations.states[:, :known].to(weights.dtype)


def _check_settings(score: str, window: str, query_dim: int, key_dim: int) -> None:
    if score not in SCORES:
        wrong_value("score", f"must be one of {', '.join(SCORES)}", repr(score))
    if window not in WINDOWS:
        wrong_value("window", f"must be one of {', '.join(WINDOWS)}", repr(window))
    if window != "global" and score == "location":
        wrong_value("score", f"must compare states for the window {window}", score)
    if window == "local-p" and score == "concat":
        wrong_value("score", "must be dot or general for the window local-p", score)
    for argument, size in (("query_dim", query_dim), ("key_dim", key_dim)):
        if size < 1:
            wrong_value(argument, "must be at least 1", size)
    if score == "dot" and query_dim != key_dim:
        wrong_value("key_dim", f"must be query_dim {query_dim} for the score dot", key_dim)
