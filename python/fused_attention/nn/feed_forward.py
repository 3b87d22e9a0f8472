"""The feed-forward part of a block: one hidden layer, applied to each token alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.nn.dropout import dropout


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """down(activation(up(x))) or, gated, down(activation(gate) * up) (Shazeer 2020).

    Gated with silu it is SwiGLU, with gelu GeGLU. `up` then holds the rows of the gate first and
    those of the other factor below, so that one product serves both.

    Args:
        dim: features of input and output.
        hidden_dim: features of the hidden layer (gated: of each factor).
        activation: relu, gelu (by the error function), gelu_tanh (its approximation) or silu.
        gated: whether a second product of x multiplies the hidden layer.
        bias: whether the products add biases.
        dropout: chance that a hidden feature is dropped in training.

    Raises:
        ValueError: the activation has another name.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            wrong_value("activation", f"must be one of {', '.join(ACTIVATIONS)}", activation)
        self.activation, self.gated, self.dropout = activation, gated, dropout
        rows = 2 * hidden_dim if gated else hidden_dim
        self.up = nn.Linear(dim, rows, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden_dim, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        activate = ACTIVATIONS[self.activation]
        hidden = self.up(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, -1)
            hidden = activate(gate) * hidden
        else:
            hidden = activate(hidden)
        out: Tensor = self.down(dropout(hidden, self.dropout, self.training))
        return out

    def extra_repr(self) -> str:
        return f"activation={self.activation}, gated={self.gated}, dropout={self.dropout}"
