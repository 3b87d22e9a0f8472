"""torch.compile takes models through "fused_attention" whole, without a look at the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.4")

import tiny_transformers as tiny  # noqa: E402
from tiny_transformers import transformers  # noqa: E402

import fused_attention.integrations.transformers  # noqa: E402, F401

FUSED = "fused_attention"


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True, **options)


def assert_same_when_compiled(name: str, kind: str, model: Any) -> None:
    inputs = tiny.batch(name, kind)
    rows = tiny.real_rows(name, inputs)
    expected = tiny.logits_and_gradients(model, inputs, rows, use_cache=False)
    model.forward = compiled(model.forward)
    found = tiny.logits_and_gradients(model, inputs, rows, use_cache=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "left"), ("bert", "right"), ("mistral", "none")]
)
def test_forward_and_backward(name: str, kind: str) -> None:
    assert_same_when_compiled(name, kind, tiny.with_attention(tiny.model(name), FUSED))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "t5"])
def test_more_models(name: str) -> None:
    assert_same_when_compiled(name, "left", tiny.with_attention(tiny.model(name), FUSED))


@pytest.mark.slow
def test_gradient_checkpointing() -> None:
    model = tiny.with_attention(tiny.model("llama"), FUSED).train()
    tiny.checkpoint(model, use_reentrant=False)
    assert_same_when_compiled("llama", "left", model)


def test_lengths_may_change() -> None:
    """One graph for all lengths, with padding and without it another."""
    model = tiny.with_attention(tiny.model("mistral"), FUSED)
    call = compiled(model, dynamic=True)
    for length in (12, 17, 23):
        inputs = {
            "input_ids": tiny.tokens(length=length),
            "attention_mask": tiny.padding("left", length=length),
        }
        with torch.no_grad():
            found = call(**inputs, use_cache=False).logits
            expected = model(**inputs, use_cache=False).logits
        rows = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[rows], expected[rows], rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_generate_with_a_static_cache(name: str) -> None:
    inputs = tiny.batch(name, "left")
    options: dict[str, Any] = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
    expected = tiny.with_attention(tiny.model(name), "eager").generate(**inputs, **options)
    compile_config = transformers.CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    compile_config._compile_all_devices = True
    found = tiny.with_attention(tiny.model(name), FUSED).generate(
        **inputs, **options, cache_implementation="static", compile_config=compile_config
    )
    assert torch.equal(found, expected)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_forward_with_a_static_cache_of_ones_own() -> None:
    """Without generate the mask is made inside the graph, from a length that is a tensor."""
    logits = []
    ids, steps = tiny.tokens(), tiny.tokens(length=3, seed=3)
    mask = torch.cat((tiny.padding("left"), torch.ones_like(steps)), 1)
    for how in ("eager", FUSED):
        model = tiny.with_attention(tiny.model("mistral"), how)
        step = compiled(model) if how == FUSED else model
        cache = transformers.StaticCache(config=model.config, max_cache_len=15)
        with torch.no_grad():
            model(ids, attention_mask=mask[:, :12], past_key_values=cache)
            for index in range(3):
                one = steps[:, index : index + 1]
                seen = mask[:, : 13 + index]
                out = step(input_ids=one, attention_mask=seen, past_key_values=cache)
                logits.append(out.logits)
    torch.testing.assert_close(logits[3:], logits[:3], rtol=1e-4, atol=1e-4)
