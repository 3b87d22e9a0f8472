"""Translations and alignments of recurrent encoder-decoders: steps, beams, where they looked."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import ATTENTIONS, Seq2SeqConfig
from fused_attention.models.seq2seq_steps import StepwiseDecoder, align
from fused_attention.models.translation import translate

FEEDABLE = [attention for attention in ATTENTIONS if attention not in ("none", "bahdanau")]
KINDS: dict[str, dict[str, Any]] = {
    **{attention: {"attention": attention} for attention in ATTENTIONS},
    "cho": {"attention": "bahdanau", "cell": "cho-gru"},
    **{f"{a} fed": {"attention": a, "input_feeding": True, "cell": "lstm"} for a in FEEDABLE},
}
SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([4, 7, 1]), torch.tensor([3, 6, 5])


def model(kind: str, **changes: Any) -> Seq2Seq:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 9,
        "embedding_dim": 5,
        "dim": 8,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "width": 2.0,
    }
    one = Seq2Seq(Seq2SeqConfig(**{**settings, **KINDS[kind], **changes})).double()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_(std=0.7)
    return one.eval()


def pairs() -> tuple[Tensor, Tensor]:
    """Source and target."""
    torch.manual_seed(1)
    source, target = torch.randint(3, 9, (3, 7)), torch.randint(3, 9, (3, 6))
    target[:, 0] = 1
    return source, target


@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_the_logits_of_teacher_forcing(kind: str) -> None:
    one, (source, target) = model(kind), pairs()
    expected = one(source, target, SOURCE_LENGTHS)
    decoder = StepwiseDecoder(one, source, SOURCE_LENGTHS)
    steps = torch.stack([decoder.step(tokens) for tokens in target.T], 1)
    assert_same(steps, expected)
    assert not steps.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_reordered_rows_go_on_from_their_new_pasts(kind: str) -> None:
    one, (source, _) = model(kind), pairs()
    torch.manual_seed(2)
    tokens, rows = torch.randint(3, 9, (4, 9)), torch.tensor([2, 0, 0, 4, 5, 3, 8, 8, 6])
    decoder = StepwiseDecoder(one, source, SOURCE_LENGTHS, rows=3)
    fresh = StepwiseDecoder(one, source, SOURCE_LENGTHS, rows=3)
    for before in tokens[:3]:
        decoder.step(before)
        fresh.step(before[rows])
    decoder.reorder(rows)
    assert_same(decoder.step(tokens[3]), fresh.step(tokens[3]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_translated_as_each_row_alone(kind: str, beams: int) -> None:
    one, (source, _) = model(kind), pairs()
    found = translate(one, source, SOURCE_LENGTHS, beams=beams, max_length=6)
    for b, length in enumerate(SOURCE_LENGTHS.tolist()):
        alone = translate(one, source[b : b + 1, :length], beams=beams, max_length=6)
        assert [h.tokens for h in found[b]] == [h.tokens for h in alone[0]]
        assert [h.score for h in found[b]] == pytest.approx([h.score for h in alone[0]])


@pytest.mark.parametrize(
    "kind", ["none", "bahdanau", "luong-general fed", "local-m", "local-p fed"]
)
def test_enough_beams_find_the_likeliest_of_all(kind: str) -> None:
    one, (source, _) = model(kind, vocab_size=5), pairs()
    source, length, alpha = source[:1] % 5, 4, 0.6
    tokens = [t for t in range(5) if t not in (0, 2)]  # neither padding nor the end
    best: tuple[float, list[int]] = (-torch.inf, [])
    for count in range(length):
        choices = [list(chosen) for chosen in itertools.product(tokens, repeat=count)]
        targets = torch.tensor([[1, *chosen, 2] for chosen in choices])
        logits = one(source.expand(len(choices), -1), targets[:, :-1])
        picked = logits.log_softmax(-1).gather(2, targets[:, 1:, None]).sum((1, 2))
        scores = picked / ((5 + count + 1) / 6) ** alpha
        score, at = scores.max(0)
        best = max(best, (score.item(), choices[int(at)]))
    found = translate(one, source, beams=200, max_length=length, length_penalty=alpha)
    assert found[0][0].tokens == best[1]
    assert found[0][0].score == pytest.approx(best[0], rel=1e-5)


def test_greedy_search_takes_the_likeliest_tokens() -> None:
    one, (source, _) = model("luong-concat fed"), pairs()
    (best, *_), *_ = translate(one, source, SOURCE_LENGTHS, beams=1, max_length=7)
    row = [1]
    while len(row) <= 7 and row[-1] != 2:
        logits = one(source[:1, :4], torch.tensor([row]))[0, -1]
        logits[0] = -torch.inf  # padding is never chosen
        row.append(int(logits.argmax()))
    assert best.tokens == [token for token in row[1:] if token != 2]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_alignments_are_the_steps_weights(kind: str) -> None:
    one, (source, target) = model(kind), pairs()
    found = align(one, source, target, SOURCE_LENGTHS, TARGET_LENGTHS)
    assert found.weights.shape == (3, 5, 7)
    for b, (m, n) in enumerate(zip(SOURCE_LENGTHS.tolist(), TARGET_LENGTHS.tolist(), strict=True)):
        alone = align(one, source[b : b + 1, :m], target[b : b + 1, :n])
        assert_same(found.weights[b, : n - 1, :m], alone.weights[0])
        assert not found.weights[b, n - 1 :].any() and not found.weights[b, :, m:].any()
        sums = alone.weights.sum(-1)
        if "local" not in kind:
            assert_same(sums, torch.ones_like(sums))
            assert found.places is found.first is found.last is None
            continue
        assert found.places is not None and found.first is not None and found.last is not None
        assert alone.places is not None
        assert_same(found.places[b, : n - 1], alone.places[0])
        for step in range(n - 1):
            first, last = int(found.first[b, step]), int(found.last[b, step])
            middle = int(found.places[b, step])
            assert (first, last) == (max(0, middle - 2), min(m - 1, middle + 2))
            inside = found.weights[b, step, first : last + 1]
            assert (inside > 0).all() and found.weights[b, step].count_nonzero() == len(inside)


def test_weights_do_not_depend_on_how_the_source_was_read() -> None:
    """Reversed or not, place j is the source's token j: an encoder without memory shows it."""
    one, (source, target) = model("luong-general", encoder_layers=1, decoder_layers=1), pairs()
    with torch.no_grad():
        for name, parameter in one.encoder.named_parameters():
            if "_hh" in name:
                parameter.zero_()
                continue
            # The update gate stays shut, so that a state is a function of its own token alone.
            parameter[4:8] = -50.0 if "bias" in name else 0.0
        one.decoder.bridge = ZeroBridge()
    expected = align(one, source, target, SOURCE_LENGTHS).weights
    one.encoder.reverse = True
    assert_same(align(one, source, target, SOURCE_LENGTHS).weights, expected)


class ZeroBridge(torch.nn.Module):
    def forward(self, encoded: Any) -> Any:
        from fused_attention.models.seq2seq_encoder import RecurrentState

        return RecurrentState(encoded.hidden.new_zeros(1, encoded.hidden.shape[1], 8), None)


def test_what_cannot_be_aligned_or_translated() -> None:
    source, target = pairs()
    with pytest.raises(RuntimeError, match="model: must have an attention, its config says none"):
        align(model("none"), source, target)
    for call in (lambda one: align(one, source, target), lambda one: translate(one, source)):
        with pytest.raises(RuntimeError, match="model: must be in evaluation mode"):
            call(model("bahdanau").train())
    with pytest.raises(ValueError, match="beams: must be at least 1, got 0"):
        translate(model("bahdanau"), source, beams=0)
    with pytest.raises(ValueError, match=r"target_lengths: must be in \[1, 6\]"):
        align(model("bahdanau"), source, target, None, TARGET_LENGTHS + 1)
