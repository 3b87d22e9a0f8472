"""The operator of forward mode: numerical derivatives, the formula, vmap, what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from attention_inputs import AttentionInputs
from places import CPU_BACKENDS
from test_autograd import CASES, finite, forward_arguments, function_of
from torch import Tensor
from torch.func import jvp, vmap

from fused_attention import attention
from fused_attention.backends.call import Call
from fused_attention.forward_mode import jvp_op
from fused_attention.reference import attention_reference
from fused_attention.signature import DIFFERENTIABLE, FORWARD_TENSORS, JVP_TENSORS, join_jvp

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def directions(inputs: AttentionInputs) -> list[Tensor | None]:
    """Random tangents of query, key, value, bias and sinks; NaN where nothing may look."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.bias, inputs.sinks)
    generator = torch.Generator().manual_seed(7)
    found: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is not None:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            found.append(drawn.to(tensor.dtype).masked_fill(tensor.isnan(), math.nan))
        else:
            found.append(None)
    return found


def jvp_arguments(inputs: AttentionInputs, backend: str) -> list[Any]:
    *call, name = forward_arguments(inputs, backend)
    return join_jvp(Call(*call), directions(inputs), name)


def exact_jvp(inputs: AttentionInputs) -> tuple[Tensor, ...]:
    """By torch's forward mode through the reference's forward."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.bias, inputs.sinks)
    moved = [tensor for tensor in tensors if tensor is not None]
    along = [tangent for tangent in directions(inputs) if tangent is not None]
    names = [
        name
        for name, tensor in zip(("query", "key", "value", "bias", "sinks"), tensors, strict=True)
        if tensor is not None
    ]
    fixed = {n: o for n, o in inputs.reference_options.items() if n not in names}

    def function(*variables: Tensor) -> Any:
        return attention_reference(**dict(zip(names, variables, strict=True)), **fixed)

    primal, tangent = jvp(function, tuple(moved), tuple(along))
    return (*primal, *tangent)


@every_backend
@every_case
def test_equals_torchs_forward_mode_through_the_formula(case: AttentionCase, backend: str) -> None:
    inputs = case.make()
    found = jvp_op(*jvp_arguments(inputs, backend))
    for ours, exact in zip(found, exact_jvp(inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@every_backend
@every_case
def test_tangents_are_numerical_derivatives(case: AttentionCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradcheck(
        finite(function), tensors, fast_mode=True, check_forward_ad=True, check_backward_ad=False
    )


@every_backend
@every_case
def test_operator_is_well_behaved(case: AttentionCase, backend: str) -> None:
    torch.library.opcheck(jvp_op, tuple(jvp_arguments(case.make(), backend)))


MOVING = ("query", "key", "value", "bias", "sinks", "all")
MOVES = [
    pytest.param(case, moving, id=f"{case}-{moving}")
    for case in CASES
    for moving in MOVING
    if getattr(case, moving, True) and not (case.packed and moving == "bias")
]


@every_backend
@pytest.mark.parametrize(("case", "moving"), MOVES)
def test_vmap_equals_row_by_row(case: AttentionCase, moving: str, backend: str) -> None:
    """The tangents have rows, as under jacfwd; for "all" the tensors have rows, too."""
    arguments = jvp_arguments(case.make(), backend)
    tangents = range(FORWARD_TENSORS, JVP_TENSORS)
    wanted = [i for i, name in zip(tangents, MOVING, strict=False) if moving in (name, "all")]
    wanted += DIFFERENTIABLE if moving == "all" else ()
    wanted = [i for i in wanted if arguments[i] is not None]
    rows = [
        [a * (1 + r / 4) if i in wanted else a for i, a in enumerate(arguments)] for r in range(3)
    ]
    stacked = [torch.stack([row[i] for row in rows]) for i in wanted]

    def function(*moved: Tensor) -> Any:
        given = dict(zip(wanted, moved, strict=True))
        return jvp_op(*(given.get(i, a) for i, a in enumerate(arguments)))

    expected = [
        torch.stack(results) for results in zip(*(jvp_op(*row) for row in rows), strict=True)
    ]
    torch.testing.assert_close(vmap(function)(*stacked), tuple(expected))


@every_backend
def test_rows_without_keys_do_not_move(backend: str) -> None:
    inputs = AttentionCase("", batch=2, len_q=3, dtype=torch.float64, kv_lengths=(0, 3)).make()
    tangents = [None if t is None else torch.full_like(t, math.nan) for t in directions(inputs)]
    call = Call(*forward_arguments(inputs, backend)[:-1])
    out, lse, out_tangent, lse_tangent = jvp_op(*join_jvp(call, tangents, backend))
    assert (out[0] == 0).all() and (lse[0] == -math.inf).all()
    assert (out_tangent[0] == 0).all() and (lse_tangent[0] == 0).all()
    assert out_tangent[1].isnan().all()


@every_backend
def test_only_what_moves_counts(backend: str) -> None:
    """Along the value alone out is linear and lse stands still."""
    inputs = AttentionCase("", dtype=torch.float64).make()

    def function(value: Tensor) -> Any:
        return attention(inputs.query, inputs.key, value, return_lse=True, backend=backend)

    direction = torch.randn_like(inputs.value)
    _, (out_tangent, lse_tangent) = jvp(function, (inputs.value,), (direction,))
    torch.testing.assert_close(out_tangent, function(direction)[0])
    assert (lse_tangent == 0).all()
