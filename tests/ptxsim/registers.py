"""Registers and lanes: which warps an instruction runs for, and how operands are read and written.

A register is an array [rows, 32]: one row a warp, one column a lane. All warps that stand at the
same instruction, of every block that is resident, execute it together as one gang.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import AccessError, UnknownInstructionError
from .parse import Kernel
from .variables import TYPE_BYTES

if TYPE_CHECKING:
    from .wave import Wave

LANES = 32
LANE = np.arange(LANES)
DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "bf16": np.uint16,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "u16x2": np.uint32,
    "s16x2": np.uint32,
}
for _bits in (8, 16, 32, 64):
    DTYPES[f"s{_bits}"] = np.dtype(f"i{_bits // 8}").type
    DTYPES[f"u{_bits}"] = DTYPES[f"b{_bits}"] = np.dtype(f"u{_bits // 8}").type
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Read = Callable[["Wave", "Gang"], Any]
Write = Callable[["Wave", "Gang", Any], None]


class Gang:
    """Warps that execute one instruction together.

    index: slice or array that picks their rows; rows: the same as an array; mask: which lanes
    [len(rows), 32], None if all of them.
    """

    __slots__ = ("index", "rows", "mask", "_flat")

    def __init__(self, index: Any, rows: np.ndarray, mask: np.ndarray | None) -> None:
        self.index, self.rows, self.mask = index, rows, mask
        self._flat: tuple[np.ndarray, np.ndarray] | None = None

    @staticmethod
    def of(rows: np.ndarray, mask: np.ndarray) -> Gang:
        """The gang of these rows; evenly spaced rows are picked without a copy."""
        index: Any = rows
        if len(rows) == 1:
            index = slice(int(rows[0]), int(rows[0]) + 1)
        else:
            steps = np.diff(rows)
            if steps[0] > 0 and (steps == steps[0]).all():
                index = slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))
        return Gang(index, rows, None if mask.all() else mask)

    def narrowed(self, mask: np.ndarray) -> Gang:
        """The same rows with fewer lanes."""
        return Gang(self.index, self.rows, None if mask.all() else mask)

    def compact(self) -> Gang:
        """Only the rows that have a lane; what acts on whole warps needs that."""
        if self.mask is None:
            return self
        some = self.mask.any(1)
        return self if some.all() else Gang.of(self.rows[some], self.mask[some])

    @property
    def full_mask(self) -> np.ndarray:
        return np.ones((len(self.rows), LANES), bool) if self.mask is None else self.mask

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and lane of every active thread, in the order of `pick`."""
        if self._flat is None:
            if self.mask is None:
                self._flat = np.repeat(self.rows, LANES), np.tile(LANE, len(self.rows))
            else:
                row, lane = np.nonzero(self.mask)
                self._flat = self.rows[row], lane
        return self._flat

    def spread(self, value: Any) -> np.ndarray:
        return np.broadcast_to(value, (len(self.rows), LANES))

    def pick(self, value: Any) -> np.ndarray:
        """The values of the active threads, one after the other."""
        value = self.spread(value)
        return value.reshape(-1) if self.mask is None else value[self.mask]

    def unpick(self, values: np.ndarray) -> np.ndarray:
        """The inverse of pick; inactive lanes get 0."""
        if self.mask is None:
            return values.reshape(len(self.rows), LANES)
        out = np.zeros((len(self.rows), LANES), values.dtype)
        out[self.mask] = values
        return out


class Unwritten:
    """Stands for a register that no instruction has written."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index: Any) -> Any:
        raise AccessError(f"register {self.name} is read, but nothing was written to it")


def storage(type_: str) -> Any:
    return DTYPES[type_]


def poison(type_: str, rows: int) -> np.ndarray:
    """What lanes hold that never wrote: all bits set, a NaN in floating-point registers."""
    array = np.empty((rows, LANES), storage(type_))
    array.view(np.uint8).fill(0 if type_ == "pred" else 0xFF)
    return array


def _immediate(text: str, type_: str) -> Any:
    dtype = np.dtype(DTYPES[type_])
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
        value = np.frombuffer(bytes.fromhex(text[2:])[::-1], np.float32)[0]
        return value.view(dtype) if dtype.itemsize == 4 else dtype.type(value)
    if re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        return np.frombuffer(bytes.fromhex(text[2:])[::-1], np.float64)[0].view(dtype)
    try:
        number = int(re.sub(r"^(-?)0([0-7]+)$", r"\g<1>0o\2", text.rstrip("U")), 0)
    except ValueError:
        if re.match(r"-?[\d.]+(e[-+]?\d+)?$", text) and dtype.kind == "f":
            return dtype.type(float(text))
        raise UnknownInstructionError(f"operand {text}") from None
    if type_ == "pred":
        return np.bool_(number != 0)
    if dtype.kind == "f":
        return dtype.type(number)
    size = dtype.itemsize
    masked = number & ((1 << 8 * size) - 1)
    return np.frombuffer(masked.to_bytes(size, "little"), dtype)[0]


class Operands:
    """Turns the operands of one kernel into functions that read and write them."""

    def __init__(self, kernel: Kernel, symbols: dict[str, int], params: dict[str, int]) -> None:
        self.types = kernel.registers
        self.number = {name: n for n, name in enumerate(kernel.registers)}
        self.symbols, self.params = symbols, params
        self.accumulators: set[str] = set()
        self.moves = False  # a mov: compilers put those anywhere, wgmma.fence or not

    def read(self, operand: str, type_: str) -> Read:
        """A function that gives the operand as `type_`, of a shape that broadcasts to a gang."""
        operand = operand.strip()
        if operand in self.number:
            return self._register(operand, type_)
        dtype = DTYPES[type_]
        if operand.startswith("%") and not operand.startswith("%SP"):
            name = operand
            return lambda wave, gang: wave.special(name)[gang.index].astype(dtype)
        if operand in self.params:
            value = dtype(self.params[operand])
            return lambda wave, gang: value
        if operand in self.symbols:
            name = operand
            return lambda wave, gang: dtype(wave.symbols[name])
        if operand == "WARP_SZ":
            operand = "32"
        value = _immediate(operand, type_)
        return lambda wave, gang: value

    def _register(self, name: str, type_: str) -> Read:
        number, held = self.number[name], self.types[name]
        have, want = np.dtype(storage(held)), np.dtype(DTYPES[type_])
        if name in self.accumulators:
            return self._guarded(number, name, want)
        if have == want:
            return lambda wave, gang: wave.registers[number][gang.index]
        if have.itemsize == want.itemsize and "pred" not in (held, type_):
            return lambda wave, gang: wave.registers[number][gang.index].view(want)
        if "pred" in (held, type_):
            raise UnknownInstructionError(f"{name} ({held}) read as {type_}")
        whole, part = _UNSIGNED[have.itemsize], _UNSIGNED[want.itemsize]
        return lambda wave, gang: (
            wave.registers[number][gang.index].view(whole).astype(part).view(want)
        )

    def _guarded(self, number: int, name: str, want: np.dtype) -> Read:
        """Reads a register that a wgmma writes asynchronously."""

        def read(wave: Wave, gang: Gang) -> Any:
            if wave.wgmma_pending:
                wave.check_accumulator(gang, number, name)
            return wave.registers[number][gang.index].view(want)

        return read

    def write(self, operand: str, type_: str) -> Write:
        """A function that writes values of `type_` to the active lanes of a gang."""
        if operand == "_":
            return lambda wave, gang, value: None
        number, held = self.number[operand], self.types[operand]
        have = np.dtype(storage(held))
        guarded, moves = operand in self.accumulators, self.moves

        def write(wave: Wave, gang: Gang, value: Any) -> None:
            array = wave.registers[number]
            if array.__class__ is Unwritten:
                array = wave.registers[number] = poison(held, wave.rows)
            if guarded:
                if not moves:
                    wave.matrix.note_write(gang, number)
                if wave.wgmma_pending:
                    wave.check_accumulator(gang, number, operand)
            if value.dtype != have:
                value = _fit(value, have)
            if gang.mask is None:
                array[gang.index] = value
            elif gang.index.__class__ is slice:
                np.copyto(array[gang.index], value, where=gang.mask)
            else:
                part = array[gang.index]
                np.copyto(part, value, where=gang.mask)
                array[gang.index] = part

        return write

    def raw_read(self, operand: str, type_: str) -> Read:
        """The same for the asynchronous product itself, which orders its own accesses."""
        number, want = self.number[operand], np.dtype(DTYPES[type_])

        def read(wave: Wave, gang: Gang) -> Any:
            return wave.registers[number][gang.index].view(want)

        return read

    def raw_write(self, operand: str) -> Write:
        number, held = self.number[operand], self.types[operand]
        have = np.dtype(storage(held))

        def write(wave: Wave, gang: Gang, value: Any) -> None:
            if wave.registers[number].__class__ is Unwritten:
                wave.registers[number] = poison(held, wave.rows)
            wave.registers[number][gang.index] = value.view(have)

        return write

    def address(self, operand: str) -> tuple[Read, int]:
        """[base + offset] as a function that gives int64 bases, and the offset."""
        match = re.match(r"\[\s*([%\w$@.]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand.strip())
        if not match:
            raise UnknownInstructionError(f"address {operand}")
        base, offset = match[1], int(match[2] or "0", 0)
        wide = base not in self.number or TYPE_BYTES[self.types[base]] == 8
        read = self.read(base, "u64" if wide else "u32")
        return (lambda wave, gang: read(wave, gang).astype(np.int64)), offset

    def vector(self, operand: str) -> list[str]:
        operand = operand.strip()
        if operand.startswith("{"):
            return [part.strip() for part in operand.strip("{} ").split(",")]
        return [operand]


def _fit(value: Any, have: np.dtype) -> Any:
    """Bits of a value for a register of another type: same size as they are, else extended."""
    if value.dtype.itemsize == have.itemsize:
        return value.view(have)
    if value.dtype == np.bool_ or have == np.bool_:
        raise UnknownInstructionError(f"a predicate mixed with {have}")
    if value.dtype.kind == "f" or have.kind == "f":
        bits = value.view(_UNSIGNED[value.dtype.itemsize]).astype(_UNSIGNED[have.itemsize])
        return bits.view(have)
    return value.astype(have)
