"""BLEU with several references, perplexity."""

from __future__ import annotations

import math

import pytest

from fused_attention.training.metrics import bleu, exact_match, perplexity


def test_bleu_takes_any_reference():
    hypotheses = ["il veut vous parler .", "je suis l\u00e0 maintenant ."]
    references = [
        ["il veut te parler .", "il veut vous parler ."],
        ["je suis l\u00e0 maintenant ."],
    ]
    assert bleu(hypotheses, references) == pytest.approx(100)
    fewer = [references[0][:1], references[1]]
    assert 20 < bleu(hypotheses, fewer) < 90
    assert bleu(["x y z w v", "u"], references) < 5


def test_exact_match_takes_any_reference():
    references = [["T AH M EY T OW", "T AH M AA T OW"], ["K AE T"], ["D AO G"]]
    assert exact_match(["T AH M AA T OW", "K AE T", "D AA G"], references) == pytest.approx(2 / 3)
    assert exact_match(["x", "K AE", "D AO G S"], references) == 0


def test_perplexity():
    assert perplexity(math.log(84)) == pytest.approx(84)
    assert perplexity(1e6) == math.inf
