"""Recurrent encoder-decoders against the papers' equations in loops; loss, padding, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor, nn

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import ATTENTIONS, Seq2SeqConfig
from fused_attention.models.weights import read_settings
from fused_attention.nn import Annotations, BahdanauAttention, ChoGRU, LuongAttention

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "target_vocab_size": 17,
    "embedding_dim": 5,
    "dim": 8,
    "width": 2.0,
}
STACKED = {"encoder_layers": 2, "decoder_layers": 2}
FEEDING = {"input_feeding": True}
KINDS: dict[str, dict[str, Any]] = {
    **{attention: {"attention": attention} for attention in ATTENTIONS},
    "bahdanau, torch's gru": {"attention": "bahdanau"},
    "sutskever": {
        **STACKED,
        **{"attention": "none", "cell": "lstm", "bidirectional": False, "reverse_source": True},
    },
    "bahdanau normed": {"attention": "bahdanau", "encoder_dim": 6, "maxout": 3, "normed": True},
    "bahdanau": {"attention": "bahdanau", "cell": "cho-gru", "maxout": 3, "attention_dim": 7},
    "cho": {"attention": "none", "cell": "cho-gru", **STACKED},
    "bahdanau lstms": {"attention": "bahdanau", "cell": "lstm", **STACKED, "encoder_layers": 1},
    "luong": {
        **{**STACKED, **FEEDING, "attention": "local-p", "cell": "lstm"},
        **{"bidirectional": False, "reverse_source": True, "last_place": True},
    },
    "general feeding": {"attention": "luong-general", **FEEDING, "bridge": "tanh"},
    "concat feeding": {"attention": "luong-concat", **FEEDING, "target_vocab_size": None},
    "local-m concat feeding": {"attention": "local-m", "local_score": "concat", **FEEDING},
}
SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([4, 7, 1]), torch.tensor([3, 6, 5])


def config(kind: str, **changes: Any) -> Seq2SeqConfig:
    return Seq2SeqConfig(**{**SMALL, **KINDS[kind], **changes})


def model(kind: str, **changes: Any) -> Seq2Seq:
    torch.manual_seed(0)
    one = Seq2Seq(config(kind, **changes)).double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_(std=0.5)
    return one


def pairs() -> tuple[Tensor, Tensor]:
    """Source and target."""
    torch.manual_seed(1)
    source, target = torch.randint(3, 17, (3, 7)), torch.randint(3, 17, (3, 6))
    target[:, 0] = 1
    return source, target


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *pairs(), SOURCE_LENGTHS, TARGET_LENGTHS


State = list[tuple[Tensor, ...]]  # of each layer: (h,) or (h, c)


def cell_step(rnn: nn.Module, suffix: str, x: Tensor, state: tuple[Tensor, ...]) -> Any:
    """One step of one layer on single vectors, by the gates' equations."""
    if isinstance(rnn, ChoGRU):
        W, U, b = (getattr(rnn, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias"))
        (h,), (wr, wz, wh), (ur, uz, uh) = state, (W @ x + b).chunk(3), U.chunk(3)
        r, z = torch.sigmoid(wr + ur @ h), torch.sigmoid(wz + uz @ h)
        return ((1 - z) * h + z * torch.tanh(wh + uh @ (r * h)),)
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    W, b, U, c = (getattr(rnn, f"{name}_{suffix}") for name in names)
    h = state[0]
    if isinstance(rnn, nn.GRU):
        (xr, xz, xn), (hr, hz, hn) = (W @ x + b).chunk(3), (U @ h + c).chunk(3)
        z = torch.sigmoid(xz + hz)
        return ((1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h,)
    i, f, g, o = (W @ x + b + U @ h + c).chunk(4)
    memory = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


def encoded(one: Seq2Seq, ids: list[int]) -> tuple[Tensor, list[list[tuple[Tensor, ...]]]]:
    """States of one source in its order, and the final states [layer][direction]."""
    settings, rnn = one.config, one.encoder.rnn
    ids = ids[::-1] if settings.reverse_source else ids
    x, finals = list(one.source.weight[ids]), []
    zero = (torch.zeros(settings.encoder_size).double(),) * (1 + (settings.cell == "lstm"))
    for layer in range(settings.encoder_layers):
        sides, ends = [], []
        for direction in range(settings.directions):
            suffix, state, outputs = f"l{layer}" + "_reverse" * direction, zero, []
            for one_x in x[::-1] if direction else x:
                state = cell_step(rnn, suffix, one_x, state)
                outputs.append(state[0])
            sides.append(outputs[::-1] if direction else outputs)
            ends.append(state)
        x = [torch.cat(both) for both in zip(*sides, strict=True)]
        finals.append(ends)
    return torch.stack(x[::-1] if settings.reverse_source else x), finals


def first_state(one: Seq2Seq, finals: list[list[tuple[Tensor, ...]]]) -> State:
    bridge = one.decoder.bridge
    if bridge.linear is None:
        return [tuple(torch.cat(parts) for parts in zip(*ends, strict=True)) for ends in finals]
    rows = torch.tanh(bridge.linear.weight @ finals[-1][-1][0]).split(one.config.dim)
    layers = one.config.decoder_layers
    return [tuple(rows[layer::layers]) for layer in range(layers)]


def readout(one: Seq2Seq, features: Tensor) -> Tensor:
    if one.deep_output is not None:
        t = one.deep_output.weight @ features + one.deep_output.bias
        features = torch.stack([torch.maximum(t[j], t[j + 1]) for j in range(0, len(t), 2)])
    return one.head.weight @ features + one.head.bias


def logits_of_row(one: Seq2Seq, source: list[int], target: list[int]) -> Tensor:
    """The papers' recurrences on single vectors, the attentions by themselves (tests/nn)."""
    decoder = one.decoder
    states, finals = encoded(one, source)
    state, attention = first_state(one, finals), decoder.attention
    memory = None if attention is None else attention.remember(states[None])
    fed, logits = torch.zeros(one.config.dim).double(), []
    for t, token in enumerate(target):
        y = x = one.target.weight[token]
        if isinstance(attention, BahdanauAttention):
            assert isinstance(memory, Annotations)
            context = attention(state[-1][0][None, None], memory)[0, 0]  # s_{i-1} asks
            x = torch.cat((y, context))
        elif one.config.input_feeding:
            x = torch.cat((y, fed))
        for layer in range(len(state)):
            state[layer] = cell_step(decoder.rnn, f"l{layer}", x, state[layer])
            x = state[layer][0]
        features = x
        if isinstance(attention, BahdanauAttention):
            features = torch.cat((x, context, y))
        elif isinstance(attention, LuongAttention):
            assert isinstance(memory, Annotations)
            features = fed = attention(x[None, None], memory, t)[0, 0]  # h_t asks
        logits.append(readout(one, features))
    return torch.stack(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_the_papers(kind: str) -> None:
    one, (source, target, *_) = model(kind), batch()
    expected = torch.zeros(3, 6, one.config.logits_size).double()
    for b, (m, n) in enumerate(zip(SOURCE_LENGTHS.tolist(), TARGET_LENGTHS.tolist(), strict=True)):
        row = logits_of_row(one, source[b, :m].tolist(), target[b, :n].tolist())
        expected[b, :n] = row
    actual = one(*batch())
    assert_same(actual, expected)
    torch.manual_seed(3)
    upstream, parameters = torch.randn_like(actual), list(one.parameters())
    found = torch.autograd.grad(actual, parameters, upstream)
    assert_same(found, torch.autograd.grad(expected, parameters, upstream))
    names = [name for name, _ in one.named_parameters()]
    assert [n for n, g in zip(names, found, strict=True) if not g.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_looked_at(kind: str) -> None:
    one, (source, target, *lengths) = model(kind), batch()
    before, loss = one(source, target, *lengths), one.loss(source, target, *lengths)
    # Not even embedded: these are no tokens.
    source[torch.arange(7) >= SOURCE_LENGTHS[:, None]] = 999
    target[torch.arange(6) >= TARGET_LENGTHS[:, None]] = -7
    assert torch.equal(one(source, target, *lengths), before)
    assert torch.equal(one.loss(source, target, *lengths), loss)
    assert not before[0, 3:].any()


@pytest.mark.parametrize("kind", ["none", "bahdanau", "local-p", "luong"])
def test_rows_without_lengths_are_whole(kind: str) -> None:
    one, (source, target) = model(kind), pairs()
    whole = torch.full((3,), 7), torch.full((3,), 6)
    assert_same(one(source, target), one(source, target, *whole))
    assert_same(one.loss(source, target), one.loss(source, target, *whole))
    assert_same(one(source.int(), target.int(), whole[0].int()), one(source, target))


def test_loss_is_the_mean_over_what_exists() -> None:
    one, (source, target, *_) = model("bahdanau", label_smoothing=0.2), batch()
    logits = one(source, target[:, :-1], SOURCE_LENGTHS)
    labels = target[:, 1:].masked_fill(torch.arange(1, 6) >= TARGET_LENGTHS[:, None], -100)

    def expected(smoothing: float) -> Tensor:
        flat = logits.float().flatten(0, 1)
        return nn.functional.cross_entropy(flat, labels.flatten(), label_smoothing=smoothing)

    torch.testing.assert_close(one.loss(*batch()), expected(0.2))
    torch.testing.assert_close(one.eval().loss(*batch()), expected(0.0))


def test_dropout_is_for_training_alone() -> None:
    one, (source, target, *lengths) = model("luong", dropout=0.5), batch()
    torch.manual_seed(0)
    noisy = one(source, target, *lengths)
    assert not torch.equal(noisy, one(source, target, *lengths))
    one.eval()
    assert torch.equal(one(source, target, *lengths), one(source, target, *lengths))
    assert_same(one(source, target, *lengths), model("luong").eval()(source, target, *lengths))


@pytest.mark.parametrize("kind", ["sutskever", "bahdanau normed", "luong"])
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    one = model(kind).float().eval()
    one.save_pretrained(tmp_path)
    assert read_settings(tmp_path)["model_class"] == "Seq2Seq"
    again = Seq2Seq.from_pretrained(tmp_path)
    assert again.config == one.config and not again.training
    source, target, *lengths = batch()
    assert torch.equal(again(source, target, *lengths), one(source, target, *lengths))
    changed = Seq2Seq.from_pretrained(tmp_path, dropout=0.3)
    assert changed.config.dropout == 0.3


def test_a_shared_vocabulary_is_one_parameter() -> None:
    shared = model("bahdanau", target_vocab_size=None)
    assert shared.target is shared.source
    assert sum(name.startswith(("source", "target")) for name in shared.weights()) == 1
    assert shared(*batch()).shape == (3, 6, 20)


@pytest.mark.parametrize("cell", ["gru", "cho-gru", "lstm"])
def test_initial_values(cell: str) -> None:
    one = Seq2Seq(config("none", init="uniform", init_range=0.05, cell=cell))
    flat = torch.cat([p.detach().flatten() for p in one.parameters()])
    assert flat.abs().max() <= 0.05 and flat.abs().mean() == pytest.approx(0.025, rel=0.1)
    two = Seq2Seq(config("bahdanau", init="bahdanau", dim=64, embedding_dim=64, cell=cell))
    for gate in two.decoder.rnn.weight_hh_l0.split(64):
        torch.testing.assert_close(gate @ gate.T, torch.eye(64))
    attention = two.decoder.attention
    assert isinstance(attention, BahdanauAttention) and not attention.v.any()
    assert attention.query_proj.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert two.source.weight.std().item() == pytest.approx(0.01, rel=0.1)
    biases = [p for name, p in two.named_parameters() if "bias" in name]
    assert len(biases) > 2 and not any(bool(bias.any()) for bias in biases)
    # From v = 0 it starts to learn, and the other matrices of the alignment follow.
    two.loss(*batch()).backward()
    assert attention.v.grad is not None and bool(attention.v.grad.any())


@pytest.mark.parametrize("kind", ["sutskever", "bahdanau normed", "luong", "luong-general"])
def test_bf16_autocast(kind: str) -> None:
    one = model(kind).float()
    exact = one.loss(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss = one.loss(*batch())
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())


def mistakes() -> dict[str, Any]:
    one, (source, target) = model("bahdanau"), pairs()
    long = torch.tensor([4, 8, 1])
    return {
        "source: must be int64 or int32, got torch.float32": lambda: one(source.float(), target),
        r"source: must be \[batch, length\] with at least 1 token": lambda: one(
            source[:, :0], target
        ),
        "target: must have source's batch 3, got 2": lambda: one(source, target[:2]),
        r"source_lengths: must be in \[1, 7\], got \[4, 8, 1\]": lambda: one(source, target, long),
        r"source_lengths: must be in \[1, 7\], got \[0, 0, 0\]": lambda: one(
            source, target, 0 * long
        ),
        "source_lengths: must have 3 entries, got 2": lambda: one(source, target, long[:2]),
        r"target_lengths: must be in \[1, 6\]": lambda: one.loss(source, target, None, long),
        "target_lengths: must be an integer tensor": lambda: one(
            source, target, None, long.float()
        ),
        r"target: must be \[batch, length\]": lambda: one.loss(source, target[:, :1]),
    }


@pytest.mark.parametrize("message", list(mistakes()))
def test_mistakes_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        mistakes()[message]()
