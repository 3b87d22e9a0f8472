"""Whole models through "fused_attention" compute what eager ones do, within the error budget."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

pytest.importorskip("transformers", minversion="5.4")

import tiny_transformers as tiny  # noqa: E402
import transformers  # noqa: E402
from tiny_transformers import DECODERS, MODELS, SEQ2SEQ  # noqa: E402

import fused_attention.integrations.transformers  # noqa: E402, F401
from fused_attention.integrations import _transformers_attention as layer  # noqa: E402

FUSED = "fused_attention"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the package's functions was called."""
    counter: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            counter[name] += 1
            counter.update(key for key, value in options.items() if isinstance(value, Tensor))
            return function(*args, **options)

        return counted

    for name in ("attention", "attention_varlen"):
        monkeypatch.setattr(layer, name, counting(name, getattr(layer, name)))
    return counter


def assert_as_eager(
    name: str, model: Any, inputs: dict[str, Tensor], rows: Tensor | None = None, **options: Any
) -> None:
    """Logits and gradients of the fused model against the eager one, both against fp64."""
    rows = tiny.real_rows(name, inputs) if rows is None else rows
    eager, fused = (tiny.with_attention(model, how) for how in ("eager", FUSED))
    exact = tiny.exact_model(model)

    def run(one: Any, seed: int) -> tuple[Tensor, Tensor]:
        drawn = {**inputs, **tiny.batch(name, seed=seed)}
        return tiny.logits_and_gradients(one, drawn, rows, **options)

    # Eager attention is now and then right by luck, so its error is the largest of a few.
    draws = [(run(exact, seed), run(eager, seed)) for seed in range(4)]
    found = run(fused, 0)
    for index, (what, factor) in enumerate((("logits", 2.0), ("gradients", GRADIENT_FACTOR))):
        (exact64, eager32), *more = [(draw[0][index], draw[1][index]) for draw in draws]
        assert_within_budget(
            found[index], exact64, eager32, factor=factor, name=what, more_draws=more
        )


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_model_computes_what_eager_does(name: str, kind: str, calls: Counter[str]) -> None:
    inputs = tiny.batch(name, kind)
    assert_as_eager(name, tiny.model(name), inputs, use_cache=False)
    layers = {"t5": 6, "bart": 6}.get(name, 2)
    assert calls["attention"] + calls["attention_varlen"] == layers
    if kind == "left" and name in DECODERS:
        assert calls["attention_varlen"] == layers  # padding is skipped, not hidden by a bias
    if kind == "right":
        assert calls["kv_lengths"] and calls["bias"] == (6 if name == "t5" else 0)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_right_padded_rows_too(name: str) -> None:
    """Also what padded queries compute is what eager computes: they see the real keys."""
    inputs = tiny.batch(name, "right")
    rows = torch.ones_like(inputs["input_ids"]).bool()
    assert_as_eager(name, tiny.model(name), inputs, rows)


def test_left_padded_rows_are_zero() -> None:
    model = tiny.with_attention(tiny.model("llama"), FUSED)
    seen = []
    attention = model.model.layers[0].self_attn
    attention.o_proj.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    inputs = tiny.batch("llama", "left")
    model(**inputs)
    padded = inputs["attention_mask"] == 0
    assert not seen[0][padded].any() and seen[0][~padded].any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "t5"])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    model = tiny.model(name).to(dtype)
    inputs = tiny.batch(name, "right")
    rows = tiny.real_rows(name, inputs)
    eager, fused = (tiny.with_attention(model, how) for how in ("eager", FUSED))
    exact = tiny.exact_model(model)
    with torch.no_grad():
        logits = [one(**inputs).logits[rows] for one in (fused, exact, eager)]
    assert_within_budget(*logits, name="logits")


def test_autocast() -> None:
    model = tiny.with_attention(tiny.model("llama"), FUSED)
    inputs = tiny.batch("llama", "left")
    rows = tiny.real_rows("llama", inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, gradients = tiny.logits_and_gradients(model, inputs, rows)
    assert logits.isfinite().all() and gradients.isfinite().all()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_generate(name: str, kind: str, cache: str, calls: Counter[str]) -> None:
    inputs = tiny.batch(name, kind)
    inputs.pop("decoder_input_ids", None)

    def generate(how: str) -> Any:
        return tiny.with_attention(tiny.model(name), how).generate(
            **inputs,
            max_new_tokens=9,
            min_new_tokens=9,
            do_sample=False,
            cache_implementation=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )

    eager, fused = generate("eager"), generate(FUSED)
    assert torch.equal(fused.sequences, eager.sequences)
    torch.testing.assert_close(fused.logits, eager.logits, rtol=1e-4, atol=1e-4)
    assert calls["attention"] + calls["attention_varlen"] >= 2 * 9


def test_beams_and_contrast_of_lengths() -> None:
    """Beam search reorders the cache; a second turn continues from one."""
    inputs = tiny.batch("llama", "left")
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    found = [
        tiny.with_attention(tiny.model("llama"), how).generate(**inputs, **options)
        for how in ("eager", FUSED)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_several_tokens_after_a_cache(name: str, kind: str) -> None:
    """A chunk of queries that follows keys in a cache, padding among them."""
    first, second = tiny.tokens(), tiny.tokens(length=5, seed=2)
    mask = tiny.padding(kind)
    whole = None if mask is None else torch.cat((mask, torch.ones_like(second)), 1)
    logits = []
    for how in ("eager", FUSED):
        model = tiny.with_attention(tiny.model(name), how)
        with torch.no_grad():
            cache = model(first, attention_mask=mask, use_cache=True).past_key_values
            logits.append(model(second, attention_mask=whole, past_key_values=cache).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5", "bart"])
def test_gradient_checkpointing(name: str) -> None:
    model = tiny.with_attention(tiny.model(name), FUSED).train()
    inputs = tiny.batch(name, "left")
    rows = tiny.real_rows(name, inputs)
    expected = tiny.logits_and_gradients(model, inputs, rows, use_cache=False)
    for reentrant in (False, True):
        tiny.checkpoint(model, use_reentrant=reentrant)
        found = tiny.logits_and_gradients(model, inputs, rows, use_cache=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_dropout(name: str) -> None:
    setting = {"llama": "attention_dropout", "bert": "attention_probs_dropout_prob"}[name]
    model = tiny.with_attention(tiny.model(name, **{setting: 0.5}), FUSED)
    inputs = tiny.batch(name)
    rows = tiny.real_rows(name, inputs)
    evaluated = model(**inputs).logits
    model.train()

    def trained(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([x.flatten() for x in tiny.logits_and_gradients(model, inputs, rows)])

    once = trained(0)
    assert torch.equal(trained(0), once) and not torch.equal(trained(1), once)
    tiny.checkpoint(model)
    torch.testing.assert_close(trained(0), once)  # recomputed with the same dropout
    model.eval()
    torch.testing.assert_close(model(**inputs).logits, evaluated)


def test_a_few_steps_of_training() -> None:
    losses = []
    for how in ("eager", FUSED):
        model = tiny.with_attention(tiny.model("llama"), how).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        inputs = tiny.batch("llama", "right")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    eager, fused = losses[:4], losses[4:]
    assert fused[-1] < fused[0]
    assert fused == pytest.approx(eager, rel=1e-4)


POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [*range(12)], [0, *range(11)]])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_packed_sequences(name: str, calls: Counter[str]) -> None:
    inputs = {**tiny.batch(name), "position_ids": POSITIONS}
    rows = torch.ones_like(POSITIONS).bool()
    assert_as_eager(name, tiny.model(name), inputs, rows, use_cache=False)
    assert calls["attention_varlen"] == 2 and calls["bias"] == 0


def test_packed_sequences_are_independent() -> None:
    model = tiny.with_attention(tiny.model("llama"), FUSED)
    ids, positions = tiny.tokens(batch=1), POSITIONS[:1]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    alone = [model(part).logits for part in ids.split([5, 3, 4], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_sequence_ends_from_a_collator(as_tensors: bool, calls: Counter[str]) -> None:
    """cu_seq_lens and max_length, which padding-free collators make, say where sequences end."""
    model = tiny.with_attention(tiny.model("mistral"), FUSED)
    ids = tiny.tokens(batch=1)
    ends = torch.tensor([0, 5, 8, 12], dtype=torch.int32)
    longest = torch.tensor(5) if as_tensors else 5
    ends_of = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    lengths = {"max_length_q": longest, "max_length_k": longest}
    packed = model(ids, position_ids=POSITIONS[:1], **ends_of, **lengths).logits
    assert calls["attention_varlen"] == 2
    alone = [model(part).logits for part in ids.split([5, 3, 4], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("banded", [False, True])
def test_masks_made_by_the_caller(banded: bool, as_float: bool, calls: Counter[str]) -> None:
    """4-D: hidden where False, or added to the scores; a band is recognised."""
    ids = tiny.tokens(length=48)  # long enough that looking at the mask pays
    visible = torch.ones(48, 48).tril().bool().expand(3, 1, -1, -1).clone()
    if not banded:
        visible[1, 0, 7, 2] = False
        visible[2, 0, 4, 9] = True
    lowest = torch.finfo(torch.float32).min
    added = torch.zeros(visible.shape).masked_fill(~visible, lowest)
    eager, fused = (tiny.with_attention(tiny.model("llama"), how) for how in ("eager", FUSED))
    found = fused(ids, attention_mask=added if as_float else visible).logits
    expected = eager(ids, attention_mask=added).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert calls["bias"] == (0 if banded else 2)


def test_from_pretrained(tmp_path: Path) -> None:
    model = tiny.model("llama")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=FUSED)
    assert loaded.config._attn_implementation == FUSED
    ids = tiny.tokens()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    loaded.set_attn_implementation("sdpa")  # and back
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_attentions_are_refused_in_the_config() -> None:
    model = tiny.with_attention(tiny.model("llama"), FUSED)
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True
