"""Models that are small enough to train in a test.

A language model with attention, dropout and tied weights, and a recurrent translator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.nn.block import Block, BlockConfig
from fused_attention.training import Batch
from fused_attention.training.translation import SentencePairs
from fused_attention.training.windows import TokenWindows

VOCAB, DIM, HEADS, LENGTH = 11, 16, 2, 12


class SmallModel(nn.Module):
    def __init__(self, dropout=0.1, layers=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCAB, DIM)
        config = BlockConfig(DIM, HEADS, 2 * DIM, dropout=dropout, attention_dropout=dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(layers))
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def loss(self, input_ids, labels):
        if self.training:
            self.seen += 1
        return F.cross_entropy(self(input_ids).flatten(0, 1), labels.flatten())


def tokens(count=500, seed=0):
    """A sequence that can be learned: each token follows from the one before it."""
    start = torch.arange(count) * 3 % VOCAB
    noise = torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(count) % 7 == 0, noise, start)


def windows(count=4, seed=0):
    return TokenWindows(tokens(), LENGTH, count, seed)


def small_translator(attention="luong-general", seed=0):
    """A recurrent encoder-decoder for `pair_batches`, with dropout."""
    torch.manual_seed(seed)
    config = Seq2SeqConfig(
        VOCAB, embedding_dim=8, dim=DIM, attention=attention, width=2.0, dropout=0.1
    )
    return Seq2Seq(config)


def pair_batches(count=60, seed=0):
    """Sequences of 3 to 8 tokens and the same backwards."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=random).tolist()
    rows = [torch.randint(5, VOCAB, (n,), generator=random).tolist() for n in lengths]
    pairs = [([*row, 2], [1, *reversed(row), 2]) for row in rows]
    return SentencePairs(pairs, 32, pad_id=0, seed=seed)


class Joined:
    """Batches of several batches: what one process without accumulation would get."""

    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __getitem__(self, index):
        parts = [self.batches[index * self.count + n] for n in range(self.count)]
        names = parts[0].inputs
        joined = {name: torch.cat([part.inputs[name] for part in parts]) for name in names}
        return Batch(joined, sum(part.weight for part in parts))


class Uneven:
    """Batches that predict ever fewer of their tokens."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, index):
        inputs, _ = self.batches[index]
        labels = inputs["labels"].clone()
        labels.view(-1)[: 7 * (index % 4)] = -100
        return Batch({**inputs, "labels": labels}, int((labels >= 0).sum()))
