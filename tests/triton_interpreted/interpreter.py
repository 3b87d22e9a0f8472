"""Triton's interpreter, corrected: bf16 as GPUs compute it, and no access outside of a tensor.

Upstream stores bf16 as uint16 and says that it does not support it: products multiply the bit
patterns, sums add them, and conversions truncate. Here products and conversions are right, and
any other bf16 arithmetic is an error instead of a wrong number.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


class OutOfBoundsError(Exception):
    """A program touched memory outside of the tensors that it was given."""


def install() -> None:
    """Correct the interpreter and let it run the kernels that are imported from now on."""
    triton.knobs.runtime.interpret = True
    if isinstance(interpreter._interpreter, _CheckedMemory):
        return
    _correct_dot()
    for name in ("cast_impl", "create_fp_to_fp"):
        _correct_cast(name)
    for name in ("binary_op", "unary_op", "create_fma"):
        _refuse_bf16(name)
    _refuse_bf16_reductions()
    _patch_language_once()
    interpreter._interpreter = _CheckedMemory(interpreter._interpreter)


def _is_bf16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _to_fp32(handle: TensorHandle) -> TensorHandle:
    if not _is_bf16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    """Bit patterns of fp32 values, rounded to nearest even as GPUs do."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    patterns = np.where(np.isnan(values).reshape(bits.shape), 0x7FFF, rounded)
    return patterns.astype(np.uint16).reshape(np.shape(values))


def _correct_dot() -> None:
    original = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, d: Any, *rest: Any) -> Any:
        return original(self, _to_fp32(a), _to_fp32(b), d, *rest)

    InterpreterBuilder.create_dot = create_dot


def _correct_cast(name: str) -> None:
    original = getattr(InterpreterBuilder, name)

    @functools.wraps(original)
    def cast(self: Any, handle: TensorHandle, to: Any, *rest: Any) -> Any:
        source, target = handle.dtype.scalar, to.scalar
        if source == target:
            return TensorHandle(handle.data, target)
        if source == tl.bfloat16:
            wide = _to_fp32(handle)
            return wide if target == tl.float32 else original(self, wide, to, *rest)
        if target == tl.bfloat16:
            return TensorHandle(_to_bf16(handle.data.astype(np.float32)), tl.bfloat16)
        return original(self, handle, to, *rest)

    setattr(InterpreterBuilder, name, cast)


def _refuse_bf16(name: str) -> None:
    original = getattr(InterpreterBuilder, name)

    @functools.wraps(original)
    def operation(self: Any, *args: Any) -> Any:
        if any(map(_is_bf16, args)):
            raise TypeError(f"{name} on bf16, which the interpreter cannot: convert to fp32 first")
        return original(self, *args)

    setattr(InterpreterBuilder, name, operation)


def _refuse_bf16_reductions() -> None:
    original = interpreter.ReduceScanOpInterface.check_tensor

    def check_tensor(self: Any, values: Any) -> None:
        original(self, values)
        if any(_is_bf16(value.handle) for value in values):
            raise TypeError("reduction of bf16, which the interpreter cannot: convert to fp32")

    interpreter.ReduceScanOpInterface.check_tensor = check_tensor


class _Scope:
    """What a launch has patched, its functions included; only the launch restores it."""

    def __init__(self, patched: list[Any]) -> None:
        self._patched = patched

    def restore(self) -> None:
        while self._patched:
            self._patched.pop().restore()


def _patch_language_once() -> None:
    """Functions that a kernel calls do not patch triton.language again: half of all the time.

    Nor do they leave it patched for ever, as they do upstream.
    """
    original = interpreter._patch_lang
    patched: list[Any] = []
    names: set[str] = set()

    @functools.cache
    def languages(function: Any) -> frozenset[str]:
        modules = filter(inspect.ismodule, function.__globals__.values())
        return frozenset(module.__name__ for module in modules if module in (tl, tl.core))

    def patch_lang(function: Any) -> _Scope:
        if not patched:
            names.clear()
        if not languages(function) <= names:
            patched.append(original(function))
            names.update(languages(function))
        return _Scope(patched)

    interpreter._patch_lang = patch_lang


@contextmanager
def only_memory_of(*tensors: Tensor | None) -> Iterator[None]:
    """Meanwhile every access has to lie inside of one of the tensors, gaps of views included."""
    memory = interpreter._interpreter
    before, memory.spans = memory.spans, sorted(_spans(tensors))
    try:
        yield
    finally:
        memory.spans = before


@contextmanager
def only_known_memory(*tensors: Tensor | None) -> Iterator[None]:
    """The same, where what is allocated meanwhile is known, too. That starts as NaN, or as -1."""

    def known(allocate: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
            allocated.append(tensor)  # so that its memory is not given to another one
            memory.spans = sorted([*memory.spans, *_spans([tensor])])
            return tensor

        return wrapper

    allocated: list[Tensor] = []
    memory = interpreter._interpreter
    with only_memory_of(*tensors), pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, known(getattr(owner, name)))
        yield


def _spans(tensors: Iterable[Tensor | None]) -> list[tuple[int, int]]:
    """Addresses [begin, end) of each tensor."""
    spans = []
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((size - 1) * stride for size, stride in sizes)
            begin = tensor.data_ptr()
            spans.append((begin, begin + (last + 1) * tensor.element_size()))
    return spans


class _CheckedMemory:
    """The interpreter's access to memory, with a look at the addresses before."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.spans: list[tuple[int, int]] | None = None  # None: no checks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check("load", pointers, mask, np.dtype(dtype).itemsize)
        return self._memory.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        self._check("store", pointers, mask, values.dtype.itemsize)
        return self._memory.store(pointers, values, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, values: Any, mask: Any, order: Any) -> Any:
        self._check("atomic", pointers, mask, values.dtype.itemsize)
        return self._memory.atomic_rmw(operation, pointers, values, mask, order)

    def _check(self, kind: str, pointers: Any, mask: Any, size: int) -> None:
        if self.spans is None:
            return
        used = np.asarray(pointers)[np.asarray(mask, bool)].astype(np.int64)
        if not used.size:
            return
        begins = np.array([begin for begin, _ in self.spans] or [0])
        ends = np.array([end for _, end in self.spans] or [0])
        nearest = np.searchsorted(begins, used, "right") - 1
        wrong = (nearest < 0) | (used + size > ends[np.maximum(nearest, 0)])
        if wrong.any():
            raise OutOfBoundsError(f"{kind}: {int(wrong.sum())} of {used.size} elements")
