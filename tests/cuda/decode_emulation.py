"""Decoding as launch.cu does it, by the PTX emulator: prepare.cpp's plan, then its kernels."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pybind11
import pytest
import torch
from cuda.decode_case import DecodeInputs
from ninja import ninja_syntax
from ptxsim.launch import launch
from ptxsim.memory import GlobalMemory
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DECODE = ROOT / "csrc/cuda/decode"
NAME = "fused_attention_cuda_decode"
ELEMENTS = {torch.bfloat16: ("bf16", "Bfloat16"), torch.float16: ("fp16", "Float16")}


def nvcc() -> str:
    """Path of nvcc; without it the test is skipped."""
    spec = importlib.util.spec_from_file_location("fused_attention_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    home = setup.cuda_home()
    if home is None:
        pytest.skip("needs nvcc")
    return str(home / "bin" / "nvcc")


@functools.cache
def build() -> Path:
    """The folder with the kernels' PTX and decode_module.cpp's module; builds what has changed."""
    folder = ROOT / "build" / "decode_tests"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [pybind11.get_include(), sysconfig.get_path("include"), ROOT / "csrc/include"]
    cxx = " ".join(["-std=c++17 -O1 -fPIC -fvisibility=hidden", *(f"-I{p}" for p in includes)])
    ptx = f"-std=c++17 -O3 -arch=compute_80 -ptx -I{ROOT / 'csrc/include'}"
    with (folder / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        depfile = {"depfile": "$out.d", "deps": "gcc"}
        ninja.rule("module", f"c++ -MMD -MF $out.d {cxx} -c $in -o $out", **depfile)
        ninja.rule("link", "c++ -shared $in -o $out")
        ninja.rule("ptx", f"{nvcc()} {ptx} -MD -MF $out.d $in -o $out", **depfile)
        sources = [Path(__file__).with_name("decode_module.cpp"), DECODE / "prepare.cpp"]
        objects = [str(folder / source.with_suffix(".o").name) for source in sources]
        for target, source in zip(objects, sources, strict=True):
            ninja.build(target, "module", str(source))
        ninja.build(str(library(folder)), "link", objects)
        for name, _ in ELEMENTS.values():
            ninja.build(
                str(folder / f"{name}.ptx"), "ptx", str(DECODE / f"instantiations/{name}.cu")
            )
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)], check=True)
    return folder


def library(folder: Path) -> Path:
    return folder / (NAME + sysconfig.get_config_var("EXT_SUFFIX"))


@functools.cache
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, library(build()))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def ptx(dtype: torch.dtype) -> str:
    return (build() / f"{ELEMENTS[dtype][0]}.ptx").read_text()


@dataclass
class Decoded:
    """What the kernels wrote, and the plan by which they ran."""

    out: Tensor
    lse: Tensor
    key_cache: Tensor
    value_cache: Tensor
    plan: dict[str, Any]
    instructions: int  # of warps, in all kernels


class _Device:
    """Tensors in the emulator's memory."""

    def __init__(self) -> None:
        self.memory = GlobalMemory()
        self.places: dict[str, tuple[int, Tensor]] = {}

    def put(self, tensor: Tensor, *, initialised: bool = True) -> int:
        """The address of the first element; the whole storage travels."""
        storage = _bits(torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()))
        start = self.memory.put(storage, initialised=initialised)
        address = start + tensor.storage_offset() * tensor.element_size()
        self.places[f"{address}"] = (start, tensor)
        return address

    def strided(self, tensor: Tensor, *, initialised: bool = True) -> tuple[int, int, int, int]:
        batch, head, row = tensor.stride()[:3]
        return self.put(tensor, initialised=initialised), batch, head, row

    def read(self, address: int) -> Tensor:
        start, tensor = self.places[f"{address}"]
        storage = torch.from_numpy(self.memory.get(start)).view(tensor.dtype)
        return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def step_fields(inputs: DecodeInputs, device: Any, out: Tensor, lse: Tensor) -> dict[str, Any]:
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
        "query": device.strided(inputs.query),
        "key": device.strided(inputs.key_cache),
        "value": device.strided(inputs.value_cache),
        "out": device.strided(out, initialised=False),
        "lse": device.strided(lse, initialised=False),
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
        fields["new_key"] = device.strided(inputs.new_key)
        fields["new_value"] = device.strided(inputs.new_value)
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
    device = _Device()
    case = inputs.case
    value_dim = inputs.value_cache.shape[-1]
    out = torch.empty(*inputs.query.shape[:-1], value_dim, dtype=case.dtype)
    lse = torch.empty(inputs.query.shape[:-1])
    fields = step_fields(inputs, device, out, lse)
    needed = module().plan(multiprocessors, **fields)["workspace_bytes"]
    if needed:  # all bits set are NaN
        fields["workspace"] = device.memory.put(np.full(needed, 0xFF, np.uint8))
    plan = module().plan(multiprocessors, **fields)
    element = ELEMENTS[case.dtype][1]
    instructions = 0
    for name, blocks, threads, shared_bytes in plan["launches"]:
        if blocks == 0:
            continue
        kernel = f"{name}_kernel"
        if name == "decode":
            kernel = f"{name}_kernelINS1_6ConfigINS0_{len(element)}{element}ELi{plan['dim']}E"
        report = launch(
            ptx(case.dtype),
            kernel,
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
