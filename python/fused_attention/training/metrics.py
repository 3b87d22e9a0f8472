"""How good a model's outputs are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU by sacrebleu's definition; each hypothesis has one reference or more.

    Args:
        hypotheses: one for each sentence.
        references: all references of each sentence.
    """
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    # Sentences with fewer references than others have None in their place.
    streams: Any = [[own[n] if n < len(own) else None for own in references] for n in range(most)]
    return float(corpus_bleu(list(hypotheses), streams).score)


def exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of hypotheses that are one of their references, letter by letter."""
    right = [one in own for one, own in zip(hypotheses, references, strict=True)]
    return sum(right) / len(right)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
