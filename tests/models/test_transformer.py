"""The encoder-decoder against torch.nn.Transformer, Marian and Pegasus; loss, padding, caches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
import transformers
from budget import assert_same, assert_within_budget
from torch import Tensor, nn

from fused_attention.models.transformer import Transformer
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.translation import Decoder
from fused_attention.models.weights import read_settings
from fused_attention.nn.sequences import Sequences

SETTINGS: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "scale_embedding": True,
    "dropout": 0.0,
}
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "heads": 4,
    "hidden_dim": 40,
    "dropout": 0.0,
}
SEPARATE = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 50}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "marian": ("Marian", {}),
    "marian-swish": ("Marian", {"activation_function": "swish", "scale_embedding": False}),
    "marian-separate": ("Marian", SEPARATE),
    "pegasus": ("Pegasus", {}),
}


def theirs(kind: str, spread: bool = True) -> Any:
    """A tiny model of transformers in evaluation mode."""
    torch.manual_seed(0)
    family, changes = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**{**SETTINGS, **changes})
    class_name = {"Marian": "MarianMTModel", "Pegasus": "PegasusForConditionalGeneration"}[family]
    model = getattr(transformers, class_name)(config)
    if spread:
        positions = [p for n, p in model.named_parameters() if "embed_positions" in n]
        kept = [p.clone() for p in positions]
        tiny.spread(model)
        with torch.no_grad():
            for parameter, values in zip(positions, kept, strict=True):
                parameter.copy_(values)
            model.final_logits_bias.normal_()
    return model.eval()


def ours(model: Any) -> Transformer:
    one = Transformer(TransformerConfig.from_hf(model.config.to_dict())).to(model.dtype)
    one.load_hf_state_dict(model.state_dict())
    return one.eval()


def pairs(limit: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source, target and their lengths."""
    torch.manual_seed(1)
    source, target = torch.randint(3, limit, (3, 9)), torch.randint(3, limit, (3, 7))
    target[:, 0] = 1
    return source, target, torch.tensor([9, 4, 6]), torch.tensor([3, 7, 5])


def their_logits(model: Any) -> Tensor:
    source, target, source_lengths, _ = pairs()
    mask = torch.arange(9) < source_lengths[:, None]
    with torch.no_grad():
        return model(source, attention_mask=mask.long(), decoder_input_ids=target).logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers(kind: str) -> None:
    model = tiny.exact_model(theirs(kind))
    source, target, source_lengths, target_lengths = pairs()
    expected, one = their_logits(model), ours(model)
    actual = one(source, target, source_lengths)
    # Their table of positions was rounded to fp32.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    shorter = one(source, target, source_lengths, target_lengths)
    real = torch.arange(7) < target_lengths[:, None]
    assert_same(shorter[real], actual[real])
    assert not shorter[~real].any()


@pytest.mark.parametrize("kind", ["marian", "pegasus"])
def test_fp32_is_as_close_as_rounding(kind: str) -> None:
    model = theirs(kind, spread=False)
    source, target, source_lengths, _ = pairs()
    with torch.no_grad():
        actual = ours(model)(source, target, source_lengths)
    assert (actual - their_logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["marian", "pegasus"])
def test_bf16_within_the_budget(kind: str) -> None:
    model = theirs(kind).bfloat16()
    exact = their_logits(tiny.exact_model(copy.deepcopy(model)))
    source, target, source_lengths, _ = pairs()
    with torch.no_grad():
        actual = ours(model)(source, target, source_lengths)
    assert_within_budget(actual, exact, their_logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_transformers(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path / "theirs")
    one = Transformer.from_pretrained(tmp_path / "theirs")
    one.save_pretrained(tmp_path / "ours", max_shard_bytes=5000)
    back, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    missing = {name for names in report.values() for name in names}
    assert all("embed_positions" in name for name in missing), report
    state = back.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight), name
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert again.config == one.config
    for name, weight in one.weights().items():
        assert torch.equal(again.weights()[name], weight), name


def test_own_settings_are_saved_under_our_names(tmp_path: Path) -> None:
    one = Transformer(TransformerConfig(**SMALL)).eval()  # the paper's order of sine and cosine
    one.save_pretrained(tmp_path)
    assert read_settings(tmp_path)["model_type"] == "fused_attention"
    again, (source, target, *_) = Transformer.from_pretrained(tmp_path), pairs()
    assert again.config == one.config
    assert torch.equal(again(source, target), one(source, target))


def torch_model(norm_first: bool, activation: str) -> nn.Transformer:
    torch.manual_seed(0)
    one = nn.Transformer(32, 4, 2, 3, 40, 0.0, activation, batch_first=True, norm_first=norm_first)
    return tiny.spread(one).double().eval()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_transformer(norm_first: bool, activation: str) -> None:
    model = torch_model(norm_first, activation)
    config = TransformerConfig(
        **SMALL, norm_first=norm_first, final_norm=True, activation=activation
    )
    one = Transformer(config).double().eval()
    before = one.source.weight.clone()
    one.load_torch_state_dict(model.state_dict())
    assert torch.equal(one.source.weight, before)
    for name, weight in model.state_dict().items():
        assert torch.equal(one.torch_state_dict()[name], weight), name
    *_, source_lengths, target_lengths = pairs()
    x, y = torch.randn(3, 9, 32).double(), torch.randn(3, 7, 32).double()
    hidden = torch.arange(9) >= source_lengths[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    expected = model(
        x, y, tgt_mask=causal, src_key_padding_mask=hidden, memory_key_padding_mask=hidden
    )
    rows = Sequences(lengths=source_lengths)
    states = one.encode(x, rows)
    assert_same(one.decode(y, states, memory_sequences=rows), expected)
    with pytest.raises(ValueError, match=r"but it lacks decoder\.layers\.2\."):
        state = {n: w for n, w in model.state_dict().items() if "decoder.layers.2" not in n}
        one.load_torch_state_dict(state)


@pytest.mark.parametrize("norm_first", [False, True])
def test_loss_is_the_mean_over_what_exists(norm_first: bool) -> None:
    config = TransformerConfig(**SMALL, norm_first=norm_first, label_smoothing=0.2)
    one = Transformer(config).double()
    source, target, source_lengths, target_lengths = pairs()
    logits = one(source, target[:, :-1], source_lengths)
    labels = target[:, 1:].masked_fill(torch.arange(1, 7) >= target_lengths[:, None], -100)

    def expected(smoothing: float) -> Tensor:
        flat = logits.flatten(0, 1)
        return nn.functional.cross_entropy(flat, labels.flatten(), label_smoothing=smoothing)

    batch = (source, target, source_lengths, target_lengths)
    torch.testing.assert_close(one.loss(*batch), expected(0.2))
    expected(0.2).backward()
    gradients = {n: p.grad.clone() for n, p in one.named_parameters()}
    one.zero_grad()
    one.loss(*batch).backward()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-8)
    one.eval()
    torch.testing.assert_close(one.loss(*batch), expected(0.0))


def test_padding_is_not_looked_at() -> None:
    one = Transformer(TransformerConfig(**SMALL)).eval()
    source, target, source_lengths, target_lengths = pairs()
    batch = (source, target, source_lengths, target_lengths)
    before, loss = one(*batch), one.loss(*batch)
    source[torch.arange(9) >= source_lengths[:, None]] = 5
    target[torch.arange(7) >= target_lengths[:, None]] = 5
    assert torch.equal(one(*batch), before) and torch.equal(one.loss(*batch), loss)


@pytest.mark.parametrize("kind", ["marian", "pegasus", "marian-separate"])
def test_steps_with_a_cache_give_the_same_logits(kind: str) -> None:
    one = ours(theirs(kind)).double()
    source, target, source_lengths, _ = pairs()
    expected = one(source, target, source_lengths)
    decoder = Decoder(one, source, source_lengths, max_length=7)
    steps = torch.stack([decoder.step(tokens) for tokens in target.T], 1)
    assert_same(steps, expected)


def test_reordered_rows_go_on_from_their_new_pasts() -> None:
    one = ours(theirs("marian")).double()
    source, _, source_lengths, _ = pairs()
    torch.manual_seed(2)
    tokens, rows = torch.randint(3, 50, (4, 9)), torch.tensor([2, 0, 0, 4, 5, 3, 8, 8, 6])
    decoder = Decoder(one, source, source_lengths, rows=3, max_length=4)
    for before in tokens[:3]:
        decoder.step(before)
    decoder.reorder(rows)
    fresh = Decoder(one, source, source_lengths, rows=3, max_length=4)
    for before in tokens[:3]:
        fresh.step(before[rows])
    assert_same(decoder.step(tokens[3]), fresh.step(tokens[3]))


def test_tied_embeddings_are_one_parameter() -> None:
    shared = Transformer(TransformerConfig(**SMALL))
    assert shared.target is shared.source and shared.head is None
    assert sum(name.startswith(("source", "target", "head")) for name in shared.weights()) == 1
    apart = Transformer(TransformerConfig(**SMALL, target_vocab_size=50, tied=False))
    assert apart(*pairs()[:2]).shape == (3, 7, 50)


WRONG_SETTINGS = {
    "model_type: must be one of marian, pegasus, got 't5'": {"model_type": "t5"},
    "decoder_ffn_dim: must be the encoder's, got 8": {"decoder_ffn_dim": 8},
    "normalize_before: must be False for this model, got True": {"normalize_before": True},
    "static_position_embeddings: must be True": {"static_position_embeddings": False},
    "activation_function: must be one of": {"activation_function": "mish"},
}


@pytest.mark.parametrize("message", WRONG_SETTINGS)
def test_settings_beyond_the_model_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig.from_hf({"model_type": "marian", **SETTINGS, **WRONG_SETTINGS[message]})


def test_wrong_configurations() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing: must be in \[0, 1\), got 1"):
        TransformerConfig(label_smoothing=1.0)
    with pytest.raises(ValueError, match="dim: must be even for sinusoidal positions, got 33"):
        TransformerConfig(dim=33)
    with pytest.raises(ValueError, match="target_vocab_size: must be None in Pegasus, got 7"):
        TransformerConfig(norm_first=True, target_vocab_size=7).to_hf()
    with pytest.raises(ValueError, match="lengths: must have shape"):
        source, target, *_ = pairs()
        Transformer(TransformerConfig(**SMALL))(source, target, torch.tensor([1]))
