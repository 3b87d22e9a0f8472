"""BERT and ModernBERT against transformers: outputs, losses, gradients, padding of every kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
import transformers
from budget import assert_same, assert_within_budget
from torch import Tensor

from fused_attention.models.bert import BERT
from fused_attention.models.bert_config import BERTConfig
from fused_attention.nn.block import Block
from fused_attention.nn.sequences import Sequences, pack

CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "ModernBertModel",
    "ModernBertForMaskedLM",
)
LENGTH, KINDS = 12, ("none", "right", "left", "holes")


def theirs(class_name: str, spread: bool = True, **changes: Any) -> Any:
    """A tiny model of transformers in evaluation mode."""
    torch.manual_seed(0)
    family = "modernbert" if class_name.startswith("Modern") else "bert"
    model = getattr(transformers, class_name)(tiny.config(family, **changes))
    return (tiny.spread(model) if spread else model).eval()


def ours(model: Any) -> BERT:
    """The same model on the fused kernels, in the same dtype."""
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    one = BERT(BERTConfig.from_hf(settings)).to(model.dtype)
    one.load_hf_state_dict(model.state_dict())
    return one.eval()


def batch(class_name: str, kind: str = "none") -> dict[str, Tensor]:
    inputs = {"input_ids": tiny.tokens(length=LENGTH)}
    mask = tiny.padding(kind, length=LENGTH)
    if mask is not None:
        inputs["attention_mask"] = mask
    if not class_name.startswith("Modern"):
        inputs["token_type_ids"] = (torch.arange(LENGTH) > 6).long().expand(3, -1).contiguous()
    return inputs


def outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' model gives, by the names of ours."""
    found = model(**inputs, output_hidden_states=True)
    names = {
        "pooled": "pooler_output",
        "mlm_logits": "prediction_logits",
        "nsp_logits": "seq_relationship_logits",
    }
    if "MaskedLM" in type(model).__name__:
        names["mlm_logits"] = "logits"
    if "NextSentence" in type(model).__name__:
        names["nsp_logits"] = "logits"
    result = {ours: found[name] for ours, name in names.items() if found.get(name) is not None}
    result["hidden"] = found.get("last_hidden_state", found.hidden_states[-1])
    return result


def assert_outputs(model: Any, one: BERT, inputs: dict[str, Tensor], check: Any) -> None:
    real = inputs.get("attention_mask", torch.ones(3, LENGTH)).bool()
    rows = {"hidden": real, "mlm_logits": real}
    with torch.no_grad():
        expected, actual = outputs(model, inputs), one(**inputs)._asdict()
    # transformers gives the pooled state of the plain model only.
    assert {name for name, x in actual.items() if x is not None} - {"pooled"} == {*expected} - {
        "pooled"
    }
    for name, value in expected.items():
        at = rows.get(name, slice(None))
        check(actual[name][at], value[at], name)
        if name in rows:
            assert not actual[name][~real].any(), f"{name}: padding must be zeros"


@pytest.mark.parametrize(
    ("class_name", "kind"),
    # A window over padding is refused, see below.
    [(c, k) for c in CLASSES for k in KINDS if not (c.startswith("Modern") and k == "holes")],
)
def test_outputs_are_transformers(class_name: str, kind: str) -> None:
    model = tiny.exact_model(theirs(class_name))

    def check(actual: Tensor, expected: Tensor, name: str) -> None:
        if kind == "left" and name in ("pooled", "nsp_logits"):
            return  # transformers pools the padding in front of a row
        if class_name.startswith("Modern"):  # transformers rotates in fp32
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        else:
            assert_same(actual, expected, name)

    assert_outputs(model, ours(model), batch(class_name, kind), check)


@pytest.mark.parametrize("class_name", ["BertForPreTraining", "ModernBertForMaskedLM"])
def test_fp32_is_as_close_as_rounding(class_name: str) -> None:
    model = theirs(class_name, spread=False)

    def close(actual: Tensor, expected: Tensor, name: str) -> None:
        assert (actual - expected).abs().max() <= 1e-5, name

    assert_outputs(model, ours(model), batch(class_name, "right"), close)


@pytest.mark.parametrize("class_name", ["BertForPreTraining", "ModernBertForMaskedLM"])
def test_bf16_within_the_budget(class_name: str) -> None:
    model = theirs(class_name, hidden_size=64, num_hidden_layers=3).bfloat16()
    inputs = batch(class_name, "right")
    with torch.no_grad():
        exact = outputs(tiny.exact_model(copy.deepcopy(model)), inputs)
        baseline, actual = outputs(model, inputs), ours(model)(**inputs)._asdict()
    real = inputs["attention_mask"].bool()
    for name in ("hidden", "mlm_logits"):
        three = (one[name][real] for one in (actual, exact, baseline))
        assert_within_budget(*three, name=name)


@pytest.mark.parametrize("class_name", ["BertForPreTraining", "ModernBertForMaskedLM"])
def test_loss_and_gradients_are_transformers(class_name: str) -> None:
    model = tiny.exact_model(theirs(class_name))
    one, inputs = ours(model), batch(class_name, "right")
    labels = torch.where(torch.rand(3, LENGTH) < 0.4, inputs["input_ids"], -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    extra = {"next_sentence_label": torch.tensor([0, 1, 1])} if "Pre" in class_name else {}
    expected = model(**inputs, labels=labels, **extra).loss
    lengths = inputs.pop("attention_mask").sum(1)
    actual = one.loss(**inputs, labels=labels, lengths=lengths, **extra)
    # transformers' loss is computed in fp32.
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-6, atol=0)
    expected.backward()
    actual.backward()
    gradients = copy.deepcopy(one)
    for mine, source in zip(gradients.parameters(), one.parameters(), strict=True):
        mine.data = torch.zeros_like(source) if source.grad is None else source.grad
    of_theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in gradients.hf_state_dict().items():
        if name in of_theirs:
            torch.testing.assert_close(
                gradient, of_theirs[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert not gradient.any(), name


def test_nothing_masked_costs_nothing() -> None:
    one = ours(theirs("BertForMaskedLM"))
    ids = tiny.tokens()
    loss = one.loss(ids, torch.full_like(ids, -100))
    loss.backward()
    assert loss == 0 and not one.tokens.weight.grad.any()


@pytest.mark.parametrize("class_name", ["BertForPreTraining", "ModernBertForMaskedLM"])
def test_packed_lengths_and_masks_are_one_batch(class_name: str) -> None:
    one = ours(theirs(class_name)).double()
    inputs = batch(class_name, "right")
    mask = inputs.pop("attention_mask")
    lengths = mask.sum(1)
    expected = one(**inputs, attention_mask=mask)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(mask == 0, 1)  # padding is not looked at
    from_lengths = one(**inputs, sequences=Sequences(lengths=lengths))
    packed_inputs = {name: pack(x, lengths) for name, x in inputs.items()}
    for known in (
        Sequences.packed_from(lengths),
        Sequences(cu_seqlens=Sequences.packed_from(lengths).cu_seqlens),
    ):
        packed = one(**packed_inputs, sequences=known)
        for name, value in expected._asdict().items():
            if value is None:
                continue
            assert_same(getattr(from_lengths, name), value, name)
            per_token = name in ("hidden", "mlm_logits")
            assert_same(getattr(packed, name), pack(value, lengths) if per_token else value, name)
    labels = torch.where(mask == 1, inputs["input_ids"], -100)
    assert_same(
        one.loss(**packed_inputs, labels=pack(labels, lengths), sequences=known),
        one.loss(**inputs, labels=labels, lengths=lengths),
    )


def test_embeddings_of_sequences() -> None:
    one = ours(theirs("BertModel"))
    inputs = batch("BertModel", "right")
    hidden, mask = one(**inputs).hidden, inputs["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    close = torch.testing.assert_close
    close(one.embed(**inputs, normalize=False), mean, rtol=1e-5, atol=1e-6)
    close(one.embed(**inputs).norm(dim=-1), torch.ones(3))
    close(one.embed(**inputs, pooling="first", normalize=False), hidden[:, 0])
    inputs["attention_mask"][1] = 0
    for pooling in ("mean", "first"):
        vectors = one.embed(**inputs, pooling=pooling)
        assert not vectors[1].any() and vectors[0].any()
    inputs["attention_mask"][:] = 0
    assert not one.embed(**inputs).any() and not one(**inputs).hidden.any()


def test_local_layers_see_their_window() -> None:
    config = BERTConfig.modern(
        vocab_size=64,
        dim=32,
        layers=2,
        heads=4,
        hidden_dim=40,
        max_length=64,
        local_layers=(0, 1),
        window=3,
        pooler=False,
        mlm_head=False,
    )
    torch.manual_seed(0)
    one = tiny.spread(BERT(config)).eval()
    ids = tiny.tokens(1, 20)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % 64
    far = (one(ids).hidden != one(changed).hidden).any(-1)[0].nonzero().flatten()
    assert far.tolist() == list(range(4, 17))  # two layers of three to each side


def test_dropout_is_for_training_only() -> None:
    config = BERTConfig(vocab_size=64, dim=32, layers=1, heads=4, hidden_dim=40, max_length=64)
    one, ids = BERT(config), tiny.tokens()
    assert not torch.equal(one(ids).hidden, one(ids).hidden)
    one.eval()
    assert torch.equal(one(ids).hidden, one(ids).hidden)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    one = ours(theirs("BertForMaskedLM")).train()
    ids, grads = tiny.tokens(), []
    for checkpointing in (False, True):
        for block in one.blocks:
            assert isinstance(block, Block)
            block.checkpointing = checkpointing
        one.zero_grad()
        one.loss(ids, ids).backward()
        grads.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
    assert_same(*grads)


WRONG_CALLS = {
    "input_ids: must be int64 or int32, got torch.float32": {"input_ids": torch.ones(1, 2)},
    r"input_ids: must be \[batch, length\], got shape \(2,\)": {"input_ids": torch.ones(2).long()},
    r"attention_mask: must have input_ids' shape \[3, 12\], got shape \(3, 11\)": {
        "attention_mask": torch.ones(3, 11)
    },
    "sequences: must not be given beside attention_mask": {
        "attention_mask": torch.ones(3, 12),
        "sequences": Sequences(lengths=torch.tensor([1, 2, 3])),
    },
    r"lengths: must have shape \[3\], got shape \(2,\)": {
        "sequences": Sequences(lengths=torch.tensor([1, 2]))
    },
    r"input_ids: must be packed, \[total\], as sequences are, got shape \(3, 12\)": {
        "sequences": Sequences(cu_seqlens=torch.tensor([0, 12]))
    },
    "cu_seqlens: must end at total 5, got 4": {
        "input_ids": torch.ones(5).long(),
        "sequences": Sequences(cu_seqlens=torch.tensor([0, 4])),
    },
    "input_ids: must have at most 64 tokens, max_length, got 65": {
        "input_ids": torch.ones(1, 65).long()
    },
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_wrong_calls(message: str) -> None:
    one = ours(theirs("BertModel"))
    with pytest.raises((TypeError, ValueError), match=message):
        one(**{"input_ids": tiny.tokens(), **WRONG_CALLS[message]})


def test_wrong_calls_of_models_without() -> None:
    plain, modern = ours(theirs("BertModel")), ours(theirs("ModernBertForMaskedLM"))
    ids = tiny.tokens()
    with pytest.raises(ValueError, match="pooling: must be mean or first, got max"):
        plain.embed(ids, pooling="max")
    with pytest.raises(ValueError, match="labels: need a model with mlm_head"):
        plain.loss(ids, ids)
    with pytest.raises(ValueError, match="next_sentence_label: needs a model with nsp_head"):
        modern.loss(ids, ids, next_sentence_label=torch.zeros(3).long())
    with pytest.raises(ValueError, match="token_type_ids: need a model with token_types"):
        modern(ids, token_type_ids=ids)
    with pytest.raises(ValueError, match="attention_mask: must be one run of tokens in each row"):
        modern(ids, attention_mask=tiny.padding("holes"))
