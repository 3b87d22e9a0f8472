"""The gated recurrent unit as it was published, behind the interface of torch.nn.GRU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fused_attention.checks import wrong_value


class ChoGRU(nn.Module):
    """The GRU of Cho et al. 2014 in the letters of Bahdanau et al. 2015, appendix A.1.1.

        r = sigmoid(W_r x + U_r h)      z = sigmoid(W_z x + U_z h)
        h~ = tanh(W x + U (r * h))      h' = (1 - z) * h + z * h~

    torch.nn.GRU resets the product, r * (U h), instead of the state, which neither can express by
    the other's weights, and swaps z and 1 - z. This one runs step by step in Python.

    Args:
        input_size: features of the input.
        hidden_size: features of the state, in each direction.
        num_layers: layers, each over the states of the one before.
        dropout: of what a layer gets from the one before, in training.
        bidirectional: whether each layer also runs from the end.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_l0: of the first layer, rows of r, z and h~ one after the
            other; `_l1` of the second, `_l0_reverse` of the backward direction.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for argument, size in sizes.items():
            if size < 1:
                wrong_value(argument, "must be at least 1", size)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout, self.bidirectional = dropout, bidirectional
        self.suffixes = [
            [f"l{layer}", f"l{layer}_reverse"][: 1 + bidirectional] for layer in range(num_layers)
        ]
        rows = 3 * hidden_size
        for layer, suffixes in enumerate(self.suffixes):
            inputs = len(suffixes) * hidden_size if layer else input_size
            for suffix in suffixes:
                shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, hidden_size)}
                for name, shape in {**shapes, "bias": (rows,)}.items():
                    weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_{suffix}", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(hidden_size), as torch.nn.GRU."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, x: Tensor | PackedSequence, hidden: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """The last layer's states at each step, and each layer's last ones.

        Args:
            x: [batch, steps, input_size] or packed.
            hidden: the states before, [num_layers * directions, batch, hidden_size]; default 0.

        Returns:
            Like x with directions * hidden_size features, and like hidden.
        """
        lengths = None
        steps: Tensor
        if isinstance(x, PackedSequence):
            steps, lengths = pad_packed_sequence(x, True)
        else:
            steps = x
        lasts = list[Tensor]()
        for layer, suffixes in enumerate(self.suffixes):
            if layer:
                steps = F.dropout(steps, self.dropout, self.training)
            sides = list[Tensor]()
            for suffix in suffixes:
                shape = (len(steps), self.hidden_size)
                first = steps.new_zeros(shape) if hidden is None else hidden[len(lasts)]
                side, last = self._run(steps, first, suffix, lengths)
                sides.append(side)
                lasts.append(last)
            steps = torch.cat(sides, -1)
        if lengths is None:
            return steps, torch.stack(lasts)
        return pack_padded_sequence(steps, lengths, True, False), torch.stack(lasts)

    def _run(
        self, x: Tensor, h: Tensor, suffix: str, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One layer in one direction over [batch, steps, features], and its last state."""
        names = (f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias"))
        weight, recurrent, bias = map(self.get_parameter, names)
        rows = [2 * self.hidden_size, self.hidden_size]
        gates_of, state_of = recurrent.split(rows)
        # What the steps' inputs add to the gates is one product for all of them.
        inputs = F.linear(x, weight, bias)
        exists = None
        if lengths is not None:
            places = torch.arange(x.shape[1], device=x.device)
            exists = (places < lengths.to(x.device)[:, None])[..., None]
        order = range(x.shape[1])
        states: list[Tensor] = [h] * x.shape[1]
        for t in reversed(order) if suffix.endswith("reverse") else order:
            gates, candidate = inputs[:, t].split(rows, -1)
            r, z = torch.sigmoid(gates + F.linear(h, gates_of)).chunk(2, -1)
            new = torch.tanh(candidate + F.linear(r * h, state_of))
            after = torch.lerp(h, new, z)
            # A row's state waits before its last step is over, and before its backward first.
            h = after if exists is None else torch.where(exists[:, t], after, h)
            states[t] = h
        return torch.stack(states, 1), h

    def extra_repr(self) -> str:
        both = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{both}"
