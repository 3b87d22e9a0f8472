"""The arguments of the operators: their schemas, and how to take them apart.

fused_attention::forward takes <tensors>, <scalars>, backend; the two are the fields of Call. The
other operators put what they add around the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fused_attention.backends.call import Call

TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, "
    "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "
    "Tensor? rng_state"
)
SCALARS = (
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, float softcap, SymInt left, "
    "SymInt right, SymInt offset, float dropout_p, bool deterministic, str backend"
)

FORWARD_TENSORS = 11  # the tensors that lead Call
BACKWARD_TENSORS = 2 + FORWARD_TENSORS + 2  # and grad_out and grad_lse before, out and lse after

# Where forward's arguments have derivatives, in the order of backward's results.
BIAS = Call._fields.index("bias")
DIFFERENTIABLE = tuple(map(Call._fields.index, ("query", "key", "value", "bias", "sinks")))
JVP_TENSORS = FORWARD_TENSORS + len(DIFFERENTIABLE)  # and their tangents


def split_backward(args: Sequence[Any]) -> tuple[Sequence[Any], Call, Sequence[Any], Sequence[Any]]:
    """fused_attention::backward's arguments as (grad_out, grad_lse), Call, (out, lse), rest."""
    tensors, scalars = args[2 : BACKWARD_TENSORS - 2], args[BACKWARD_TENSORS:-2]
    results = args[BACKWARD_TENSORS - 2 : BACKWARD_TENSORS]
    return args[:2], Call(*tensors, *scalars), results, args[-2:]


def join_backward(
    grads: Sequence[Any], call: Call, results: Sequence[Any], rest: Sequence[Any]
) -> list[Any]:
    """The inverse of `split_backward`."""
    return [*grads, *call[:FORWARD_TENSORS], *results, *call[FORWARD_TENSORS:], *rest]


def split_jvp(args: Sequence[Any]) -> tuple[Call, Sequence[Any], Any]:
    """fused_attention::jvp's arguments as Call, the tangents, backend."""
    call = Call(*args[:FORWARD_TENSORS], *args[JVP_TENSORS:-1])
    return call, args[FORWARD_TENSORS:JVP_TENSORS], args[-1]


def join_jvp(call: Call, tangents: Sequence[Any], backend: Any) -> list[Any]:
    """The inverse of `split_jvp`."""
    return [*call[:FORWARD_TENSORS], *tangents, *call[FORWARD_TENSORS:], backend]
