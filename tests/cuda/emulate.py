"""Forward and backward as csrc/cuda/sm80/launch.cu runs them, by the PTX emulator.

The host's part is the real one: sm80_module.cpp hands out the plans of prepare.cpp, with the very
bytes that a launch would give to the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attention_inputs import AttentionInputs
from cuda.build import CSRC, Room
from cuda.device import Device, poisoned
from ptxsim.launch import Report, launch
from torch import Tensor

SM80 = CSRC / "cuda/sm80"
ROOM = Room(
    "fused_attention_cuda_sm80",
    [Path(__file__).with_name("sm80_module.cpp"), SM80 / "prepare.cpp"],
    sorted((SM80 / "instantiations").glob("*.cu")),
)
ELEMENTS = {torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
STEMS = {  # kernel -> the file that has it
    "forward": "forward_{dim}",
    "delta": "backward_delta",
    "key_gradient": "backward_{dim}",
    "query_gradient": "backward_{dim}",
}


@dataclass(frozen=True)
class Emulation:
    """How to run: the schedule (see ptxsim.launch), and whether to count bank conflicts."""

    seed: int | None = None
    count_banks: bool = False


class Forward(NamedTuple):
    out: Tensor
    lse: Tensor
    reports: dict[str, Report]  # by kernel


class Backward(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    delta: Tensor
    reports: dict[str, Report]


_FIXED = Emulation()


def forward(inputs: AttentionInputs, how: Emulation = _FIXED) -> Forward:
    """out and lse of one problem."""
    device = Device()
    out = poisoned(inputs.query, (*inputs.query.shape[:-1], inputs.value.shape[-1]))
    fields = problem_fields(inputs, device)
    fields["out"] = device.rows(out, initialised=False)
    fields["lse"] = device.row_values(_statistics(inputs), initialised=False)
    reports = _run(ROOM.module.plan_forward(**fields), inputs.case.dtype, device, how)
    return Forward(device.read(fields["out"][0]), device.read(fields["lse"][0]), reports)


def backward(
    inputs: AttentionInputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    how: Emulation = _FIXED,
) -> Backward:
    """Gradients of query, key and value, and delta; `out` and `lse` may be anybody's."""
    device = Device()
    fields = problem_fields(inputs, device)
    fields |= {"out": device.rows(out), "lse": device.row_values(lse)}
    fields["grad_out"] = device.rows(grad_out)
    if grad_lse is not None:
        fields["grad_lse"] = device.row_values(grad_lse)
    fields["delta"] = device.row_values(poisoned(lse))  # written by one launch, read by the next
    for name in ("query", "key", "value"):
        gradient = poisoned(getattr(inputs, name))
        fields[f"grad_{name}"] = device.rows(gradient, initialised=False)
    reports = _run(ROOM.module.plan_backward(**fields), inputs.case.dtype, device, how)
    names = ("grad_query", "grad_key", "grad_value", "delta")
    return Backward(*(device.read(fields[name][0]) for name in names), reports)


def problem_fields(inputs: AttentionInputs, device: Device) -> dict[str, Any]:
    """The problem as sm80_module.cpp takes it, its tensors put on `device`."""
    case, length = inputs.case, 0 if inputs.case.packed else 2
    query, key, value = inputs.query, inputs.key, inputs.value
    len_q, len_k = query.shape[length], key.shape[length]
    fields: dict[str, Any] = {
        "dtype": str(case.dtype).removeprefix("torch."),
        "batch": query.shape[0],
        "heads_q": query.shape[1],
        "heads_kv": key.shape[1],
        "len_q": len_q,
        "len_k": len_k,
        "total_q": len_q,
        "total_k": len_k,
        "head_dim": query.shape[-1],
        "value_dim": value.shape[-1],
        "query": device.rows(query),
        "key": device.rows(key),
        "value": device.rows(value),
        "left": case.band.left,
        "right": case.band.right,
        "offset": len_k - len_q if case.band.offset is None else case.band.offset,
        "scale": query.shape[-1] ** -0.5 if case.scale is None else case.scale,
        "softcap": case.softcap,
    }
    offsets = inputs.band_offsets
    if case.packed:
        assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
        lens_q, lens_k = inputs.cu_seqlens_q.diff(), inputs.cu_seqlens_k.diff()
        fields["batch"] = len(lens_q)
        fields["len_q"], fields["len_k"] = _longest(lens_q), _longest(lens_k)
        if offsets is None and case.band.offset is None:
            offsets = lens_k - lens_q  # each sequence has its own diagonal
    tensors = {
        "kv_lengths": inputs.kv_lengths,
        "cu_seqlens_q": inputs.cu_seqlens_q,
        "cu_seqlens_k": inputs.cu_seqlens_k,
        "band_offsets": offsets,
        "alibi_slopes": inputs.alibi_slopes,
        "sinks": inputs.sinks,
    }
    fields |= {name: device.put(x) for name, x in tensors.items() if x is not None}
    if inputs.alibi_slopes is not None and inputs.alibi_slopes.dim() == 2:
        fields["alibi_batch"] = query.shape[1]
    if case.dropout_p:
        threshold = round(case.dropout_p * 65536)
        fields["dropout_threshold"] = threshold
        fields["dropout_keep_scale"] = 1 / (1 - threshold / 65536)
        state = torch.tensor([inputs.dropout_seed, inputs.dropout_offset])
        fields["dropout_state"] = device.put(state)
    return fields


def _longest(lengths: Tensor) -> int:
    return int(lengths.max()) if len(lengths) else 0


def _statistics(inputs: AttentionInputs) -> Tensor:
    """An unwritten lse."""
    leading = inputs.query.shape[:-1]
    shape = tuple(leading[::-1] if inputs.case.packed else leading)
    return torch.full(shape, torch.nan)


def _run(
    plan: dict[str, Any], dtype: torch.dtype, device: Device, how: Emulation
) -> dict[str, Report]:
    """The launches of a plan, one after the other."""
    reports = {}
    for kernel, blocks, threads, shared_bytes in plan["launches"]:
        if blocks == 0:
            continue
        stem = STEMS[kernel].format(dim=plan["dim"])
        reports[kernel] = launch(
            ROOM.ptx(stem),
            ROOM.entry(stem, f"{kernel}_kernel", ELEMENTS[dtype]),
            (blocks,),
            (threads,),
            [plan["arguments"]],
            shared_bytes,
            seed=how.seed,
            memory=device.memory,
            count_banks=how.count_banks,
        )
    return reports
