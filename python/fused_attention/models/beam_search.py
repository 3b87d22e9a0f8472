"""Beam search over any model that gives logits for one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.checks import wrong_value

Step = Callable[[Tensor], Tensor]
Reorder = Callable[[Tensor], object]
_NEVER = -torch.inf


class Hypothesis(NamedTuple):
    """One continuation."""

    tokens: list[int]  # without start and end
    score: float  # log-probability, end included, over the length penalty


class _Beams(NamedTuple):
    """Rows of candidates, the best first; a score of -inf is none."""

    scores: Tensor  # fp32 [batch, beams]
    tokens: Tensor  # int64 [batch, beams, tokens so far]
    lengths: Tensor  # int64 [batch, beams]

    def best(self, count: int) -> tuple[_Beams, Tensor]:
        """The best `count` of each row, and where they stood, [batch, count]."""
        scores, at = self.scores.topk(count, 1)
        tokens = self.tokens.gather(1, at[..., None].expand(-1, -1, self.tokens.shape[2]))
        return _Beams(scores, tokens, self.lengths.gather(1, at)), at

    def and_also(self, other: _Beams) -> _Beams:
        pairs = zip(self, other, strict=True)
        return _Beams(*(torch.cat(pair, 1) for pair in pairs))


@torch.no_grad()
def beam_search(
    step: Step,
    reorder: Reorder,
    start: Tensor,
    *,
    end: int | Collection[int],
    max_length: int,
    beams: int = 4,
    length_penalty: float = 0.6,
    forbidden: Collection[int] = (),
) -> list[list[Hypothesis]]:
    """The likeliest continuations that the beams meet (Sutskever et al. 2014, section 3.2).

    A row's search ends when no beam can still become better than its finished hypotheses.

    Args:
        step: maps the latest tokens, int64 [batch * beams], to logits [batch * beams, vocab].
            Row b * beams + n is beam n of start[b]; the first call gets `start`.
        reorder: called before each later step with int64 [batch * beams]: row n goes on from what
            row rows[n] was, such as KVCache.reorder. Rows never move to another start's.
        start: int64 [batch].
        end: the token, or tokens, that end a hypothesis.
        max_length: tokens of a hypothesis, its end included.
        beams: hypotheses that are kept; 1 is greedy search.
        length_penalty: alpha of ((5 + length) / 6) ** alpha, which log-probabilities are divided by
            (Wu et al. 2016, section 7); 0 is none.
        forbidden: tokens that are never chosen.

    Returns:
        For each start up to `beams` hypotheses, the best first: those that ended or, where none
        did within max_length, those that did not.

    Raises:
        ValueError: beams or max_length is below 1, or length_penalty is negative.
    """
    for name, number in (("beams", beams), ("max_length", max_length)):
        if number < 1:
            wrong_value(name, "must be at least 1", number)
    if length_penalty < 0:
        wrong_value("length_penalty", "must be at least 0", length_penalty)
    ends = torch.tensor([end] if isinstance(end, int) else sorted(end), device=start.device)
    barred = torch.tensor(sorted(forbidden), dtype=torch.int64, device=start.device)
    first_rows = torch.arange(len(start), device=start.device)[:, None] * beams
    live, finished = _initial(start, beams)
    latest = start.repeat_interleave(beams)
    for length in range(1, max_length + 1):
        scores = torch.log_softmax(step(latest).float(), -1).index_fill_(-1, barred, _NEVER)
        candidates, parents = _extended(live, scores, len(ends))
        ended = torch.isin(candidates.tokens[..., -1], ends)
        finished = _grown(finished, candidates, ended, _penalty(length, length_penalty))
        going_on = candidates._replace(scores=candidates.scores.masked_fill(ended, _NEVER))
        live, at = going_on.best(beams)
        # Later tokens only lower the sum, so this is the most that a beam can reach.
        hope = live.scores[:, 0] / _penalty(max_length, length_penalty)
        if length == max_length or bool((hope <= finished.scores[:, -1]).all()):
            break
        reorder((first_rows + parents.gather(1, at)).flatten())
        latest = live.tokens[..., -1].flatten()
    return _listed(finished, live, _penalty(length, length_penalty))


def _initial(start: Tensor, beams: int) -> tuple[_Beams, _Beams]:
    """One live beam a row, so that the first step does not choose one token several times."""
    scores = torch.full((len(start), beams), _NEVER, device=start.device)
    tokens = start.new_zeros(len(start), beams, 0)
    none = _Beams(scores, tokens, start.new_zeros(len(start), beams))
    first = scores.clone()
    first[:, 0] = 0.0
    return none._replace(scores=first), none


def _extended(live: _Beams, scores: Tensor, ends: int) -> tuple[_Beams, Tensor]:
    """The best next tokens of all beams, and the beam that each came from, [batch, candidates].

    There are so many of them that `beams` are left even if all others end.
    """
    batch, beams = live.scores.shape
    vocabulary = scores.shape[-1]
    totals = (live.scores[..., None] + scores.view(batch, beams, vocabulary)).flatten(1)
    best, at = totals.topk(min(beams * (1 + ends), totals.shape[1]), 1)
    parents, token = at // vocabulary, at % vocabulary
    history = live.tokens.gather(1, parents[..., None].expand(-1, -1, live.tokens.shape[2]))
    tokens = torch.cat((history, token[..., None]), 2)
    lengths = torch.full_like(token, tokens.shape[2])
    return _Beams(best, tokens, lengths), parents


def _grown(finished: _Beams, candidates: _Beams, ended: Tensor, penalty: float) -> _Beams:
    """The best hypotheses that have ended, in this step or before."""
    scores = torch.where(ended, candidates.scores / penalty, _NEVER)
    older = finished._replace(tokens=torch.nn.functional.pad(finished.tokens, (0, 1)))
    return older.and_also(candidates._replace(scores=scores)).best(finished.scores.shape[1])[0]


def _penalty(length: int, alpha: float) -> float:
    return float(((5 + length) / 6) ** alpha)


def _listed(finished: _Beams, live: _Beams, penalty: float) -> list[list[Hypothesis]]:
    results = []
    for row in range(len(finished.scores)):
        ended = bool(finished.scores[row, 0] > _NEVER)
        chosen = finished if ended else live._replace(scores=live.scores / penalty)
        kept = len(chosen.scores[row]) if chosen.tokens.shape[2] else 0
        results.append(
            [
                # The end is no part of what a caller reads.
                Hypothesis(tokens[: length - 1 if ended else length], score)
                for score, tokens, length in zip(
                    chosen.scores[row].tolist()[:kept],
                    chosen.tokens[row].tolist(),
                    chosen.lengths[row].tolist(),
                    strict=False,
                )
                if score > _NEVER
            ]
        )
    return results
