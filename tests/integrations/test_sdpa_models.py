"""Whole models within sdpa(): forward, backward, inference and compiled, equal to torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from door_reports import door_reports
from integrations.toy_models import DiffusionBlock, VisionTransformer
from torch import Tensor, nn

from fused_attention.integrations.torch_sdpa import sdpa
from fused_attention.nn import recognition

DIM, HEADS = 24, 4
Inputs = tuple[tuple[Tensor, ...], dict[str, Any]]


@pytest.fixture(autouse=True)
def masks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "_FEWEST_SCORES", 0)


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, **options)


def padding(*lengths: int) -> Tensor:
    return torch.arange(9) >= torch.tensor(lengths)[:, None]


def transformer_inputs() -> Inputs:
    source, target = torch.randn(2, 9, DIM), torch.randn(2, 7, DIM)
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(7),
        "src_key_padding_mask": padding(6, 9),
        "memory_key_padding_mask": padding(6, 9),
    }
    return (source, target), masks


def causal_padded_inputs() -> Inputs:
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    return (torch.randn(9, 2, DIM),), {"src_mask": mask, "src_key_padding_mask": padding(5, 9)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs], int]] = {
    "encoder layer": (
        lambda: layer(batch_first=True, norm_first=True),
        lambda: ((torch.randn(2, 9, DIM),), {}),
        1,
    ),
    "encoder layer, length first": (layer, causal_padded_inputs, 1),
    "encoder": (
        lambda: nn.TransformerEncoder(layer(batch_first=True), 2),
        lambda: ((torch.randn(2, 9, DIM),), {"src_key_padding_mask": padding(9, 4)}),
        2,
    ),
    "transformer": (
        lambda: nn.Transformer(DIM, HEADS, 1, 1, 32, dropout=0.0, batch_first=True),
        transformer_inputs,
        3,
    ),
    "vision transformer": (
        VisionTransformer,
        lambda: ((torch.randn(2, 3, 16, 16),), {}),
        2,
    ),
    "diffusion block": (
        DiffusionBlock,
        lambda: ((torch.randn(2, DIM, 3, 4), torch.randn(2, 9, 12), ~padding(7, 2)), {}),
        2,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> tuple[nn.Module, Inputs, int]:
    torch.manual_seed(0)
    build, inputs, attentions = MODELS[name]
    return build(), inputs(), attentions


def to(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = inputs
    return tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def results(model: Callable[..., Tensor], inputs: Inputs, parameters: Any) -> list[Tensor]:
    args, kwargs = inputs
    out = model(*args, **kwargs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    return [out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), list(parameters))]


def assert_right(found: list[Tensor], model: nn.Module, inputs: Inputs) -> None:
    """Within the budget that torch's own results leave."""
    baseline = results(model, inputs, model.parameters())
    double = copy.deepcopy(model).double()
    exact = results(double, to(torch.float64, inputs), double.parameters())
    names = ["out", *(name for name, _ in model.named_parameters())]
    for name, *triple in zip(names, found, exact, baseline, strict=True):
        # Gradients that are sums of cancelling terms have errors of the terms' size.
        draws = [(e, b) for e, b in zip(exact, baseline, strict=True) if e.shape == triple[1].shape]
        factor = 2.0 if name == "out" else GRADIENT_FACTOR
        assert_within_budget(*triple, factor=factor, name=name, more_draws=draws)


@every_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_and_backward(name: str, training: bool) -> None:
    model, inputs, attentions = make(name)
    model.train(training)
    with sdpa(), door_reports() as lines:
        found = results(model, inputs, model.parameters())
    assert 1 <= len(lines) <= attentions and all(" -> cpu: " in line for line in lines), lines
    assert_right(found, model, inputs)


@every_model
def test_inference(name: str) -> None:
    model, (args, kwargs), _ = make(name)
    model.eval()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*to(torch.float64, (args, kwargs))[0], **kwargs)
        with sdpa(), door_reports() as lines:
            found = model(*args, **kwargs)
    assert lines and all(" -> cpu: " in line for line in lines), lines
    if name == "encoder":  # torch's path gives zeros for padded positions
        keep = ~kwargs["src_key_padding_mask"]
        found, exact = found[keep], exact[keep]
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-5)


@every_model
def test_compiled_follows_the_scope(name: str) -> None:
    """Compiled outside, run inside: compiled anew, for our operator."""
    model, inputs, _ = make(name)
    fullgraph = not inputs[1]  # torch's own layers look into their masks, which breaks the graph
    torch.compiler.reset()
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph.code)
        return graph

    fast = torch.compile(model, fullgraph=fullgraph, backend=backend)
    outside = fast(*inputs[0], **inputs[1])
    torchs = len(graphs)
    with sdpa():
        inside = results(fast, inputs, model.parameters())
    ours = graphs[torchs:]
    assert not any("fused_attention" in code for code in graphs[:torchs])
    assert ours and any("fused_attention" in code for code in ours)
    assert not any("scaled_dot_product_attention" in code for code in ours)
    assert_right(inside, model, inputs)
    assert torch.equal(fast(*inputs[0], **inputs[1]), outside)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["transformer", "vision transformer", "diffusion block"])
def test_compiled_inside_in_one_graph(name: str) -> None:
    """With masks of which torch's own code must ask whether they are causal, too."""
    model, inputs, _ = make(name)
    torch.compiler.reset()
    with sdpa():
        fast = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = results(fast, inputs, model.parameters())
    assert_right(found, model, inputs)
    torch.compiler.reset()


def test_masks_of_the_layers_become_band_and_lengths() -> None:
    model, (args, kwargs), _ = make("encoder layer, length first")
    with sdpa(), door_reports() as lines:
        model(*args, **kwargs)
    assert "nn.MultiheadAttention -> cpu" in lines[0] and "bias" not in lines[0]
    assert "band causal(offset=0)" in lines[0] and "kv_lengths" in lines[0]


def test_weights_are_torchs_business() -> None:
    attention, x = nn.MultiheadAttention(DIM, HEADS, batch_first=True), torch.randn(2, 9, DIM)
    exact = attention(x, x, x)
    with sdpa(), door_reports() as lines:
        torch.testing.assert_close(attention(x, x, x), exact, rtol=0, atol=0)
    assert "because need_weights=True asks for the weights" in lines[0]


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no biases": {"bias": False},
    "added key": {"add_bias_kv": True},
    "key of zeros": {"add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 10},
}


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_multihead_attention(name: str, batched: bool) -> None:
    torch.manual_seed(0)
    options = ATTENTIONS[name]
    attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options)
    widths = (DIM, options.get("kdim", DIM), options.get("vdim", DIM))
    tensors = tuple(torch.randn(2, 9, width) for width in widths)
    mask = padding(5, 9)
    if not batched:
        tensors, mask = tuple(x[0] for x in tensors), mask[0]
    call = {"key_padding_mask": mask, "need_weights": False}
    exact, _ = attention(*tensors, **call)
    with sdpa(), door_reports() as lines:
        found, weights = attention(*tensors, **call)
    assert weights is None and "nn.MultiheadAttention -> cpu" in lines[0]
    torch.testing.assert_close(found, exact)


def test_multihead_attention_raises_torchs_errors() -> None:
    attention, x = nn.MultiheadAttention(DIM, HEADS, batch_first=True), torch.randn(2, 9, DIM)
    wrong: tuple[dict[str, Any], ...] = (
        {"attn_mask": torch.zeros(9, 8)},
        {"key_padding_mask": torch.zeros(3, 9)},
        {"is_causal": True},
    )
    for call in wrong:
        with pytest.raises(Exception) as theirs:  # noqa: B017
            attention(x, x, x, need_weights=False, **call)
        with sdpa(), pytest.raises(type(theirs.value)) as ours:
            attention(x, x, x, need_weights=False, **call)
        assert str(ours.value) == str(theirs.value)
