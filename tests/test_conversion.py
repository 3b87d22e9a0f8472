"""convert swaps nn.MultiheadAttention in place, says what it did, and can undo it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from door_reports import door_reports
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fused_attention.conversion import convert
from fused_attention.nn import MultiHeadAttention

DIM, HEADS = 16, 4


def transformer() -> nn.Transformer:
    torch.manual_seed(0)
    return nn.Transformer(DIM, HEADS, 2, 2, 32, dropout=0.0, batch_first=True)


def run(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    source, target = torch.randn(2, 9, DIM), torch.randn(2, 7, DIM)
    padding = torch.arange(9) >= torch.tensor([[6], [9]])
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    out: Tensor = model(source, target, tgt_mask=causal, tgt_is_causal=True, **masks)
    return out


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    run(model).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_results_and_gradients_stay() -> None:
    model = transformer()
    exact, exact_gradients = run(model), gradients(model)
    report = convert(model)
    assert len(report.swapped) == 6 and report.kept == {}
    assert "encoder.layers.0.self_attn" in report.swapped
    torch.testing.assert_close(run(model), exact)
    torch.testing.assert_close(gradients(model), exact_gradients)


def test_everything_else_stays() -> None:
    """Parameters, names, identities, hooks, optimizers: nobody notices but the forward."""
    model = transformer()
    attention = model.encoder.layers[0].self_attn
    parameters = dict(model.named_parameters())
    state, calls = {name: x.clone() for name, x in model.state_dict().items()}, []
    attention.register_forward_hook(lambda *_: calls.append("hook"))
    convert(model)
    assert model.encoder.layers[0].self_attn is attention
    assert type(attention) is MultiHeadAttention
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    run(model)
    assert calls == ["hook"]


def test_inference_goes_through_the_modules() -> None:
    """Torch's layers would pass them by, and hand nested tensors on."""
    model = transformer().eval()
    with torch.no_grad():
        exact = run(model)
        convert(model)
        with door_reports() as lines:
            out = run(model)
    assert len(lines) > 0 and all("nn.MultiHeadAttention -> cpu" in line for line in lines)
    torch.testing.assert_close(out, exact)


@pytest.mark.parametrize("training", [False, True])
def test_revert(training: bool) -> None:
    model = transformer().train(training)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        exact = run(model)
        report = convert(model)
        run(model)
        report.revert()
        report.revert()  # does nothing
        assert torch.equal(run(model), exact)
    for name, module in model.named_modules():
        assert type(module) is not MultiHeadAttention
        assert set(vars(module)) == set(before[name])
        assert getattr(module, "use_nested_tensor", None) == before[name].get("use_nested_tensor")


def test_learned_values_stay_after_revert() -> None:
    model = transformer()
    report = convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients(model)
    optimizer.step()
    learned = run(model)
    report.revert()
    torch.testing.assert_close(run(model), learned)


def test_the_model_itself() -> None:
    model = nn.MultiheadAttention(DIM, HEADS, batch_first=True, add_bias_kv=True, kdim=6, vdim=6)
    query, key = torch.randn(2, 3, DIM), torch.randn(2, 4, 6)
    exact = model(query, key, key)
    report = convert(model)
    assert report.swapped == ("(the model itself)",)
    torch.testing.assert_close(model(query, key, key), exact)
    assert convert(model).swapped == ()


def test_a_module_in_two_places() -> None:
    shared = nn.MultiheadAttention(DIM, HEADS)
    model = nn.ModuleDict({"one": shared, "other": shared})
    assert convert(model).swapped == ("one",)
    assert model["one"] is model["other"] and type(shared) is MultiHeadAttention


def test_copies_of_a_converted_model() -> None:
    model = transformer()
    convert(model)
    torch.testing.assert_close(run(copy.deepcopy(model)), run(model))


@pytest.mark.parametrize("training", [False, True])
def test_compiles(training: bool) -> None:
    model = transformer().train(training)
    exact = run(model)
    convert(model)
    torch.compiler.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(fast), exact)
    torch.compiler.reset()


class Derived(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class TheirAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def with_a_forward_of_its_own() -> nn.Module:
    module = nn.MultiheadAttention(DIM, HEADS)
    module.forward = lambda *args, **kwargs: args
    return module


def parametrized() -> nn.Module:
    module = nn.MultiheadAttention(DIM, HEADS)
    parametrize.register_parametrization(module, "in_proj_weight", Negative())
    return module


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "derived": (lambda: Derived(DIM, HEADS), "Derived is derived from nn.MultiheadAttention"),
    "parametrized": (parametrized, "is derived from nn.MultiheadAttention"),
    "replaced forward": (with_a_forward_of_its_own, "its forward was replaced"),
    "large heads": (
        lambda: nn.MultiheadAttention(1040, 2),
        "no fused kernel can (cpu: head and value dims go up to 512, got 520)",
    ),
    "dropout of everything": (
        lambda: nn.MultiheadAttention(DIM, HEADS, dropout=1.0),
        "dropout must be in [0, 1 - 2**-17), got 1.0",
    ),
    "complex": (
        lambda: nn.MultiheadAttention(DIM, HEADS, dtype=torch.complex64),
        "no kernel takes torch.complex64",
    ),
    "another class": (TheirAttention, "TheirAttention is no nn.MultiheadAttention"),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    make, reason = KEPT[name]
    model = nn.ModuleDict({"it": make(), "other": nn.MultiheadAttention(DIM, HEADS)})
    kind = type(model["it"])
    report = convert(model)
    assert report.swapped == ("other",) and type(model["it"]) is kind
    assert list(report.kept) == ["it"] and reason in report.kept["it"]
    assert str(report).splitlines()[:3] == ["swapped 1", "  other", "kept 1"]
    assert str(report).splitlines()[3].startswith("  it: ")


def test_a_model_without_parameters_in_memory() -> None:
    with torch.device("meta"):
        model = transformer()
    assert len(convert(model).swapped) == 6


def test_no_module() -> None:
    with pytest.raises(TypeError, match="model: must be an nn.Module, got Tensor"):
        convert(torch.zeros(1))  # type: ignore[arg-type]
