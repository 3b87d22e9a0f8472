"""Scalar instructions against Python's integers and exact fractions, at values that matter."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ptxsim import launch, unknown_instructions
from ptxsim.nvcc import compile_ptx

from .attention_kernels import needs_nvcc
from .small_kernels import run

U32, S32 = 1 << 32, 1 << 31
EDGES = [0, 1, 2, 5, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF]
FLOATS = [0.0, -0.0, 1.0, -1.5, 3.25, 1e-40, 1e38, -1e38, math.inf, -math.inf, math.nan, 0.1]


def signed(x: int, bits: int = 32) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def pairs(values: list[int]) -> np.ndarray:
    """All pairs of the values, as words; 256 of them."""
    out = [word for a in values for b in values for word in (a, b)]
    return np.array((out * 2)[:512], np.uint32)


def evaluate(body: str, words: np.ndarray) -> np.ndarray:
    """Thread t has words 2 t and 2 t + 1 in %x0, %x1 and leaves its result in %y0."""
    text = f"""
        mad.wide.u32 %d4, %t0, 8, %d0;
        ld.global.v2.u32 {{%x0, %x1}}, [%d4];
        {body}
        mad.wide.u32 %d5, %t0, 4, %d1;
        st.global.u32 [%d5], %y0;"""
    return run(text, threads=256, words=256, input=words)[0]


INTEGERS: dict[str, Callable[[int, int], int]] = {
    "add.s32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "mul.hi.s32": lambda a, b: signed(a) * signed(b) >> 32,
    "min.s32": lambda a, b: min(signed(a), signed(b)),
    "max.u32": max,
    "div.s32": lambda a, b: quotient(signed(a), signed(b)) if b else -1,
    "rem.s32": lambda a, b: signed(a) - quotient(signed(a), signed(b)) * signed(b) if b else a,
    "div.u32": lambda a, b: a // b if b else -1,
    "rem.u32": lambda a, b: a % b if b else a,
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
    "shr.s32": lambda a, b: signed(a) >> min(b, 31),
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    words = pairs(EDGES)
    got = evaluate(f"{name} %y0, %x0, %x1;", words).tolist()
    expected = [INTEGERS[name](a, b) % U32 for a, b in words.reshape(-1, 2).tolist()]
    assert got == expected


@pytest.mark.parametrize("name", ["mul.hi.u64", "mul.hi.s64"])
def test_upper_half_of_64_bits(name: str) -> None:
    """The 64-bit factors are (a, b) and (b, a)."""
    words = pairs(EDGES)
    body = f"""
        mov.b64 %d6, {{%x0, %x1}};
        mov.b64 %d7, {{%x1, %x0}};
        {name} %d8, %d6, %d7;
        shr.u64 %d9, %d8, 32;
        xor.b64 %d8, %d8, %d9;
        cvt.u32.u64 %y0, %d8;"""
    expected = []
    for low, high in words.reshape(-1, 2).tolist():
        a, b = low | high << 32, high | low << 32
        product = signed(a, 64) * signed(b, 64) if name.endswith("s64") else a * b
        upper = product >> 64
        expected.append((upper ^ (upper % (1 << 64)) >> 32) % U32)
    assert evaluate(body, words).tolist() == expected


def _compare(name: str, a: float, b: float) -> bool:
    unordered = math.isnan(a) or math.isnan(b)
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if unordered:
        return len(name) == 3
    table = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    return table[name[:2]]


ORDERED = ["eq", "ne", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", [*ORDERED, *(n + "u" for n in ORDERED), "num", "nan"])
def test_comparisons_of_floats(name: str) -> None:
    words = pairs(np.array(FLOATS, np.float32).view(np.uint32).tolist())
    got = evaluate(f"setp.{name}.f32 %p0, %x0, %x1;\nselp.u32 %y0, 1, 0, %p0;", words)
    both = words.view(np.float32).reshape(-1, 2).tolist()
    assert got.tolist() == [int(_compare(name, a, b)) for a, b in both]


@pytest.mark.parametrize("name", ["lt", "ge", "lo", "hs", "hi", "ls"])
def test_comparisons_of_integers(name: str) -> None:
    """lt and ge of signed numbers, the others of unsigned ones, with a second predicate."""
    words = pairs(EDGES)
    kind = "s32" if name in ("lt", "ge") else "u32"
    body = f"""
        setp.ne.u32 %p2, %x1, 2;
        setp.{name}.and.{kind} %p0|%p1, %x0, %x1, %p2;
        selp.u32 %y0, 1, 0, %p0;
        @%p1 add.u32 %y0, %y0, 2;"""
    expected = []
    for a, b in words.reshape(-1, 2).tolist():
        x, y = (signed(a), signed(b)) if kind == "s32" else (a, b)
        holds = {"lt": x < y, "ge": x >= y, "lo": x < y, "hs": x >= y, "hi": x > y, "ls": x <= y}
        expected.append((holds[name] and b != 2) + 2 * (not holds[name] and b != 2))
    assert evaluate(body, words).tolist() == expected


def test_minimum_and_maximum_ignore_nan() -> None:
    words = pairs(np.array(FLOATS, np.float32).view(np.uint32).tolist())
    both = words.view(np.float32).reshape(-1, 2)
    for name, function in (("min", np.fmin), ("max", np.fmax)):
        got = evaluate(f"{name}.f32 %y0, %x0, %x1;", words).view(np.float32)
        np.testing.assert_array_equal(got, function(both[:, 0], both[:, 1]))
    got = evaluate("max.NaN.f32 %y0, %x0, %x1;", words).view(np.float32)
    np.testing.assert_array_equal(got, np.maximum(both[:, 0], both[:, 1]))


def _rounded(value: Fraction) -> float:
    """The float32 nearest to an exact value."""
    near = np.float32(float(value))
    options = [
        near,
        np.nextafter(near, np.float32(np.inf)),
        np.nextafter(near, np.float32(-np.inf)),
    ]
    return float(
        min(options, key=lambda x: (abs(Fraction(float(x)) - value), x.view(np.uint32) & 1))
    )


def test_fused_multiply_add_rounds_once() -> None:
    random = np.random.default_rng(5)
    values = random.normal(0, 1, 512).astype(np.float32)
    got = evaluate("fma.rn.f32 %y0, %x0, %x1, %x0;", values.view(np.uint32)).view(np.float32)
    both = values.reshape(-1, 2).tolist()
    assert got.tolist() == [_rounded(Fraction(a) * Fraction(b) + Fraction(a)) for a, b in both]


def test_flush_to_zero() -> None:
    tiny = np.array([1e-40, 2.0, -1e-40, 1.0] * 128, np.float32).view(np.uint32)
    kept = evaluate("mul.f32 %y0, %x0, %x1;", tiny).view(np.float32)
    flushed = evaluate("mul.ftz.f32 %y0, %x0, %x1;", tiny).view(np.float32)
    assert (kept != 0).all() and (flushed == 0).all()
    assert np.signbit(flushed).tolist() == [False, True] * 128


def test_vector_loads_and_bytes() -> None:
    words = pairs(EDGES)
    body = """
        ld.global.v4.u8 {%t2, %t3, %t4, %t5}, [%d4];
        ld.global.s8 %t6, [%d4+3];
        shl.b32 %t3, %t3, 8;
        or.b32 %y0, %t2, %t3;
        shl.b32 %t4, %t4, 16;
        or.b32 %y0, %y0, %t4;
        shl.b32 %t6, %t6, 24;
        or.b32 %y0, %y0, %t6;"""
    assert evaluate(body, words).tolist() == words[::2].tolist()


def test_branches_meet_again() -> None:
    """A loop of as many turns as the thread has bits; all lanes vote together behind it."""
    body = """
        mov.u32 %y0, 0;
        LOOP:
        setp.eq.u32 %p0, %x0, 0;
        @%p0 bra DONE;
        and.b32 %t2, %x0, 1;
        add.u32 %y0, %y0, %t2;
        shr.u32 %x0, %x0, 1;
        bra LOOP;
        DONE:
        vote.sync.ballot.b32 %t3, %p0, -1;
        not.b32 %t3, %t3;
        add.u32 %y0, %y0, %t3;"""
    words = pairs(EDGES)
    assert evaluate(body, words).tolist() == [bin(x).count("1") for x in words[::2].tolist()]


def test_jump_table() -> None:
    body = """
        and.b32 %t2, %x0, 3;
        TABLE: .branchtargets A, B, C, B;
        brx.idx %t2, TABLE;
        A:
        mov.u32 %y0, 10;
        bra END;
        B:
        mov.u32 %y0, 20;
        bra END;
        C:
        mov.u32 %y0, 30;
        END:"""
    words = pairs(EDGES)
    expected = [[10, 20, 30, 20][x & 3] for x in words[::2].tolist()]
    assert evaluate(body, words).tolist() == expected


SOURCE = """
__constant__ float table[4] = {0.5f, 1.5f, 2.5f, 3.5f};
__device__ int counter = 7;

__device__ __noinline__ float twice(float x, int* calls) {
  *calls += 1;
  return x > 3.0f ? x * 2.0f : x + 1.0f;
}

__device__ __noinline__ int both(int start, float4 v) {
  int calls = start;
  const float sum = twice(v.x, &calls) + twice(v.w, &calls);
  return calls + static_cast<int>(sum);
}

struct Arguments {
  int* out;
  short add;
};

extern "C" __global__ void calls(const Arguments args) {
  const int t = threadIdx.x;
  const float4 v = {static_cast<float>(t), 1.0f, 2.0f, table[t % 4] + t % 5};
  const int start = t % 3 != 0 ? t : 2 * t;
  args.out[t] = (t % 3 != 0 ? both(start, v) : both(start, v) + 1) + args.add + counter;
}
"""


@needs_nvcc
def test_calls_constants_and_structs(tmp_path: Path) -> None:
    """Functions with pointers to locals and structs by value, as nvcc compiles them."""
    source = tmp_path / "calls.cu"
    source.write_text(SOURCE)
    ptx = compile_ptx(source, "80")
    assert "call" in ptx
    assert unknown_instructions(ptx) == []
    from ptxsim import GlobalMemory

    memory = GlobalMemory()
    out = memory.put(np.zeros(96, np.int32))
    launch(ptx, "calls", (1,), (96,), [struct.pack("<Qh6x", out, -5)], memory=memory)

    def twice(x: float) -> float:
        return x * 2 if x > 3 else x + 1

    expected = []
    for t in range(96):
        start = t if t % 3 else 2 * t
        total = int(twice(t) + twice(t % 4 + 0.5 + t % 5))
        expected.append(start + 2 + total + (0 if t % 3 else 1) - 5 + 7)
    assert memory.get(out).tolist() == expected
