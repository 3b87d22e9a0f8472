"""Whole calls of the Triton backend by the emulator, within budget of the fp64 reference."""

from __future__ import annotations

import torch
from additive_case import AdditiveCase
from attention_case import AttentionCase
from decode_case import DecodeCase
from local_case import LocalCase
from maps_case import MapsInputs
from triton_compiled.compile import running
from triton_compiled.emulate import Emulator
from triton_interpreted.kernel_calls import assert_tangents, call_of, directions

from fused_attention import attention, attention_varlen, attention_with_kv_cache
from fused_attention.forward_mode import jvp_op
from fused_attention.signature import join_jvp


def attend(
    case: AttentionCase, emulator: Emulator, *, backward: bool = True, deterministic: bool = False
) -> None:
    """Forward and backward through the public function."""
    inputs = case.make()
    leaves = inputs.require_gradients() if backward else {}
    function = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    with running(emulator):
        out, lse = function(
            *operands,
            return_lse=True,
            backend="triton",
            deterministic=deterministic,
            **inputs.options,
        )
        if backward:
            upstream = inputs.random_output_gradients()
            found = torch.autograd.grad((out, lse), list(leaves.values()), upstream)
    inputs.assert_forward(out.detach(), lse.detach())
    if backward:
        by_name = dict(zip(leaves, found, strict=True))
        ordered = [by_name.get(name) for name in ("query", "key", "value", "bias", "sinks")]
        inputs.assert_gradients(ordered, *upstream)


def move(case: AttentionCase, emulator: Emulator) -> None:
    """Forward mode along random tangents."""
    inputs = case.make()
    tangents = directions(inputs)
    with running(emulator):
        found = jvp_op(*join_jvp(call_of(inputs), tangents, "triton"))
    assert_tangents(inputs, tangents, found)


def look(case: AttentionCase, emulator: Emulator) -> None:
    """All facts about the weights."""
    maps = MapsInputs(case.make())
    with running(emulator):
        found = maps.run("triton")
    maps.check(found)


def decode(case: DecodeCase, emulator: Emulator) -> None:
    inputs = case.make()
    caches = [torch.empty_like(cache).copy_(cache) for cache in inputs.caches]
    with running(emulator):
        out, lse = attention_with_kv_cache(
            inputs.query, *caches, return_lse=True, backend="triton", **inputs.options
        )
    inputs.check(out, lse, caches)


def run_mechanism(case: AdditiveCase | LocalCase, emulator: Emulator) -> None:
    """Forward and backward of additive or local attention."""
    inputs = case.make()
    with running(emulator):
        results = inputs.run("triton")
    inputs.assert_results(*results)
