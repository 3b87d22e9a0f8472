"""Decoding as csrc/cuda/decode/launch.cu runs it, by the PTX emulator.

The host's part is the real one: decode_module.cpp hands out the plan of prepare.cpp, with the very
bytes that a launch would give to the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda.build import CSRC, Room
from cuda.decode_inputs import DecodeInputs
from cuda.device import Device, poisoned
from ptxsim.launch import launch
from torch import Tensor

DECODE = CSRC / "cuda/decode"
FILES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
ROOM = Room(
    "fused_attention_cuda_decode",
    [Path(__file__).with_name("decode_module.cpp"), DECODE / "prepare.cpp"],
    [DECODE / f"instantiations/{name}.cu" for name in FILES.values()],
)


@dataclass
class Decoded:
    """What the kernels wrote, and the plan by which they ran."""

    out: Tensor
    lse: Tensor
    key_cache: Tensor
    value_cache: Tensor
    plan: dict[str, Any]
    instructions: int  # of warps, in all kernels


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def step_fields(inputs: DecodeInputs, device: Device, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """The step as decode_module.cpp takes it, its tensors put on `device`."""
    case = inputs.case
    fields: dict[str, Any] = {
        "dtype": _dtype_name(case.dtype),
        "batch": len(case.lengths),
        "heads_q": case.heads_q,
        "heads_kv": case.heads_kv,
        "len_q": case.len_q,
        "len_k": inputs.capacity,
        "head_dim": case.head_dim,
        "value_dim": inputs.value_cache.shape[-1],
        "query": device.rows(inputs.query),
        "key": device.rows(inputs.key_cache),
        "value": device.rows(inputs.value_cache),
        "out": device.rows(out, initialised=False),
        "lse": device.row_values(lse, initialised=False),
        "left": case.left,
        "right": case.right,
        "scale": inputs.scale,
        "softcap": case.softcap,
        "cache_lengths": device.put(inputs.lengths),
        "splits": case.splits,
        "batch_invariant": case.batch_invariant,
    }
    if inputs.block_table is not None:
        fields["block_table"] = device.put(inputs.block_table)
        fields["block_table_row"] = inputs.block_table.shape[1]
        fields["page_size"] = case.page_size
    if inputs.new_key is not None and inputs.new_value is not None:
        fields["new_key"] = device.rows(inputs.new_key)
        fields["new_value"] = device.rows(inputs.new_value)
        fields["len_new"] = case.len_new
    if inputs.cos is not None and inputs.sin is not None:
        fields["rotary_cos"], fields["rotary_sin"] = device.put(inputs.cos), device.put(inputs.sin)
        fields["rotary_dtype"] = _dtype_name(inputs.cos.dtype)
        fields["rotary_dim"] = case.rotary
        fields["rotary_interleaved"] = case.rotary_interleaved
    if inputs.alibi_slopes is not None:
        fields["alibi_slopes"] = device.put(inputs.alibi_slopes)
        fields["alibi_batch"] = case.heads_q if inputs.alibi_slopes.dim() == 2 else 0
    names = {"cache_starts": "starts", "cache_batch": "cache_rows", "sinks": "sinks"}
    for field, name in names.items():
        if getattr(inputs, name) is not None:
            fields[field] = device.put(getattr(inputs, name))
    return fields


def decode(inputs: DecodeInputs, *, seed: int | None = None, multiprocessors: int = 4) -> Decoded:
    """Runs the step on copies of the tensors; seed: see ptxsim.launch."""
    device = Device()
    case = inputs.case
    out = poisoned(inputs.query, (*inputs.query.shape[:-1], inputs.value_cache.shape[-1]))
    lse = torch.full(inputs.query.shape[:-1], torch.nan)
    fields = step_fields(inputs, device, out, lse)
    needed = ROOM.module.plan(multiprocessors, **fields)["workspace_bytes"]
    if needed:  # all bits set are NaN
        fields["workspace"] = device.memory.put(np.full(needed, 0xFF, np.uint8))
    plan = ROOM.module.plan(multiprocessors, **fields)
    file = FILES[case.dtype]
    instructions = 0
    for name, blocks, threads, shared_bytes in plan["launches"]:
        if blocks == 0:
            continue
        dim = [f"Li{plan['dim']}E"] if name == "decode" else []
        report = launch(
            ROOM.ptx(file),
            ROOM.entry(file, f"{name}_kernel", *dim),
            (blocks,),
            (threads,),
            [plan["arguments"]],
            shared_bytes,
            seed=seed,
            memory=device.memory,
        )
        instructions += report.instructions
    written = (device.read(fields[name][0]) for name in ("out", "lse", "key", "value"))
    return Decoded(*written, plan, instructions)
