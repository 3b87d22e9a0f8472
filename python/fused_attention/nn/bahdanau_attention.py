"""Additive attention of a recurrent decoder (Bahdanau et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fused_attention.additive import additive_attention
from fused_attention.checks import wrong_value
from fused_attention.formulas import without_padding
from fused_attention.nn.annotations import Annotations, check_query, check_states


class BahdanauAttention(nn.Module):
    """score(s, h_j) = v . tanh(W s + U h_j), by a kernel that never holds the hidden layers.

    The paper (section 3.1 and appendix A.1.2) asks with the decoder's state before the step,
    s_{i-1}, and computes U h_j once per sentence: here `remember` does.

    Args:
        query_dim: features of the decoder's state.
        key_dim: features of the encoder's states.
        dim: of the alignment model's hidden layer; default query_dim.
        normed: the variant of Wu et al. 2016's GNMT, g v / |v| . tanh(W s + U h_j + b), with a
            learned number g and a learned vector b (Salimans and Kingma 2016).

    Raises:
        ValueError: a size is below 1.
    """

    g: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        dim: int | None = None,
        *,
        normed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dim = query_dim if dim is None else dim
        for argument, size in (("query_dim", query_dim), ("key_dim", key_dim), ("dim", dim)):
            if size < 1:
                wrong_value(argument, "must be at least 1", size)
        self.query_dim, self.key_dim, self.dim = query_dim, key_dim, dim
        self.query_proj = nn.Linear(query_dim, dim, bias=False, device=device, dtype=dtype)
        self.key_proj = nn.Linear(key_dim, dim, bias=False, device=device, dtype=dtype)
        self.v = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.g = self.bias = None
        if normed:
            self.g = nn.Parameter(torch.empty((), device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's initial values of linear layers; normed, a vector of length 1 / sqrt(dim)."""
        self.query_proj.reset_parameters()
        self.key_proj.reset_parameters()
        nn.init.uniform_(self.v, -(self.dim**-0.5), self.dim**-0.5)
        if self.g is not None and self.bias is not None:
            nn.init.constant_(self.g, self.dim**-0.5)
            nn.init.zeros_(self.bias)

    def remember(self, states: Tensor, lengths: Tensor | None = None) -> Annotations:
        """What `forward` needs of a source, for all its steps.

        Args:
            states: [batch, length, key_dim]; what lies beyond the lengths may be NaN.
            lengths: integer [batch], default all.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        check_states(states, lengths, self.key_dim)
        # 0 * NaN would be NaN in the gradient of key_proj's weight.
        clean = without_padding(states[:, None], lengths)[:, 0]
        return Annotations(states, self.key_proj(clean), lengths)

    def forward(self, query: Tensor, annotations: Annotations) -> Tensor:
        """The contexts [batch, steps, features of the states] of decoder states.

        Args:
            query: [batch, steps, query_dim].
            annotations: from `remember`.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        check_query(query, annotations, self.query_dim)
        context: Tensor = additive_attention(
            self.query_proj(query),
            annotations.keys,
            annotations.states,
            self.v,
            bias=self.bias,
            g=self.g,
            key_lengths=annotations.lengths,
        )
        return context

    def weights(self, query: Tensor, annotations: Annotations) -> Tensor:
        """The weights [batch, steps, length] of `forward`'s contexts; rows sum to 1."""
        weights: Tensor = self(query, annotations.with_unit_states())
        return weights

    def extra_repr(self) -> str:
        return f"{self.query_dim}, {self.key_dim}, {self.dim}, normed={self.g is not None}"
