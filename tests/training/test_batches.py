"""Windows of a text, masked sentences, sentence pairs."""

from __future__ import annotations

import pytest
import torch

from fused_attention.models.token_loss import IGNORED
from fused_attention.training.corpora import DataError
from fused_attention.training.masked import MaskedSentences, mask_tokens
from fused_attention.training.seeds import generator, seed_of
from fused_attention.training.translation import SentencePairs
from fused_attention.training.windows import TokenWindows, even_windows

MASK, FIRST, VOCAB = 4, 5, 50


def test_windows_predict_the_next_token():
    batch = TokenWindows(torch.arange(100), 8, 3, seed=0)[7]
    inputs, labels = batch.inputs["input_ids"], batch.inputs["labels"]
    assert inputs.shape == labels.shape == (3, 8)
    assert torch.equal(labels, inputs + 1)
    assert batch.weight == 24


def test_windows_reach_both_ends():
    source = TokenWindows(torch.arange(10), 8, 64, seed=0)
    assert set(source[0].inputs["input_ids"][:, 0].tolist()) == {0, 1}
    (batch,) = even_windows(torch.arange(10), 8, 2, 1)
    assert batch.inputs["labels"][:, -1].tolist() == [8, 9]


def test_a_short_text_is_refused():
    with pytest.raises(DataError, match="data: must have more than 8 tokens in each of its parts"):
        TokenWindows(torch.arange(8), 8, 1, 0)
    with pytest.raises(DataError, match="data: must have more than 8 tokens to validate on"):
        even_windows(torch.arange(8), 8, 1, 1)


def test_masking_is_berts():
    tokens = torch.randint(FIRST, VOCAB, (200, 500), generator=generator("tokens"))
    tokens[:, 0] = 1
    masked, labels = mask_tokens(tokens, MASK, FIRST, VOCAB, generator("masks"))
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])
    assert not chosen[:, 0].any()

    def share(of):
        return of.double().mean().item()

    assert share(chosen[:, 1:]) == pytest.approx(0.15, abs=0.005)
    assert share(masked[chosen] == MASK) == pytest.approx(0.8, abs=0.01)
    same = share(masked[chosen] == tokens[chosen])
    assert same == pytest.approx(0.1 + 0.1 / (VOCAB - FIRST), abs=0.01)
    assert masked[chosen & (masked != MASK)].min() >= FIRST


def test_at_least_one_token_is_masked():
    for seed in range(40):
        labels = mask_tokens(torch.tensor([1, 9, 2]), MASK, FIRST, VOCAB, generator(seed))[1]
        assert labels.tolist() == [IGNORED, 9, IGNORED]
    nothing = mask_tokens(torch.tensor([1, 2]), MASK, FIRST, VOCAB, generator(0))[1]
    assert nothing.tolist() == [IGNORED, IGNORED]


def test_masked_sentences():
    sentences = [[1, *range(FIRST, FIRST + n), 2] for n in range(1, 20)]
    source = MaskedSentences(
        sentences, 40, pad_id=0, mask_id=MASK, first_id=FIRST, vocab_size=VOCAB, seed=0
    )
    inputs, weight = source[3]
    lengths = inputs["lengths"].tolist()
    assert 0 < sum(lengths) <= 40
    restored = torch.where(inputs["labels"] == IGNORED, inputs["input_ids"], inputs["labels"])
    for row, length in zip(restored, lengths, strict=True):
        assert row[:length].tolist() in sentences
        assert not row[length:].any()
    assert weight == (inputs["labels"] != IGNORED).sum() > 0


def test_pairs_are_padded():
    pairs = [([7] * n + [2], [1] + [8] * (n + 1) + [2]) for n in range(1, 30)]
    inputs, weight = SentencePairs(pairs, 60, pad_id=0, seed=0)[0]
    source, target = inputs["source"], inputs["target"]
    assert source.shape[0] * max(source.shape[1], target.shape[1] - 1) <= 60
    assert ((source != 0).sum(1) == inputs["source_lengths"]).all()
    assert ((target != 0).sum(1) == inputs["target_lengths"]).all()
    assert weight == (target[:, 1:] != 0).sum()


def test_packed_pairs_fill_a_batch_without_padding():
    pairs = [([7] * (n % 29) + [2], [1] + [8] * (n * 3 % 31) + [2]) for n in range(500)]
    source = SentencePairs(pairs, 200, pad_id=0, seed=0, packed=True)
    batches = [source[n].inputs for n in range(source.buckets.batches_in_epoch())]
    given = [
        max(int(inputs["source_lengths"].sum()), int(inputs["target_lengths"].sum() - len(rows)))
        for inputs in batches
        for rows in [inputs["source"]]
    ]
    assert max(given) <= 200
    assert sum(inputs["source"].numel() > 200 for inputs in batches) > len(batches) / 2
    lengths = [set(inputs["target_lengths"].tolist()) for inputs in batches]
    assert sum(map(len, lengths)) > 5 * len(batches)


def test_seeds_differ_by_purpose_and_order():
    seeds = {seed_of("a", 1), seed_of("b", 1), seed_of("a", 1, 2), seed_of("a", 2, 1), seed_of(0)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("a", 1) == seed_of("a", 1)
