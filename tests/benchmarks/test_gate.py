"""The gate lets right contenders pass and stops wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_attention import Band
from fused_attention.benchmarks import gate
from fused_attention.benchmarks.cases import Case, Inputs, square
from fused_attention.benchmarks.contenders import CONTENDERS, Contender, naive
from fused_attention.benchmarks.gate import formula_results, judge
from fused_attention.reference import attention_reference

CASES = (
    square(2, 2, 40, 16),
    square(1, 4, 70, 32, heads_kv=2, band=Band.causal(), dtype="bf16"),
    square(1, 2, 90, 16, band=Band.sliding(9)),
    square(1, 2, 60, 16, band=Band.window(5, 3), dtype="fp64"),
    square(1, 2, 50, 16, band=Band.causal(), dtype="fp16", backward=False),
    Case(2, 4, 1, 1, 80, 16, band=Band.causal(), backward=False),
    Case(1, 2, 2, 9, 33, 16, band=Band.causal()),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_contenders_are_right(case: Case) -> None:
    verdicts = judge(case, case.make_inputs(), CONTENDERS)
    assert {name: v for name, v in verdicts.items() if not v.right} == {}


def _unmasked(case: Case, inputs: Inputs) -> Tensor:
    return naive(case, inputs._replace(mask=None))


def _one_key_too_many(case: Case, inputs: Inputs) -> Tensor:
    assert inputs.mask is not None
    wider = inputs.mask | inputs.mask.roll(1, dims=-1)
    return naive(case, inputs._replace(mask=wider))


def _scaled(case: Case, inputs: Inputs) -> Tensor:
    return naive(case, inputs) * 1.01


def _not_a_number(case: Case, inputs: Inputs) -> Tensor:
    return naive(case, inputs) + torch.nan


def _wrong_gradient(case: Case, inputs: Inputs) -> Tensor:
    out = naive(case, inputs)
    return out.detach() + 1.1 * (out - out.detach())


@pytest.mark.parametrize(
    "attend", [_unmasked, _one_key_too_many, _scaled, _not_a_number, _wrong_gradient]
)
def test_wrong_contender_is_stopped(attend: object) -> None:
    case = square(1, 2, 64, 16, band=Band.causal())
    contender = Contender("wrong", attend)  # type: ignore[arg-type]
    verdict = judge(case, case.make_inputs(), [contender])["wrong"]
    assert not verdict.right
    assert verdict.ratio > 1.0
    if attend is _wrong_gradient:
        assert verdict.worst != "out"


def test_contender_that_raises_is_not_right() -> None:
    def refuse(case: Case, inputs: Inputs) -> Tensor:
        raise NotImplementedError("not on Sundays\nand other reasons")

    case = square(1, 1, 8, 4)
    verdict = judge(case, case.make_inputs(), [Contender("lazy", refuse)])["lazy"]
    assert not verdict.right
    assert verdict.failure == "not on Sundays"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_chunks_give_what_the_whole_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CHUNK_BYTES", 7 * 8 * case.len_k * case.heads_q)
    inputs = case.make_inputs()
    chunked = formula_results(case, inputs, torch.float64)
    leaves = [t.detach().double().requires_grad_() for t in inputs[:3]]
    out, _ = attention_reference(*leaves, band=case.band)
    gradients = torch.autograd.grad(out, leaves, inputs.grad_out.double())
    whole = dict(zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True))
    assert chunked.keys() == (whole.keys() if case.backward else {"out"})
    for name, actual in chunked.items():
        torch.testing.assert_close(actual, whole[name])
