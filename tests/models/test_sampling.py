"""What is drawn follows the distribution that the rules leave, and the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fused_attention.models.sampling import GREEDY, Sampling

LOGITS = torch.tensor([[1.0, 3.0, -1.0, 2.0, 0.0], [0.0, 0.0, 5.0, 0.0, -9.0]])
INF = -torch.inf


def probabilities(**rules: float) -> torch.Tensor:
    return Sampling(**rules).probabilities(LOGITS)  # type: ignore[arg-type]


def test_temperature() -> None:
    torch.testing.assert_close(probabilities(temperature=0.5), (LOGITS * 2).softmax(-1))
    one_hot = torch.eye(5)[[1, 2]]
    assert torch.equal(probabilities(temperature=0.0), one_hot)


def test_top_k() -> None:
    kept = torch.tensor([[INF, 3.0, INF, 2.0, INF], [INF, INF, 5.0, INF, INF]])
    found = probabilities(top_k=2)
    torch.testing.assert_close(found[0], kept[0].softmax(-1))
    assert found[1].count_nonzero() >= 2  # the second place is shared
    assert torch.equal(probabilities(top_k=50), probabilities())


def test_top_p() -> None:
    likely = LOGITS.softmax(-1)[0]  # 0.086, 0.636, 0.012, 0.234, 0.032
    for top_p, tokens in (
        (0.5, [1]),
        (0.63, [1]),
        (0.65, [1, 3]),
        (0.9, [0, 1, 3]),
        (1.0, range(5)),
    ):
        found = probabilities(top_p=top_p)[0]
        assert found.nonzero().flatten().tolist() == list(tokens), top_p
        kept = torch.zeros(5).index_copy(0, torch.tensor(tokens), likely[list(tokens)])
        torch.testing.assert_close(found, kept / kept.sum())


def test_draws_have_the_distribution() -> None:
    sampling, draws = Sampling(temperature=1.5, top_k=4, seed=3), 4000
    rows = LOGITS[:1].expand(draws, -1)
    tokens = sampling.choose(rows, sampling.generators(draws))
    shares = tokens.bincount(minlength=5) / draws
    exact = sampling.probabilities(LOGITS)[0]
    assert (shares - exact).abs().max() < 4 * (0.25 / draws) ** 0.5  # four standard deviations
    assert shares[2] == 0


def test_a_row_draws_by_its_own_seed() -> None:
    logits = torch.randn(6, 50)
    sampling = Sampling(seed=10)
    generators = sampling.generators(6)
    first, second = (sampling.choose(logits, generators) for _ in range(2))
    assert not torch.equal(first, second)
    for row in range(6):
        alone = Sampling(seed=10 + row)
        own = alone.generators(1)
        assert alone.choose(logits[row : row + 1], own) == first[row]
        assert alone.choose(logits[row : row + 1], own) == second[row]


def test_greedy() -> None:
    assert GREEDY.choose(LOGITS, GREEDY.generators(2)).tolist() == [1, 2]


MISTAKES: dict[str, Callable[[], Sampling]] = {
    "temperature: must be finite and at least 0, got -1": lambda: Sampling(-1),
    "temperature: must be finite and at least 0, got nan": lambda: Sampling(float("nan")),
    "top_k: must be at least 1, got 0": lambda: Sampling(top_k=0),
    r"top_p: must be in \(0, 1\], got 1.5": lambda: Sampling(top_p=1.5),
    r"top_p: must be in \(0, 1\], got 0": lambda: Sampling(top_p=0),
    r"seed: must be in \[0, 2\*\*62\), got -1": lambda: Sampling(seed=-1),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
