"""The block is torch's own transformer layers where those can do the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_attention import Band
from fused_attention.nn import Block, BlockConfig, Sequences, make_norm

DIM, HEADS, HIDDEN = 16, 4, 40


def block(**options: Any) -> Block:
    torch.manual_seed(0)
    config = BlockConfig(DIM, HEADS, HIDDEN, **options)
    made = Block(config, dtype=torch.float64)
    for parameter in made.parameters():  # norms and biases begin as ones and zeros
        nn.init.normal_(parameter, 0.3, 0.3)
    return made


def tokens(length: int = 7) -> Tensor:
    return torch.randn(2, length, DIM, dtype=torch.float64)


# Ours and torch's names of the same parameters.
NAMES = {
    "attention.in_proj.": "self_attn.in_proj_",
    "attention.out_proj.": "self_attn.out_proj.",
    "cross_attention.in_proj.": "multihead_attn.in_proj_",
    "cross_attention.out_proj.": "multihead_attn.out_proj.",
    "feed_forward.up.": "linear1.",
    "feed_forward.down.": "linear2.",
}


def torchs_own(ours: Block, decoder: bool, **options: Any) -> nn.Module:
    layer = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    theirs = layer(
        DIM, HEADS, HIDDEN, dropout=0.0, batch_first=True, dtype=torch.float64, **options
    )
    norms = ["attention_norm.", "cross_attention_norm.", "feed_forward_norm."]
    norms = norms if decoder else norms[::2]
    names = NAMES | {norm: f"norm{n}." for n, norm in enumerate(norms, 1)}
    state = {}
    for name, parameter in ours.state_dict().items():
        prefix = max((p for p in names if name.startswith(p)), key=len)
        state[names[prefix] + name.removeprefix(prefix)] = parameter
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_is_torchs_encoder_layer(norm_first: bool, activation: str) -> None:
    ours = block(norm_first=norm_first, activation=activation, band=Band.full())
    theirs = torchs_own(ours, False, norm_first=norm_first, activation=activation)
    x, lengths = tokens(), torch.tensor([7, 3])
    padding = torch.arange(7) >= lengths[:, None]
    exact = theirs(x, src_key_padding_mask=padding)
    assert_same(ours(x, Sequences(lengths))[~padding], exact[~padding])


@pytest.mark.parametrize("norm_first", [True, False])
def test_is_torchs_decoder_layer(norm_first: bool) -> None:
    ours = block(norm_first=norm_first, activation="relu", cross_attention=True)
    theirs = torchs_own(ours, True, norm_first=norm_first)
    x, memory, lengths = tokens(), tokens(5), torch.tensor([2, 5])
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    padding = torch.arange(5) >= lengths[:, None]
    exact = theirs(x, memory, causal, memory_key_padding_mask=padding)
    sequences = Sequences(lengths)
    assert_same(ours(x, memory=memory, memory_sequences=sequences), exact)
    assert_same(ours(x, memory=ours.remember(memory, sequences)), exact)


def test_rms_norm_gated_no_bias() -> None:
    ours = block(
        norm="rms_norm",
        norm_eps=1e-3,
        activation="silu",
        gated=True,
        bias=False,
        out_bias=False,
        feed_forward_bias=False,
        kv_heads=2,
    )
    x = tokens()

    def rms(x: Tensor, norm: nn.Module) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * norm.weight

    y = x + ours.attention(rms(x, ours.attention_norm))
    exact = y + ours.feed_forward(rms(y, ours.feed_forward_norm))
    assert_same(ours(x), exact)
    assert not [name for name, _ in ours.named_parameters() if "bias" in name]
    assert ours.feed_forward.up.weight.shape == (2 * HIDDEN, DIM)


def test_no_norm_at_the_attention() -> None:
    ours, x = block(attention_norm=False, norm_bias=False), tokens()
    y = x + ours.attention(x)
    assert_same(ours(x), y + ours.feed_forward(ours.feed_forward_norm(y)))
    assert not [name for name in ours.state_dict() if name.startswith("attention_norm")]
    assert ours.feed_forward_norm.bias is None


def test_recomputing_changes_no_gradient() -> None:
    ours, x = block(dropout=0.1, attention_dropout=0.1, hidden_dropout=0.1), tokens()
    gradients = []
    for run in (ours, partial(checkpoint, ours, use_reentrant=False)):
        torch.manual_seed(3)
        ours.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_only_in_training() -> None:
    ours, x = block(dropout=0.5), tokens()
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))


def test_compiles_without_a_break() -> None:
    ours, x = block().float(), tokens().float()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x))


MISTAKES: dict[str, dict[str, Any]] = {
    "dim: must be at least 1, got 0": {"dim": 0},
    "heads: must be at least 1, got -1": {"heads": -1},
    r"dropout: must be in \[0, 1\), got 1.5": {"dropout": 1.5},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_of_a_config(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockConfig(**{"dim": DIM, "heads": HEADS, "hidden_dim": HIDDEN} | MISTAKES[message])


def test_memory_and_cross_attention_belong_together() -> None:
    with pytest.raises(ValueError, match="memory: must be given to a block with .*, got one"):
        block()(tokens(), memory=tokens())
    with pytest.raises(ValueError, match="memory: must be given to a block with .*, got none"):
        block(cross_attention=True)(tokens())
    with pytest.raises(ValueError, match="memory: the block must have cross_attention"):
        block().remember(tokens())


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match="norm: must be layer_norm, rms_norm or none, got batch"):
        make_norm("batch_norm", 4, 1e-5)
