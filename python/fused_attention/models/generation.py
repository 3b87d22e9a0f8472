"""Texts from a language model, token by token, with its keys and values in a cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fused_attention.checks import wrong_value
from fused_attention.models.gpt import GPT
from fused_attention.models.sampling import GREEDY, Sampling
from fused_attention.nn import Cache, Sequences

Prompts = Tensor | Sequence[Sequence[int]]
CacheName = Literal["contiguous", "paged", "none"]
CACHES = ("contiguous", "paged", "none")
PAGE_SIZE = 64


def generate(
    model: GPT,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    attention_mask: Tensor | None = None,
    stop: Iterable[int] | None = None,
    cache: CacheName = "contiguous",
) -> list[list[int]]:
    """The tokens with which the model goes on after each prompt.

    Args:
        model: is put into evaluation mode meanwhile.
        prompts: lists of tokens, of any lengths; or integer [batch, length].
        max_new_tokens: where a text ends at the latest.
        sampling: how tokens are chosen; default the likeliest.
        attention_mask: bool or integer [batch, length], true where a row of a tensor has a token;
            the padding may be on the left or on the right.
        stop: tokens that end a text and are no part of it; default the model's.
        cache: where keys and values are kept: "contiguous", room for the longest row in each;
            "paged", in pages; "none", all is computed anew for each token.

    Returns:
        The new tokens of each row.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value.
    """
    texts: list[list[int]] | None = None
    for step in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        attention_mask=attention_mask,
        stop=stop,
        cache=cache,
    ):
        texts = [[] for _ in step] if texts is None else texts
        for text, token in zip(texts, step, strict=True):
            if token is not None:
                text.append(token)
    return [[] for _ in prompts] if texts is None else texts


def stream(
    model: GPT,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    attention_mask: Tensor | None = None,
    stop: Iterable[int] | None = None,
    cache: CacheName = "contiguous",
) -> Iterator[list[int | None]]:
    """`generate`, one token of each row at a time; None for rows that have ended.

    Wrong arguments are refused by the call itself, not by the first step.
    """
    device = next(model.parameters()).device
    batch = _Prompts.make(prompts, attention_mask, device)
    if max_new_tokens < 1:
        wrong_value("max_new_tokens", "must be at least 1", max_new_tokens)
    room = int(batch.tokens.shape[1]) + max_new_tokens
    limit = model.config.max_length
    if model.config.positions == "learned" and room > limit:
        rule = f"must leave prompt and text at most {limit} tokens"
        wrong_value("max_new_tokens", rule, f"{max_new_tokens} after {batch.tokens.shape[1]}")
    if cache not in CACHES:
        wrong_value("cache", f"must be one of {', '.join(CACHES)}", cache)
    ends = frozenset(model.config.eos_tokens if stop is None else stop)
    return _steps(model, batch, max_new_tokens, sampling, ends, cache)


@dataclass(frozen=True)
class _Prompts:
    tokens: Tensor  # int64 [batch, length], each row's own first, then zeros
    lengths: Tensor  # int64 [batch]

    @classmethod
    def make(
        cls, prompts: Prompts, attention_mask: Tensor | None, device: torch.device
    ) -> _Prompts:
        if isinstance(prompts, Tensor):
            rows = _rows(prompts, attention_mask)
        elif attention_mask is not None:
            raise ValueError("attention_mask: goes with a tensor of prompts, got lists")
        else:
            rows = [torch.tensor(list(row), dtype=torch.int64) for row in prompts]
        if not rows or any(len(row) == 0 for row in rows):
            wrong_value("prompts", "must have at least one token each", f"{len(rows)} rows")
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return cls(tokens.to(device), lengths.to(device))

    @property
    def ragged(self) -> bool:
        return bool((self.lengths < self.tokens.shape[1]).any())


def _rows(prompts: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """The rows of a tensor without their padding."""
    if prompts.dim() != 2 or prompts.is_floating_point():
        rule = "must be integer [batch, length]"
        wrong_value("prompts", rule, f"{prompts.dtype} {tuple(prompts.shape)}")
    if attention_mask is None:
        return list(prompts.to("cpu", torch.int64))
    if attention_mask.shape != prompts.shape:
        rule = f"must have shape {tuple(prompts.shape)}"
        wrong_value("attention_mask", rule, tuple(attention_mask.shape))
    mask = attention_mask.to("cpu", torch.bool)
    starts_and_ends = (mask[:, 1:] != mask[:, :-1]).sum(1)
    one_sided = mask[:, 0] | mask[:, -1]
    if ((starts_and_ends > 1) | ~one_sided).any():
        wrong_value("attention_mask", "must hide tokens at one end of a row only", "others")
    return [row[seen] for row, seen in zip(prompts.to("cpu", torch.int64), mask, strict=True)]


def _steps(
    model: GPT,
    prompts: _Prompts,
    max_new_tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    cache: CacheName,
) -> Iterator[list[int | None]]:
    rows, was_training = len(prompts.tokens), model.training
    generators = sampling.generators(rows)
    ended = [False] * rows
    model.eval()
    try:
        text = _Text(model, prompts, max_new_tokens, cache)
        for step in range(max_new_tokens):
            chosen = sampling.choose(text.logits(), generators)
            tokens = chosen.tolist()
            ended = [end or token in stop for end, token in zip(ended, tokens, strict=True)]
            if all(ended):
                return
            yield [None if end else token for end, token in zip(ended, tokens, strict=True)]
            if step + 1 < max_new_tokens:
                text.append(chosen)
    finally:
        model.train(was_training)


class _Text:
    """The tokens so far, and what the model has kept of them."""

    def __init__(
        self, model: GPT, prompts: _Prompts, max_new_tokens: int, cache: CacheName
    ) -> None:
        self.model = model
        batch, length = prompts.tokens.shape
        self.tokens, self.caches = (
            prompts.tokens,
            self._caches(cache, batch, length, max_new_tokens),
        )
        self.lengths = prompts.lengths if prompts.ragged else None
        self.new = self.tokens

    def _caches(self, name: CacheName, batch: int, length: int, more: int) -> list[Cache] | None:
        if name == "none":
            return None
        page_size = PAGE_SIZE if name == "paged" else None
        return self.model.new_caches(batch, length + more, page_size=page_size)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Of the token after the last one of each row, [batch, vocab_size]."""
        states = self.model.states(self.new, Sequences(self.lengths), self.caches)
        if self.lengths is None:
            last = states[:, -1]
        else:
            last = states[torch.arange(len(states), device=states.device), self.lengths - 1]
        logits: Tensor = self.model.head(last)
        return logits

    def append(self, tokens: Tensor) -> None:
        """One more token for each row, int64 [batch]."""
        if self.caches is not None:
            self.new, self.lengths = tokens[:, None], None  # the caches know the rows' lengths
            return
        if self.lengths is None:
            self.tokens = torch.cat((self.tokens, tokens[:, None]), 1)
        else:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, 1))
            self.tokens.scatter_(1, self.lengths[:, None], tokens[:, None])
            self.lengths = self.lengths + 1
        self.new = self.tokens
