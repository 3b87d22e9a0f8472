"""Additive attention as csrc/cuda/additive/launch.cu runs it, by the PTX emulator.

The host's part is the real one: additive_module.cpp hands out the plans of prepare.cpp, with the
very bytes that a launch would give to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from additive_case import AdditiveInputs
from cuda.build import CSRC, Room
from cuda.device import Device, poisoned
from cuda.emulate import Emulation
from ptxsim.launch import Report, launch
from torch import Tensor

from fused_attention.additive.call import AdditiveCall

ADDITIVE = CSRC / "cuda/additive"
FILES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ROOM = Room(
    "fused_attention_cuda_additive",
    [Path(__file__).with_name("additive_module.cpp"), ADDITIVE / "prepare.cpp"],
    sorted((ADDITIVE / "instantiations").glob("*.cu")),
)
ENTRIES = {  # kernel -> what its mangled name contains
    "forward": ("forward_kernel",),
    "delta": ("delta_kernel",),
    "query_gradient": ("15gradient_kernel", "SideE0E"),
    "key_gradient": ("15gradient_kernel", "SideE1E"),
    "v_gradient": ("v_gradient_kernel",),
}
_FIXED = Emulation()


def entry_of(kernel: str, dtype: torch.dtype) -> tuple[str, str]:
    """The file that has a kernel, and its mangled name there."""
    file = kernel if kernel == "v_gradient" else FILES[dtype]
    return file, ROOM.entry(file, *ENTRIES[kernel])


def call_of(inputs: AdditiveInputs) -> AdditiveCall:
    """What the door would hand to a backend."""
    case = inputs.case
    operands = (inputs.query, inputs.key, inputs.value)
    query, key, value = operands if case.heads else (x.unsqueeze(1) for x in operands)
    band = case.band.resolve(case.len_q, case.len_k)
    assert band.offset is not None
    v = inputs.v.expand(max(case.heads, 1), case.dim).contiguous()
    lengths = inputs.options["key_lengths"]
    return AdditiveCall(query, key, value, v, lengths, band.left, band.right, band.offset)


def results(inputs: AdditiveInputs, how: Emulation = _FIXED) -> tuple[Tensor, ...]:
    """out, lse and the gradients of query, key, value and v, as `AdditiveInputs.run` gives them."""
    call = call_of(inputs)
    out, lse, _ = forward(call, how)
    grads = inputs.upstream if inputs.case.heads else [x.unsqueeze(1) for x in inputs.upstream]
    # What queries that see nothing have is not looked at.
    dead = lse == -torch.inf
    grad_out, grad_lse = (
        grads[0].masked_fill(dead[..., None], torch.nan),
        grads[1].masked_fill(dead, torch.nan),
    )
    *found, grad_v, _ = backward(call, out, lse, grad_out, grad_lse, how)
    if not inputs.case.heads:
        out, lse, *found = (x.squeeze(1) for x in (out, lse, *found))
    return out, lse, *found, grad_v.sum(0) if inputs.v.dim() == 1 else grad_v


def forward(
    call: AdditiveCall, how: Emulation = _FIXED
) -> tuple[Tensor, Tensor, dict[str, Report]]:
    """out, lse, and reports by kernel."""
    device = Device()
    out, lse = (x.fill_(torch.nan) for x in call.empty_results())
    fields = fields_of(call, device)
    fields["out"] = device.rows(out, initialised=False)
    fields["lse"] = device.row_values(lse, initialised=False)
    reports = _run(ROOM.module.plan_forward, fields, call.query.dtype, device, how)
    return device.read(fields["out"][0]), device.read(fields["lse"][0]), reports


def backward(
    call: AdditiveCall,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    how: Emulation = _FIXED,
    wanted: tuple[str, ...] = ("query", "key"),
) -> tuple[Any, ...]:
    """Gradients of query, key, value and v, and reports; `out` and `lse` may be anybody's.

    Args:
        wanted: "query" stands for query and v, "key" for key and value; others are None.
    """
    device = Device()
    fields = fields_of(call, device)
    fields |= {"out": device.rows(out), "lse": device.row_values(lse)}
    fields["grad_out"] = device.rows(grad_out)
    if grad_lse is not None:
        fields["grad_lse"] = device.row_values(grad_lse)
    if "query" in wanted:
        fields["grad_query"] = device.rows(poisoned(call.query), initialised=False)
        fields["grad_v"] = device.put(poisoned(call.v), initialised=False)
    if "key" in wanted:
        fields["grad_key"] = device.rows(poisoned(call.key), initialised=False)
        fields["grad_value"] = device.rows(poisoned(call.value), initialised=False)
    reports = _run(ROOM.module.plan_backward, fields, call.query.dtype, device, how)
    names = ("grad_query", "grad_key", "grad_value")
    found = [device.read(fields[name][0]) if name in fields else None for name in names]
    grad_v = device.read(fields["grad_v"]) if "grad_v" in fields else None
    return (*found, grad_v, reports)


def fields_of(call: AdditiveCall, device: Device) -> dict[str, Any]:
    """The problem as additive_module.cpp takes it, its tensors put on `device`."""
    batch, heads, len_q, dim = call.query.shape
    fields = {
        "dtype": str(call.query.dtype).removeprefix("torch."),
        "batch": batch,
        "heads_q": heads,
        "heads_kv": heads,
        "len_q": len_q,
        "len_k": call.key.shape[2],
        "head_dim": dim,
        "value_dim": call.value.shape[-1],
        "query": device.rows(call.query),
        "key": device.rows(call.key),
        "value": device.rows(call.value),
        "v": device.put(call.v),
        "left": call.left,
        "right": call.right,
        "offset": call.offset,
    }
    if call.key_lengths is not None:
        fields["kv_lengths"] = device.put(call.key_lengths)
    return fields


def _run(
    make_plan: Callable[..., dict[str, Any]],
    fields: dict[str, Any],
    dtype: torch.dtype,
    device: Device,
    how: Emulation,
) -> dict[str, Report]:
    """The launches of a plan, one after the other, in a workspace of NaN."""
    needed = make_plan(0, **fields)["workspace_bytes"]
    workspace = device.memory.put(np.full(needed, 0xFF, np.uint8))
    plan = make_plan(workspace, **fields)
    reports = {}
    for kernel, blocks, threads, shared_bytes in plan["launches"]:
        if blocks == 0:
            continue
        file, entry = entry_of(kernel, dtype)
        reports[kernel] = launch(
            ROOM.ptx(file),
            entry,
            (blocks,),
            (threads,),
            [plan["arguments"]],
            shared_bytes,
            seed=how.seed,
            memory=device.memory,
            count_banks=how.count_banks,
        )
    return reports
