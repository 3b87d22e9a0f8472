"""Beam search against a search written out in lists, against all sequences, and transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fused_attention.models.beam_search import beam_search
from fused_attention.models.transformer import Transformer
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.translation import translate

VOCABULARY, END = 6, 2
Found = list[tuple[list[int], float]]


class Table:
    """A "model" whose logits are drawn for each whole prefix."""

    def __init__(self, starts: list[int], beams: int) -> None:
        self.histories: list[tuple[int, ...]] = [()] * (len(starts) * beams)
        self.steps = 0

    @staticmethod
    def scores(history: tuple[int, ...]) -> Tensor:
        """fp32 log-probabilities [VOCABULARY]."""
        seed = sum((token + 1) * 11**place for place, token in enumerate(history))
        generator = torch.Generator().manual_seed(seed)
        return torch.log_softmax(2 * torch.randn(VOCABULARY, generator=generator), -1)

    def step(self, tokens: Tensor) -> Tensor:
        self.steps += 1
        self.histories = [(*h, t) for h, t in zip(self.histories, tokens.tolist(), strict=True)]
        return torch.stack([self.scores(history) for history in self.histories])

    def reorder(self, rows: Tensor) -> None:
        self.histories = [self.histories[row] for row in rows.tolist()]


def penalty(length: int, alpha: float) -> float:
    return float(((5 + length) / 6) ** alpha)


def search(starts: list[int], beams: int, max_length: int, alpha: float, **options: Any) -> Any:
    table = Table(starts, beams)
    found = beam_search(
        table.step,
        table.reorder,
        torch.tensor(starts),
        **{"end": END, **options},
        max_length=max_length,
        beams=beams,
        length_penalty=alpha,
    )
    return [[(h.tokens, h.score) for h in row] for row in found], table.steps


def in_lists(start: int, beams: int, max_length: int, alpha: float) -> Found:
    """The same search, one row, without tensors and without stopping early."""
    live: Found = [([], 0.0)]
    finished: Found = []
    for length in range(1, max_length + 1):
        options = [
            ([*tokens, token], score + Table.scores((start, *tokens))[token].item())
            for tokens, score in live
            for token in range(VOCABULARY)
        ]
        options.sort(key=lambda one: -one[1])
        options = options[: 2 * beams]
        ended = [(t[:-1], s / penalty(length, alpha)) for t, s in options if t[-1] == END]
        finished = sorted(finished + ended, key=lambda one: -one[1])[:beams]
        live = [one for one in options if one[0][-1] != END][:beams]
    return finished or [(t, s / penalty(max_length, alpha)) for t, s in live]


def assert_found(actual: Found, expected: Found) -> None:
    assert [tokens for tokens, _ in actual] == [tokens for tokens, _ in expected]
    scores = [[score for _, score in one] for one in (actual, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_a_batch_is_searched_as_each_row_alone(beams: int, alpha: float) -> None:
    starts = [0, 1, 3, 4, 5]
    found, _ = search(starts, beams, 7, alpha)
    for start, row in zip(starts, found, strict=True):
        expected = in_lists(start, beams, 7, alpha)
        # A search that stops early has found the best, perhaps not yet all of the others.
        assert_found(row, expected)


def test_enough_beams_find_the_likeliest_of_all() -> None:
    start, length, alpha = 1, 4, 0.6
    sequences = []
    for count in range(length):
        for tokens in itertools.product([t for t in range(VOCABULARY) if t != END], repeat=count):
            whole = (start, *tokens, END)
            score = sum(Table.scores(whole[:n])[whole[n]].item() for n in range(1, len(whole)))
            sequences.append((list(tokens), score / penalty(count + 1, alpha)))
    best = max(sequences, key=lambda one: one[1])
    found, _ = search([start], 200, length, alpha)
    assert_found(found[0][:1], [best])


def test_one_beam_takes_the_likeliest_token() -> None:
    history = [4]
    while len(history) <= 12 and history[-1] != END:
        history.append(int(Table.scores(tuple(history)).argmax()))
    found, _ = search([4], 1, 12, 0.0)
    assert found[0][0][0] == [token for token in history[1:] if token != END]


def test_it_stops_when_nothing_can_become_better() -> None:
    def certain(tokens: Tensor) -> Tensor:
        """Token 3, then the end, almost surely."""
        logits = torch.zeros(len(tokens), VOCABULARY)
        logits[range(len(tokens)), [END if t == 3 else 3 for t in tokens.tolist()]] = 20.0
        calls.append(1)
        return logits

    calls: list[int] = []
    start = torch.tensor([0, 1])
    found = beam_search(certain, lambda rows: None, start, end=END, max_length=50, beams=2)
    assert [row[0].tokens for row in found] == [[3], [3]]
    assert len(calls) < 10


def test_a_longer_hypothesis_may_still_overtake() -> None:
    def undecided(tokens: Tensor) -> Tensor:
        """The end or, nearly as likely, token 3, after which only the length counts."""
        calls.append(1)
        logits = torch.full((len(tokens), VOCABULARY), -50.0)
        logits[:, 3] = 0.0
        if len(calls) == 1:
            logits[:, END] = 1e-3
        if len(calls) == 10:
            logits[:, END] = 50.0
        return logits

    calls: list[int] = []
    options: dict[str, Any] = {"end": END, "max_length": 10, "beams": 1}
    start = torch.tensor([0])
    (found,) = beam_search(undecided, lambda rows: None, start, length_penalty=2.0, **options)
    assert found[0].tokens == [3] * 9
    calls.clear()
    (found,) = beam_search(undecided, lambda rows: None, start, length_penalty=0.0, **options)
    assert found[0].tokens == [] and len(calls) < 10


def test_what_never_ends_is_given_as_it_is() -> None:
    found, steps = search([1, 3], 3, 5, 0.6, forbidden=[END])
    assert steps == 5
    for row in found:
        assert len(row) == 3 and all(len(tokens) == 5 and END not in tokens for tokens, _ in row)


def test_several_ends_and_forbidden_tokens() -> None:
    found, _ = search([0, 1, 3], 3, 8, 0.6, end=[END, 5], forbidden=[4])
    for row in found:
        assert row and all(not {END, 5, 4} & set(tokens) for tokens, _ in row)


def test_few_tokens_and_no_rows() -> None:
    found, _ = search([1], 50, 1, 0.6)  # more beams than tokens: only the end can have ended
    assert [tokens for tokens, _ in found[0]] == [[]]
    none = beam_search(
        lambda tokens: torch.zeros(0, VOCABULARY),
        lambda rows: None,
        torch.zeros(0, dtype=torch.int64),
        end=END,
        max_length=3,
    )
    assert none == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams: must be at least 1, got 0"),
        ({"max_length": 0}, "max_length: must be at least 1, got 0"),
        ({"length_penalty": -1.0}, "length_penalty: must be at least 0, got -1.0"),
    ],
)
def test_wrong_calls(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(
            lambda tokens: torch.zeros(1, VOCABULARY),
            lambda rows: None,
            torch.tensor([1]),
            **{"end": END, "max_length": 3, **options},
        )


def marian() -> tuple[Any, Transformer]:
    """A model of transformers whose targets end soon, and ours with its weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict.fromkeys(("vocab_size", "decoder_vocab_size"), 24)
    settings |= {f"{side}_layers": 2 for side in ("encoder", "decoder")}
    settings |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    settings |= {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
    settings |= {"d_model": 16, "pad_token_id": 0, "eos_token_id": END}
    settings |= {"decoder_start_token_id": 0, "forced_eos_token_id": None, "init_std": 0.6}
    model = transformers.MarianMTModel(transformers.MarianConfig(**settings)).eval()
    model.final_logits_bias[0, END] = 2.0
    one = Transformer(TransformerConfig.from_hf(model.config.to_dict()))
    one.load_hf_state_dict(model.state_dict())
    return model, one.eval()


@pytest.mark.parametrize("beams", [1, 3])
def test_translations_are_transformers(beams: int) -> None:
    model, one = marian()
    source = torch.randint(3, 24, (12, 7))
    lengths = torch.randint(1, 8, (12,))
    mask = (torch.arange(7) < lengths[:, None]).long()
    expected = model.generate(
        source,
        attention_mask=mask,
        num_beams=beams,
        do_sample=False,
        length_penalty=0.0,
        early_stopping="never" if beams > 1 else False,
        max_new_tokens=12,
        bad_words_ids=[[0]],
    ).tolist()
    found = translate(one, source, lengths, beams=beams, length_penalty=0.0, max_length=12)
    ended = 0
    for row, theirs in zip(found, expected, strict=True):
        if END in theirs:  # unfinished ones rank differently there
            ended += 1
            assert row[0].tokens == theirs[1 : theirs.index(END)]
    assert ended >= 6


def test_translation_does_not_depend_on_the_cache_or_the_batch() -> None:
    _, one = marian()
    source, lengths = torch.randint(3, 24, (5, 7)), torch.tensor([7, 2, 5, 1, 6])
    found = translate(one, source, lengths, beams=3)
    for row, length in enumerate(lengths.tolist()):
        states = one.encode(one.source(source[row : row + 1, :length]) + _positions(one, length))
        kept = [torch.zeros(3, 0, dtype=torch.int64)]

        def step(tokens: Tensor, kept: list[Tensor] = kept, states: Tensor = states) -> Tensor:
            kept[0] = torch.cat((kept[0], tokens[:, None]), 1)
            y = one.target(kept[0]) + _positions(one, kept[0].shape[1])
            return one.logits(one.decode(y, states.expand(3, -1, -1)))[:, -1]

        def reorder(rows: Tensor, kept: list[Tensor] = kept) -> None:
            kept[0] = kept[0][rows]

        start = torch.zeros(1, dtype=torch.int64)
        options: dict[str, Any] = {"end": END, "max_length": 57, "beams": 3, "forbidden": [0]}
        (alone,) = beam_search(step, reorder, start, **options)
        assert_found([tuple(h) for h in found[row]], [tuple(h) for h in alone])


def _positions(one: Transformer, length: int) -> Tensor:
    return one.positions(torch.arange(length))


def test_translation_needs_evaluation_mode() -> None:
    _, one = marian()
    with pytest.raises(RuntimeError, match="model: must be in evaluation mode"):
        translate(one.train(), torch.ones(1, 2, dtype=torch.int64))
