"""BERT's pairs of texts: which lines they are of, what tells nothing, what is learned."""

from __future__ import annotations

import pytest
import torch

from fused_attention.models.bert import BERT
from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.token_loss import IGNORED
from fused_attention.training import Settings, Trainer
from fused_attention.training.corpora import DataError
from fused_attention.training.next_sentence import (
    IS_ANOTHER,
    IS_NEXT,
    NextSentences,
    next_sentence_accuracy,
)
from fused_attention.training.seeds import generator

BEGIN, END, MASK, FIRST, LIMIT = 1, 2, 4, 5, 24
LENGTHS = torch.randint(1, 9, (3000,), generator=generator("lines")).tolist()
LINES = [[FIRST + number] * length for number, length in enumerate(LENGTHS)]  # who is who
OPTIONS = {"frame": (BEGIN, END), "pad_id": 0, "mask_id": MASK, "first_id": FIRST}


def pairs(lines=LINES, limit=LIMIT, tokens=480, seed=0, **changes):
    options = {**OPTIONS, "vocab_size": FIRST + len(LINES), "seed": seed, **changes}
    return NextSentences(lines, limit, tokens, **options)


def restored(batch):
    """Each pair's A, B and label, from tokens without masks."""
    inputs = batch.inputs
    tokens = torch.where(inputs["labels"] == IGNORED, inputs["input_ids"], inputs["labels"])
    rows = zip(
        tokens.tolist(),
        inputs["lengths"].tolist(),
        inputs["token_type_ids"].tolist(),
        inputs["next_sentence_label"].tolist(),
        strict=True,
    )
    for row, length, types, label in rows:
        assert not any(row[length:]) and row[0] == BEGIN and row[length - 1] == END
        seconds = types[:length].index(1)
        assert types[:seconds] == [0] * seconds and all(types[seconds:length])
        assert row[seconds - 1] == END and row[:length].count(END) == 2
        yield row[1 : seconds - 1], row[seconds : length - 1], label


def numbers(tokens):
    """The lines of a text, which has to hold each of them whole."""
    found = sorted({token - FIRST for token in tokens})
    assert [token for n in found for token in LINES[n]] == tokens
    assert found == list(range(found[0], found[-1] + 1))
    return found


def test_half_of_the_pairs_are_neighbours():
    source, labels = pairs(), []
    for index in range(60):
        for first, second, label in restored(source[index]):
            follows = numbers(first)[-1] + 1 == numbers(second)[0]
            assert follows == (label == IS_NEXT)
            assert len(first) + len(second) + 3 <= LIMIT
            labels.append(label)
    assert set(labels) == {IS_NEXT, IS_ANOTHER}
    assert sum(labels) / len(labels) == pytest.approx(0.5, abs=5 * 0.5 / len(labels) ** 0.5)


def test_neither_lengths_nor_ends_tell_what_a_pair_is():
    source, rooms = pairs(), {IS_NEXT: [], IS_ANOTHER: []}
    for index in range(100):
        for first, second, label in restored(source[index]):
            after = numbers(second)[-1] + 1
            room = LIMIT - 3 - len(first) - len(second)
            assert after == len(LINES) or len(LINES[after]) > room  # B is as long as it can be
            rooms[label].append(room)
    means = [torch.tensor(found).double().mean().item() for found in rooms.values()]
    assert means[0] == pytest.approx(means[1], abs=0.3)


def test_batches_are_full_repeatable_and_new_in_each_epoch():
    source = pairs()
    assert len(source[0].inputs["lengths"]) == 480 // LIMIT
    again = pairs()[3]
    for name, value in source[3].inputs.items():
        assert torch.equal(value, again.inputs[name]), name
    assert again.weight == (again.inputs["labels"] != IGNORED).sum() > 0
    epoch = source.buckets.batches_in_epoch()
    splits = [
        {numbers(first)[0]: len(first) for n in range(at, at + epoch) for first, *_ in
         restored(source[n])}
        for at in (0, epoch)
    ]  # fmt: skip
    assert splits[0].keys() == splits[1].keys() and splits[0] != splits[1]


def test_long_lines_are_cut():
    long = [[FIRST + n % 9 for n in range(100)]]
    source = pairs(long)
    for first, second, label in restored(source[0]):
        assert first and second and len(first) + len(second) + 3 <= LIMIT, label


def test_too_little():
    with pytest.raises(ValueError, match="context: must be at least 5 for pairs of texts, got 4"):
        pairs(limit=4)
    for lines in ([], [[FIRST]], LINES[:2]):
        with pytest.raises(DataError, match="data: must hold text for two pairs in each"):
            pairs(lines)


def test_both_tasks_are_learned():
    """Lines count up, so a neighbour can be told by the first token of B."""
    lines = [[FIRST + number % 8] * 4 for number in range(400)]
    torch.manual_seed(0)
    config = BERTConfig(
        vocab_size=16, dim=32, layers=2, heads=2, hidden_dim=64, max_length=11, dropout=0.0,
        attention_dropout=0.0, embedding_dropout=0.0,
    )  # fmt: skip
    model = BERT(config)
    source = pairs(lines, limit=11, tokens=352, vocab_size=13)
    unseen = [pairs(lines, limit=11, tokens=352, vocab_size=13, seed=1)[n] for n in range(4)]
    settings = Settings(steps=100, learning_rate=5e-3, warmup=10, log_every=50)
    trainer = Trainer(model, source, settings, validation=unseen)
    before = next_sentence_accuracy(model.eval(), unseen), trainer.evaluate()
    trainer.run()
    after = next_sentence_accuracy(model.eval(), unseen), trainer.evaluate()
    assert before[0] < 0.65 and after[0] > 0.85
    assert after[1] < 0.6 * before[1]
