"""A text is the same with every cache and beside every other text, and transformers' own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fused_attention.models.generation import CACHES, Prompts, generate, stream
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.sampling import GREEDY, Sampling

VOCABULARY, NEW = 60, 20
PROMPTS = [[1, 2, 3], list(range(30)), [5], [7] * 11]
DRAWN = Sampling(1.3, 20, 0.9, seed=7)
KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary, windows": {
        "positions": "rotary",
        "norm": "rms_norm",
        "gated": True,
        "kv_heads": 2,
        "windows": (6, None),
    },
    "alibi": {"positions": "alibi", "windows": (9,)},
    "post-norm": {"positions": "sinusoidal", "norm_first": False},
}


def model(name: str = "learned", **options: Any) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "dim": 48, "layers": 3, "heads": 4, "max_length": 64}
    return GPT(GPTConfig(**(sizes | {"initializer_range": 0.3} | KINDS[name] | options))).eval()


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", KINDS)
def test_the_same_tokens_in_every_way(name: str, sampling: Sampling) -> None:
    made = model(name)
    exact = generate(made, PROMPTS, max_new_tokens=NEW, sampling=sampling, cache="none")
    assert [len(text) for text in exact] == [NEW] * 4
    assert len({tuple(text) for text in exact}) > 2
    for cache in ("contiguous", "paged"):
        assert generate(made, PROMPTS, max_new_tokens=NEW, sampling=sampling, cache=cache) == exact
    for row, prompt in enumerate(PROMPTS):
        alone = dataclasses.replace(sampling, seed=sampling.seed + row)
        assert generate(made, [prompt], max_new_tokens=NEW, sampling=alone) == [exact[row]]


def test_greedy_is_the_likeliest_token() -> None:
    made, text = model(), [3, 1, 4]
    for token in generate(made, [text], max_new_tokens=NEW)[0]:
        with torch.no_grad():
            assert token == int(made(torch.tensor([text]))[0, -1].argmax())
        text = [*text, token]


def test_is_transformers_text() -> None:
    transformers = pytest.importorskip("transformers")
    made = model("rotary, windows", windows=(6,), activation="silu", bias=False, out_bias=False,
                 feed_forward_bias=False)  # fmt: skip
    settings = made.config.to_hf()
    assert settings.pop("model_type") == "mistral"
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**settings)).eval()
    theirs.load_state_dict(made.hf_state_dict(), strict=False)
    theirs.tie_weights()
    length = max(map(len, PROMPTS))
    rows = [[0] * (length - len(prompt)) + prompt for prompt in PROMPTS]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    given = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    out = theirs.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert generate(made, PROMPTS, max_new_tokens=NEW) == out[:, length:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_tensors(side: str) -> None:
    made, length = model(), 30
    pad = [length - len(prompt) for prompt in PROMPTS]
    before = pad if side == "left" else [0] * 4
    rows = torch.full((4, length), 59)
    mask = torch.zeros(4, length, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        at = slice(before[row], before[row] + len(prompt))
        rows[row, at], mask[row, at] = torch.tensor(prompt), 1
    exact = generate(made, PROMPTS, max_new_tokens=5)
    assert generate(made, rows, attention_mask=mask, max_new_tokens=5) == exact
    whole = generate(made, [row.tolist() for row in rows], max_new_tokens=5)
    assert generate(made, rows, max_new_tokens=5) == whole


@pytest.mark.parametrize("cache", CACHES)
def test_a_text_ends_at_a_stop_token(cache: Any) -> None:
    made = model()
    whole = generate(made, PROMPTS, max_new_tokens=NEW)
    stop = [whole[0][4], whole[2][9]]

    def cut(text: list[int]) -> list[int]:
        return text[: next((n for n, token in enumerate(text) if token in stop), NEW)]

    texts = generate(made, PROMPTS, max_new_tokens=NEW, stop=stop, cache=cache)
    assert texts == [cut(text) for text in whole]
    steps = list(stream(made, PROMPTS, max_new_tokens=NEW, stop=stop, cache=cache))
    assert [[token for token in row if token is not None] for row in zip(*steps, strict=True)] == (
        texts
    )
    assert len(steps) == max(len(text) for text in texts)


def test_the_models_own_stop_tokens() -> None:
    whole = generate(model(), PROMPTS[:1], max_new_tokens=NEW)[0]
    ends = model(eos_tokens=(whole[3],))
    assert generate(ends, PROMPTS[:1], max_new_tokens=NEW)[0] == whole[: whole.index(whole[3])]
    assert generate(ends, PROMPTS[:1], max_new_tokens=NEW, stop=())[0] == whole
    assert generate(ends, PROMPTS[:1], max_new_tokens=NEW, stop=whole[:1]) == [[]]


def test_tokens_come_one_by_one() -> None:
    made = model().train()
    steps = stream(made, PROMPTS, max_new_tokens=NEW)
    assert made.training
    first = next(steps)
    assert not made.training and len(first) == 4
    steps.close()
    assert made.training


MISTAKES: dict[str, tuple[Callable[[GPT], object], str]] = {
    "no tokens": (lambda m: stream(m, [[1], []], max_new_tokens=1), "prompts: must have at least"),
    "no prompts": (lambda m: stream(m, [], max_new_tokens=1), "prompts: must have at least one"),
    "nothing to do": (
        lambda m: stream(m, PROMPTS, max_new_tokens=0),
        "max_new_tokens: must be at least 1, got 0",
    ),
    "too long": (
        lambda m: stream(m, PROMPTS, max_new_tokens=35),
        "max_new_tokens: must leave prompt and text at most 64 tokens, got 35 after 30",
    ),
    "unknown cache": (
        lambda m: stream(m, PROMPTS, max_new_tokens=1, cache="ring"),  # type: ignore[arg-type]
        "cache: must be one of contiguous, paged, none, got ring",
    ),
    "mask for lists": (
        lambda m: stream(m, PROMPTS, max_new_tokens=1, attention_mask=torch.ones(4, 30)),
        "attention_mask: goes with a tensor of prompts, got lists",
    ),
    "wrong mask": (
        lambda m: masked(m, torch.ones(2, 3)),
        r"attention_mask: must have shape \(2, 4\), got \(2, 3\)",
    ),
    "hole in a mask": (
        lambda m: masked(m, torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])),
        "attention_mask: must hide tokens at one end of a row only",
    ),
    "both ends": (
        lambda m: masked(m, torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])),
        "attention_mask: must hide tokens at one end of a row only",
    ),
    "floating point": (
        lambda m: stream(m, torch.ones(2, 4), max_new_tokens=1),
        r"prompts: must be integer \[batch, length\], got torch.float32 \(2, 4\)",
    ),
}


def masked(made: GPT, mask: torch.Tensor) -> object:
    prompts: Prompts = torch.ones(2, 4, dtype=torch.int64)
    return stream(made, prompts, max_new_tokens=1, attention_mask=mask)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call(model())
