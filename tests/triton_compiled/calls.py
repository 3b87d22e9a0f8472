"""A plain call of each kind, to compile its kernels at their fixed configs."""

from __future__ import annotations

import torch
from torch import Tensor
from triton_compiled.compile import Compiler, kernel_module, running

from fused_attention.additive.call import AdditiveCall
from fused_attention.backends.call import Call, DecodeCall
from fused_attention.local.call import LocalCall
from fused_attention.maps.call import MapsCall
from fused_attention.masks import UNBOUNDED

LENGTH, PAGE = 1024, 16


def causal(dim: int, dtype: torch.dtype) -> Call:
    """Four heads that share one key head; the tensors hold nothing."""
    query, key, value = (torch.empty(1, heads, LENGTH, dim, dtype=dtype) for heads in (4, 1, 1))
    nothing: tuple[None, ...] = (None,) * 8
    numbers = (LENGTH, LENGTH, dim**-0.5, 0.0, UNBOUNDED, 0, 0, 0.0)
    return Call(query, key, value, *nothing, *numbers)


def paged(dim: int, dtype: torch.dtype) -> DecodeCall:
    """One query and one new key, rotated, in a cache of pages."""
    query, new_key, new_value = (torch.empty(1, n, 1, dim, dtype=dtype) for n in (4, 1, 1))
    cache = torch.empty(LENGTH // PAGE, 1, PAGE, dim, dtype=dtype)
    table = torch.zeros(1, LENGTH // PAGE, dtype=torch.int32)
    angles = torch.empty(LENGTH, dim // 2)
    return DecodeCall(
        *(query, cache, torch.empty_like(cache), new_key, new_value),
        *(torch.zeros(1, dtype=torch.int32), None, None, table, angles, angles, None, None),
        *(dim**-0.5, 0.0, UNBOUNDED, 0, False, 4, False),
    )


def forward(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    call = causal(dim, dtype)
    with running(compiler):
        kernel_module("forward").attention_forward(call, call.empty_out(), call.empty_lse())


def backward(compiler: Compiler, dim: int, dtype: torch.dtype, deterministic: bool = True) -> None:
    call = causal(dim, dtype)
    out, lse = call.empty_out(), call.empty_lse()
    gradients = [torch.empty_like(x) for x in (call.query, call.key, call.value)]
    inputs = (call, out, lse, torch.empty_like(out), None, torch.empty_like(lse))
    with running(compiler):
        run = kernel_module("backward").attention_backward
        run(*inputs, *gradients, None, deterministic, not deterministic)


def fused_backward(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    """dQ by atomic additions."""
    backward(compiler, dim, dtype, deterministic=False)


def jvp(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    call = causal(dim, dtype)
    tangents = [torch.empty_like(x) for x in (call.query, call.key, call.value)]
    results: list[Tensor] = [call.empty_out(), call.empty_lse()]
    results += [torch.empty_like(x) for x in results]
    with running(compiler):
        kernel_module("jvp").attention_jvp(call, [*tangents, None, None], *results)


def decode(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    call = paged(dim, dtype)
    with running(compiler):
        kernel_module("decode").attention_decode(call, call.empty_out(), call.empty_lse())


def additive_call(dim: int, dtype: torch.dtype) -> AdditiveCall:
    query, key, value = (torch.empty(1, 1, LENGTH, dim, dtype=dtype) for _ in range(3))
    return AdditiveCall(query, key, value, torch.empty(1, dim), None, UNBOUNDED, UNBOUNDED, 0)


def additive(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    """Forward, and every gradient but that of the keys."""
    call = additive_call(dim, dtype)
    out, lse = call.empty_results()
    grads = (torch.empty_like(call.query), None, torch.empty_like(call.value), call.v.clone())
    with running(compiler):
        kernel_module("additive").additive_forward(call, out, lse)
        run = kernel_module("additive_backward").additive_backward
        run(call, out, lse, torch.empty_like(out), None, *grads)


def additive_keys(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    """The gradient of the keys, by the kernel of that of the queries."""
    call = additive_call(dim, dtype)
    out, lse = call.empty_results()
    with running(compiler):
        run = kernel_module("additive_backward").additive_backward
        run(call, out, lse, out, None, None, torch.empty_like(call.key), None, None)


def local(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    """Luong's form with a sigma per query, forward and backward."""
    query, key, value = (torch.empty(1, n, LENGTH, dim, dtype=dtype) for n in (4, 1, 1))
    rows = torch.empty(1, 4, LENGTH)
    call = LocalCall(query, key, value, rows, rows, None, 10.0, 0.0, 1.0, False)
    out, lse = call.empty_results()
    grads = [torch.empty_like(x) for x in call[:5]]
    with running(compiler):
        kernel_module("local").local_forward(call, out, lse)
        run = kernel_module("local_backward").local_backward
        run(call, out, lse, torch.empty_like(out), None, *grads)


def maps(compiler: Compiler, dim: int, dtype: torch.dtype) -> None:
    """Everything that can be asked about the weights."""
    call = causal(dim, dtype)
    asked = MapsCall(
        *(call.query, call.key, call.empty_lse(), *(None,) * 7),
        torch.zeros(LENGTH, dtype=torch.int32),
        *call[11:18],
        column_mass=True,
        entropy=True,
        argmax=True,
        top_k=8,
    )
    with running(compiler):
        kernel_module("maps").attention_maps(asked, *asked.empty_results())


CALLS = {
    "forward": forward,
    "backward": backward,
    "fused_backward": fused_backward,
    "jvp": jvp,
    "decode": decode,
    "additive": additive,
    "additive_keys": additive_keys,
    "local": local,
    "maps": maps,
}
