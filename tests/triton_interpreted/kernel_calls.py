"""The kernels' own functions on the inputs of a case, without what lies above them.

What they write starts as NaN, what they must not look at is NaN, and no memory but that of their
arguments may be touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from attention_inputs import AttentionInputs
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor
from triton_interpreted.interpreter import only_memory_of

from fused_attention.backends.call import Call, Gradients, sink_gradient
from fused_attention.prepare import prepare
from fused_attention.reference import AttentionTangents, attention_jvp_reference
from fused_attention.triton_kernels.backward import attention_backward
from fused_attention.triton_kernels.jvp import attention_jvp


def call_of(inputs: AttentionInputs) -> Call:
    """What a backend gets of the problem."""
    options = dict(inputs.options)
    state = [options.pop(name, 0) for name in ("dropout_seed", "dropout_offset")]
    problem, call = prepare(inputs.query, inputs.key, inputs.value, **options)
    if problem.dropout_p:
        call = call._replace(rng_state=torch.tensor(state))
    return call


def poisoned(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, math.nan)


def gradients_of(
    inputs: AttentionInputs, fused: bool, with_grad_lse: bool = True
) -> tuple[Gradients, Tensor, Tensor | None]:
    """The gradients of one form of the backward, and the grad_out and grad_lse that they are of.

    grad_out and grad_lse are NaN in rows that see no key.
    """
    call = call_of(inputs)
    out, lse = (result.to(kind.dtype).contiguous() for result, kind in _results(inputs, call))
    grad_out, grad_lse = inputs.random_output_gradients()
    dead = lse == -math.inf
    dead_rows = (dead.mT if call.packed else dead).unsqueeze(-1)
    given_out = grad_out.masked_fill(dead_rows, math.nan).contiguous()
    given_lse = grad_lse.masked_fill(dead, math.nan).contiguous() if with_grad_lse else None
    delta = poisoned(lse)
    grads = [poisoned(tensor) for tensor in (call.query, call.key, call.value)]
    grad_bias = None if call.bias is None else poisoned(call.bias)
    args = (call, out, lse, given_out, given_lse, delta, *grads, grad_bias)
    own_memory = fused or call.bias is not None  # sums that are allocated below
    with nullcontext() if own_memory else only_memory_of(*call[:11], *args[1:]):
        attention_backward(*args, deterministic=not fused, fused=fused)
    grad_sinks = None if call.sinks is None else sink_gradient(call, lse, delta)
    found = Gradients(grads[0], grads[1], grads[2], grad_bias, grad_sinks)
    return found, grad_out, grad_lse if with_grad_lse else None


def directions(inputs: AttentionInputs) -> list[Tensor | None]:
    """Random tangents of query, key, value, bias and sinks; NaN where the tensors are."""
    generator = torch.Generator().manual_seed(7)
    found: list[Tensor | None] = []
    for tensor in (inputs.query, inputs.key, inputs.value, inputs.bias, inputs.sinks):
        if tensor is None:
            found.append(None)
        else:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            found.append(drawn.to(tensor.dtype).masked_fill(tensor.isnan(), math.nan))
    return found


def tangents_of(inputs: AttentionInputs, tangents: list[Tensor | None]) -> tuple[Tensor, ...]:
    """out, lse and the tangents of both."""
    call = call_of(inputs)
    results = [poisoned(x) for x in 2 * (call.empty_out(), call.empty_lse())]
    with only_memory_of(*call[:11], *tangents, *results):
        attention_jvp(call, tangents, *results)
    return tuple(results)


def _results(inputs: AttentionInputs, call: Call) -> Any:
    with torch.no_grad():
        return zip(inputs.reference(), (call.empty_out(), call.empty_lse()), strict=True)


def assert_tangents(
    inputs: AttentionInputs, tangents: list[Tensor | None], found: Sequence[Tensor]
) -> None:
    """out, lse and their tangents are within budget of those of the formula in fp64."""
    exact = _jvp_formula(inputs, tangents, torch.float64)
    baseline = list(_jvp_formula(inputs, tangents, inputs.query.dtype))
    # lse is fp32 whatever the dtype of the operands.
    baseline[1] = _jvp_formula(inputs, tangents, torch.float32)[1]
    names = ("out", "lse", "tangent of out", "tangent of lse")
    for n, name in enumerate(names):
        factor = GRADIENT_FACTOR if "tangent" in name else 2.0
        assert_within_budget(found[n], exact[n], baseline[n], factor=factor, name=name)


def _jvp_formula(
    inputs: AttentionInputs, tangents: list[Tensor | None], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    return attention_jvp_reference(
        *(inputs.query, inputs.key, inputs.value, AttentionTangents(*tangents)),
        compute_dtype=dtype,
        **inputs.reference_options,
    )
