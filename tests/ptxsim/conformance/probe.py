"""A microkernel: loads words, fills shared memory, executes a body, stores words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Map:
    """A tensor map over the input or the output buffer; innermost dimension first, in bytes."""

    buffer: str  # "input" or "output"
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    kind: str  # "u16", "u32", "f32", "bf16"
    swizzle: int


@dataclass(frozen=True)
class Case:
    """input is given to the kernel as words; output must equal `expected` (as its dtype)."""

    name: str
    arch: str  # "80" or "90a"
    body: str  # a .visible .entry
    threads: int
    input: np.ndarray
    expected: np.ndarray
    maps: tuple[Map, ...] = ()
    tolerance: float = 0.0  # relative
    start: np.ndarray | None = field(default=None)  # what output holds before; None: all ones

    @property
    def ptx(self) -> str:
        return module(self.arch, [self.body])

    def output(self) -> np.ndarray:
        if self.start is not None:
            return self.start.copy()
        out = np.empty_like(self.expected)
        out.view(np.uint8).fill(0xFF)
        return out

    def matches(self, output: np.ndarray) -> bool:
        if not self.tolerance:
            return bool(np.array_equal(output, self.expected))
        return bool(np.allclose(output, self.expected, rtol=self.tolerance, atol=0))


def module(arch: str, bodies: list[str]) -> str:
    """A PTX module of these entries."""
    return f".version 8.1\n.target sm_{arch}\n.address_size 64\n\n" + "\n".join(bodies)


def probe(
    name: str,
    arch: str,
    body: str,
    *,
    input: Any,
    expected: np.ndarray,
    threads: int = 32,
    loads: int = 0,
    stores: int | None = None,
    fill: int = 0,
    shared: int = 0,
    fence: bool = False,
    maps: tuple[Map, ...] = (),
    tolerance: float = 0.0,
    start: np.ndarray | None = None,
) -> Case:
    """A case around `body`.

    The first `fill` bytes of the input go to the start of `tile` in shared memory; then %x0 .. are
    `loads` words of the thread. %y0 .. are stored, `stores` words a thread (None: as many as
    `expected` has). %d0 is the thread's input, %d1 the output, %t0 the thread, %t1 the address of
    the tile. fence: the asynchronous proxy may read the tile.
    """
    if stores is None:
        stores = expected.nbytes // 4 // threads
    names = "".join(f", .param .align 64 .b8 map{n}[128]" for n in range(len(maps)))
    lines = [
        f".visible .entry {name}(.param .u64 source, .param .u64 result{names})",
        "{",
        ".reg .pred %p<8>, %again;",
        ".reg .b16 %h<8>;",
        ".reg .b32 %t<8>, %x<32>, %y<132>;",
        ".reg .b64 %d<16>;",
        f".shared .align 1024 .b8 tile[{max(shared, fill, 16)}];",
        ".shared .align 8 .b8 barrier[16];",
        "mov.u32 %t0, %tid.x;",
        "mov.u32 %t1, tile;",
        "ld.param.u64 %d0, [source];",
        "ld.param.u64 %d1, [result];",
        "cvta.to.global.u64 %d0, %d0;",
        "cvta.to.global.u64 %d1, %d1;",
    ]
    if fill:
        lines += _fill(fill, threads)
        lines += ["fence.proxy.async;"] if fence else []
        lines += ["bar.sync 0;"]
    lines.append(f"mad.wide.u32 %d0, %t0, {4 * loads}, %d0;")
    lines += [f"ld.global.b32 %x{n}, [%d0+{fill + 4 * n}];" for n in range(loads)]
    lines += [line.strip() for line in body.strip().splitlines()]
    if stores:
        lines.append(f"mad.wide.u32 %d2, %t0, {4 * stores}, %d1;")
        lines += [f"st.global.b32 [%d2+{4 * n}], %y{n};" for n in range(stores)]
    lines += ["ret;", "}"]
    words = np.ascontiguousarray(input).reshape(-1).view(np.uint8)
    words = np.concatenate([words, np.zeros(-words.size % 4, np.uint8)]).view(np.uint32)
    return Case(name, arch, "\n".join(lines) + "\n", threads, words,
                np.ascontiguousarray(expected), maps, tolerance, start)  # fmt: skip


def _fill(size: int, threads: int) -> list[str]:
    return [
        "mov.u32 %t2, %t0;",
        "FILL:",
        "mad.wide.u32 %d3, %t2, 4, %d0;",
        "ld.global.b32 %t3, [%d3];",
        "mad.lo.u32 %t4, %t2, 4, %t1;",
        "st.shared.b32 [%t4], %t3;",
        f"add.u32 %t2, %t2, {threads};",
        f"setp.lt.u32 %again, %t2, {size // 4};",
        "@%again bra FILL;",
    ]


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Exact for small integers."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def f16_bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float16).view(np.uint16)


def bits(values: np.ndarray, kind: str) -> np.ndarray:
    """Small integers as words of the type of a product: uint16, or uint32 for tf32."""
    if kind == "tf32":
        return np.asarray(values, np.float32).view(np.uint32)
    return bf16_bits(values) if kind == "bf16" else f16_bits(values)


def small_integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape)
