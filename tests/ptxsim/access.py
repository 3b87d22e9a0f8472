"""Loads and stores of a gang: address -> space -> checks -> bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import AccessError, RaceError
from .memory import LOCAL_BASE, PARAM_BASE, SHARED_BASE, parameter_bytes
from .registers import LANES, Gang

if TYPE_CHECKING:
    from .wave import Wave

_WINDOWS = (("global", 0), ("param", PARAM_BASE), ("shared", SHARED_BASE), ("local", LOCAL_BASE))


def spaces(gang: Gang, address: np.ndarray) -> list[tuple[str, Gang, np.ndarray]]:
    """Splits generic addresses by the window they lie in; addresses become those of the space."""
    address = gang.spread(address)
    used = gang.pick(address)
    found = []
    for number, (space, base) in enumerate(_WINDOWS):
        end = _WINDOWS[number + 1][1] if number + 1 < len(_WINDOWS) else 1 << 62
        inside = (used >= base) & (used < end)
        if inside.all():
            return [(space, gang, address - base)]
        if inside.any():
            part = gang.full_mask & (address >= base) & (address < end)
            found.append((space, gang.narrowed(part), address - base))
    if not found:
        raise AccessError(f"address {hex(int(used[0]))} lies in no memory")
    return found


def _place(
    wave: Wave, gang: Gang, space: str, address: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, lanes and offsets of the active threads, and the bytes that the offsets are of."""
    rows, lanes = gang.flat()
    picked = gang.pick(address)
    if space == "global":
        return rows, lanes, wave.memory.offsets(picked, size), wave.memory.bytes
    if space == "shared":
        offset = wave.shared.offsets(picked, rows % wave.blocks, size)
        return rows, lanes, offset, wave.shared.bytes
    if space == "local":
        offset = wave.local.offsets(picked, rows * LANES + lanes, size)
        return rows, lanes, offset, wave.local.bytes
    return rows, lanes, parameter_bytes(wave.parameters, picked, size), wave.parameters


def _shadow(wave: Wave, space: str) -> Any:
    return wave.global_shadow if space == "global" else wave.shared_shadow


def load(
    wave: Wave,
    gang: Gang,
    space: str,
    address: np.ndarray,
    dtype: Any,
    parts: int,
    atomic: bool = False,
) -> np.ndarray:
    """[threads, parts] values at these addresses, for the active threads."""
    size = np.dtype(dtype).itemsize * parts
    rows, lanes, offset, memory = _place(wave, gang, space, address, size)
    if space in ("global", "shared"):
        shadow = _shadow(wave, space)
        shadow.read(wave, rows, lanes, shadow.granules(offset, size), atomic=atomic)
        if space == "shared" and wave.banks is not None:
            wave.banks.count(wave, gang, address, size)
    elif space == "local" and not wave.local.written[offset[:, None] + np.arange(size)].all():
        raise AccessError("uninitialised: a read of local memory that nothing was written to")
    if offset.size and (offset % size).any():
        return memory[offset[:, None] + np.arange(size)].view(dtype)
    return memory.view(dtype).reshape(-1, parts)[offset // size]


def store(
    wave: Wave,
    gang: Gang,
    space: str,
    address: np.ndarray,
    values: np.ndarray,
    atomic: bool = False,
) -> None:
    """Writes [threads, parts] values."""
    parts = values.shape[1]
    size = values.dtype.itemsize * parts
    if space == "param":
        raise AccessError("a store to the parameters of the kernel")
    rows, lanes, offset, memory = _place(wave, gang, space, address, size)
    cells = memory.view(values.dtype).reshape(-1, parts)
    index = offset // size
    if space == "local":
        wave.local.written[offset[:, None] + np.arange(size)] = True
        cells[index] = values
        return
    shadow = _shadow(wave, space)
    bits = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), size)
    raw = memory.reshape(-1, size)
    same = (raw[index] == bits).all(1)
    touched = shadow.granules(offset, size)
    shadow.write(wave, rows, lanes, touched, same=same, atomic=atomic)
    cells[index] = values
    clash = (raw[index] != bits).any(1)
    if clash.any() and not atomic:
        thread = int(np.nonzero(clash)[0][0])
        raise RaceError(
            f"two threads write different values to {space} "
            f"{wave.describe_offset(shadow, int(offset[thread]))} at once; one of them is "
            f"{wave.describe_thread(int(rows[thread]), int(lanes[thread]))}"
        )
    if space == "shared" and wave.banks is not None:
        wave.banks.count(wave, gang, address, size)


def update(
    wave: Wave,
    gang: Gang,
    space: str,
    address: np.ndarray,
    dtype: Any,
    given: list[np.ndarray],
    combine: Any,
) -> np.ndarray:
    """Atomic read-modify-write; the old values. combine is None for compare-and-swap."""
    size = np.dtype(dtype).itemsize
    rows, lanes, offset, memory = _place(wave, gang, space, address, size)
    if space not in ("global", "shared"):
        raise AccessError(f"an atomic on {space} memory")
    shadow = _shadow(wave, space)
    touched = shadow.granules(offset, size)
    shadow.read(wave, rows, lanes, touched, atomic=True)
    shadow.write(wave, rows, lanes, touched, atomic=True)
    cells, index = memory.view(dtype), offset // size
    old = np.empty(len(index), dtype)
    order = np.arange(len(index))
    if wave.random is not None:
        order = wave.random.permutation(len(index))
    # Threads of one instruction that meet at an address take turns; others go together.
    while len(order):
        _, first = np.unique(index[order], return_index=True)
        now = order[first]
        old[now] = cells[index[now]]
        if combine is None:
            equal = old[now] == given[0][now]
            cells[index[now]] = np.where(equal, given[1][now], old[now])
        else:
            cells[index[now]] = combine(old[now], given[0][now])
        order = np.delete(order, first)
    return old
