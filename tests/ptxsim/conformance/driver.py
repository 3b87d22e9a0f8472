"""A case on a GPU, through the CUDA driver by ctypes: nothing but the driver is needed."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .probe import Case, Map

_TYPES = {"u16": 1, "u32": 2, "f32": 7, "bf16": 9}  # CUtensorMapDataType
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


class NoDeviceError(Exception):
    """There is no GPU, or no driver for it."""


class _TensorMapBytes(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint64 * 16)]


class Device:
    """The first GPU of this machine."""

    def __init__(self) -> None:
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoDeviceError(f"no CUDA driver on this machine ({error})") from None
        if self.cuda.cuInit(0):
            raise NoDeviceError("the CUDA driver finds no GPU")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if self.cuda.cuDeviceGet(ctypes.byref(device), 0):
            raise NoDeviceError("the CUDA driver finds no GPU")
        self.check(self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        self.check(self.cuda.cuCtxSetCurrent(context))
        name = ctypes.create_string_buffer(128)
        self.check(self.cuda.cuDeviceGetName(name, 128, device))
        self.name = name.value.decode()
        self.capability = tuple(self._attribute(device, number) for number in (_MAJOR, _MINOR))

    def _attribute(self, device: ctypes.c_int, number: int) -> int:
        value = ctypes.c_int()
        self.check(self.cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device))
        return value.value

    def check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"CUDA error {status}: {(text.value or b'').decode()}")

    def runs(self, case: Case) -> bool:
        """sm_80 PTX runs on everything newer, sm_90a only on compute capability 9.0."""
        return self.capability == (9, 0) if case.arch == "90a" else self.capability >= (8, 0)

    def run(self, case: Case) -> np.ndarray:
        """The output of the case; after a failed launch the context is of no more use."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        name = case.body.split(".entry ")[1].split("(")[0]
        text = case.ptx.encode() + b"\0"
        self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), text))
        self.check(self.cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        output = case.output()
        buffers = {"input": self._copy(case.input), "output": self._copy(output)}
        arguments: list[Any] = [buffers["input"], buffers["output"]]
        arguments += [self._tensor_map(m, buffers[m.buffer].value or 0) for m in case.maps]
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        self.check(
            self.cuda.cuLaunchKernel(
                function, 1, 1, 1, case.threads, 1, 1, 0, None, pointers, None
            )  # fmt: skip
        )
        self.check(self.cuda.cuCtxSynchronize())
        target = output.ctypes.data_as(ctypes.c_void_p)
        self.check(
            self.cuda.cuMemcpyDtoH_v2(target, buffers["output"], ctypes.c_size_t(output.nbytes))
        )
        for buffer in buffers.values():
            self.check(self.cuda.cuMemFree_v2(buffer))
        self.check(self.cuda.cuModuleUnload(module))
        return output

    def _copy(self, array: np.ndarray) -> ctypes.c_uint64:
        pointer = ctypes.c_uint64()
        size = ctypes.c_size_t(max(16, array.nbytes))
        self.check(self.cuda.cuMemAlloc_v2(ctypes.byref(pointer), size))
        source = array.ctypes.data_as(ctypes.c_void_p)
        self.check(self.cuda.cuMemcpyHtoD_v2(pointer, source, ctypes.c_size_t(array.nbytes)))
        return pointer

    def _tensor_map(self, spec: Map, address: int) -> ctypes.Structure:
        """cuTensorMapEncodeTiled: no interleaving, no promotion, zeros outside."""
        rank = len(spec.shape)
        storage = (ctypes.c_uint8 * (128 + 64))()  # the map has to lie at a multiple of 64 bytes
        start = ctypes.addressof(storage)
        encoded = _TensorMapBytes.from_address(start + -start % 64)
        self.check(
            self.cuda.cuTensorMapEncodeTiled(
                ctypes.byref(encoded), _TYPES[spec.kind], rank,
                ctypes.c_void_p(address + spec.offset), (ctypes.c_uint64 * rank)(*spec.shape),
                (ctypes.c_uint64 * 4)(*spec.strides[1:]), (ctypes.c_uint32 * rank)(*spec.box),
                (ctypes.c_uint32 * rank)(*[1] * rank), 0, _SWIZZLES[spec.swizzle], 0, 0,
            )
        )  # fmt: skip
        return _TensorMapBytes.from_buffer_copy(encoded)
