"""cp.async.bulk and cp.reduce.async.bulk, of plain memory and of tensors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..errors import UnknownInstructionError
from ..halves import pack, unpack
from ..memory import GLOBAL_BASE, PARAM_BASE, SHARED_BASE
from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands
from ..tensor_map import BYTES, TensorMap, decode
from ..variables import split_operands


def bulk(ops: Operands, found: Instruction) -> Any:
    parts = set(found.parts)
    if "commit_group" in parts:
        return lambda wave, gang: wave.engine.commit(gang)
    if "wait_group" in parts:
        newest = int(found.operands[0], 0)
        return lambda wave, gang: wave.engine.wait(gang, newest)
    if "prefetch" in parts:
        return lambda wave, gang: None
    unsupported = ("multicast::cluster", "im2col", "gather4", "scatter4", "cp_mask")
    if any(part.startswith(unsupported) for part in parts):
        raise UnknownInstructionError(found.text)
    spaces = [part for part in found.parts if part.split("::")[0] in ("shared", "global")]
    loads = spaces[0].startswith("shared") and spaces[1] == "global"
    stores = spaces[0] == "global" and spaces[1].startswith("shared")
    if not (loads or stores):
        raise UnknownInstructionError(found.text)
    add = _addition(found) if found.parts[1] == "reduce" else None
    return _load(ops, found) if loads else _store(ops, found, add)


def _addition(found: Instruction) -> Any:
    """What cp.reduce does to bytes [n, element]."""
    if "add" not in found.parts:
        raise UnknownInstructionError(found.text)
    type_ = found.type if found.type in (*DTYPES, "f16", "bf16") else None

    def add(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        kind = type_ or {4: "f32", 2: "f16"}[old.shape[1]]
        if kind in ("f16", "bf16"):
            (a, b), (c, d) = (unpack(x.reshape(-1).view(np.uint32), kind) for x in (old, new))
            return pack(a + c, b + d, kind).view(np.uint8).reshape(old.shape)
        dtype = DTYPES[kind]
        total = old.reshape(-1).view(dtype) + new.reshape(-1).view(dtype)
        return total.view(np.uint8).reshape(old.shape)

    return add


class _Tensor:
    """[map, {coordinates}]"""

    def __init__(self, ops: Operands, operand: str) -> None:
        match = re.match(r"\[\s*([^,]+),\s*\{(.*)\}\s*(,.*)?\]$", operand)
        if not match or match[3]:
            raise UnknownInstructionError(operand)
        self.base, self.offset = ops.address(f"[{match[1].strip()}]")
        self.start = [ops.read(name, "s32") for name in split_operands(match[2])]

    def map_of(self, wave: Any, gang: Gang, at: tuple[int, int]) -> TensorMap:
        address = int(gang.spread(self.base(wave, gang))[at]) + self.offset
        if address >= PARAM_BASE or address < GLOBAL_BASE:
            start = address - PARAM_BASE if address >= PARAM_BASE else address
            return decode(wave.parameters[start : start + BYTES].tobytes())
        place = wave.memory.offsets(np.array([address]), BYTES, 64)
        return decode(wave.memory.bytes[int(place[0]) :][:BYTES].tobytes())

    def coordinates(self, wave: Any, gang: Gang, at: tuple[int, int]) -> list[int]:
        return [int(gang.spread(read(wave, gang))[at]) for read in self.start]


def _shared(address: Any) -> int:
    address = int(address)
    return address - SHARED_BASE if address >= SHARED_BASE else address


def _threads(gang: Gang) -> Any:
    """(place in the gang, row, lane) of the active threads; mostly one."""
    for at, lane in zip(*np.nonzero(gang.full_mask), strict=True):
        yield (int(at), int(lane)), int(gang.rows[at]), int(lane)


def _value(wave: Any, gang: Gang, address: Any, at: tuple[int, int]) -> int:
    base, offset = address
    return int(gang.spread(base(wave, gang))[at]) + offset


def _load(ops: Operands, found: Instruction) -> Any:
    to = ops.address(found.operands[0])
    tensor = _Tensor(ops, found.operands[1]) if "tensor" in found.parts else None
    source = None if tensor else ops.address(found.operands[1])
    size = None if tensor else ops.read(found.operands[2], "u32")
    barrier = ops.address(found.operands[2 if tensor else 3])

    def run(wave: Any, gang: Gang) -> None:
        for at, row, lane in _threads(gang):
            shared = _shared(_value(wave, gang, to, at))
            if tensor is not None:
                map_ = tensor.map_of(wave, gang, at)
                start = tensor.coordinates(wave, gang, at)
                tile = wave.engine.tensor_tile(row, map_, start, shared)
            else:
                count = int(gang.spread(size(wave, gang))[at])
                tile = wave.engine.linear_tile(row, _value(wave, gang, source, at), shared, count)
            wave.engine.load(row, lane, tile, _shared(_value(wave, gang, barrier, at)))

    return run


def _store(ops: Operands, found: Instruction, add: Any) -> Any:
    tensor = _Tensor(ops, found.operands[0]) if "tensor" in found.parts else None
    to = None if tensor else ops.address(found.operands[0])
    source = ops.address(found.operands[1])
    size = None if tensor else ops.read(found.operands[2], "u32")

    def run(wave: Any, gang: Gang) -> None:
        for at, row, lane in _threads(gang):
            shared = _shared(_value(wave, gang, source, at))
            if tensor is not None:
                map_ = tensor.map_of(wave, gang, at)
                start = tensor.coordinates(wave, gang, at)
                tile = wave.engine.tensor_tile(row, map_, start, shared)
            else:
                count = int(gang.spread(size(wave, gang))[at])
                tile = wave.engine.linear_tile(row, _value(wave, gang, to, at), shared, count)
            wave.engine.store(row, lane, tile, add)

    return run
