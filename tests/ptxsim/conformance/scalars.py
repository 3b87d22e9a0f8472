"""Instructions of one thread whose definition is easy to get wrong, and atomics."""

from __future__ import annotations

import numpy as np

from .probe import Case, bf16_bits, f16_bits, probe

_M32 = 0xFFFFFFFF


def _words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, (32, count), dtype=np.uint64)


def _permute(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    out = 0
    for n in range(4):
        nibble = selector >> 4 * n & 15
        byte = data[nibble & 7]
        out |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * n
    return out


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _bits() -> list[Case]:
    """prmt, lop3, shf, bfe, bfi, mul.hi, mad.wide, dp4a, popc, clz, brev."""
    words = _words(3, 3)
    rows = []
    for a, b, c in words.tolist():
        shift, length = c & 31, c >> 8 & 15
        field = a >> shift & ((1 << length) - 1)
        kept = min(length, 32 - shift)
        signed = field - (1 << kept) if kept and field >> (kept - 1) & 1 else field
        mask = ((1 << length) - 1) << shift & _M32
        pairs = zip(a.to_bytes(4, "little"), b.to_bytes(4, "little"), strict=True)
        dot = sum((x - 256 if x > 127 else x) * (y - 256 if y > 127 else y) for x, y in pairs)
        wide = a * b + c
        rows.append([
            _permute(a, b, c & 0xFFFF), (a & b) | (a & c) | (b & c), a ^ b ^ c,
            ((b << 32 | a) << shift) >> 32 & _M32, (b << 32 | a) >> shift & _M32,
            field, signed & _M32, (b & ~mask | a << shift & mask) & _M32,
            a * b >> 32, _signed(a) * _signed(b) >> 32 & _M32, wide & _M32, wide >> 32,
            (dot + c) & _M32, bin(a).count("1"), 32 - a.bit_length(), int(f"{a:032b}"[::-1], 2),
        ])  # fmt: skip
    body = """
        prmt.b32 %y0, %x0, %x1, %x2;
        lop3.b32 %y1, %x0, %x1, %x2, 0xE8;
        lop3.b32 %y2, %x0, %x1, %x2, 0x96;
        and.b32 %t2, %x2, 31;
        bfe.u32 %t3, %x2, 8, 4;
        shf.l.wrap.b32 %y3, %x0, %x1, %x2;
        shf.r.wrap.b32 %y4, %x0, %x1, %x2;
        bfe.u32 %y5, %x0, %t2, %t3;
        bfe.s32 %y6, %x0, %t2, %t3;
        bfi.b32 %y7, %x0, %x1, %t2, %t3;
        mul.hi.u32 %y8, %x0, %x1;
        mul.hi.s32 %y9, %x0, %x1;
        cvt.u64.u32 %d4, %x2;
        mad.wide.u32 %d5, %x0, %x1, %d4;
        cvt.u32.u64 %y10, %d5;
        shr.u64 %d5, %d5, 32;
        cvt.u32.u64 %y11, %d5;
        dp4a.s32.s32 %y12, %x0, %x1, %x2;
        popc.b32 %y13, %x0;
        clz.b32 %y14, %x0;
        brev.b32 %y15, %x0;"""
    return [probe("bits", "80", body, input=words.astype(np.uint32), loads=3,
                  expected=np.array(rows, np.uint32))]  # fmt: skip


def _packing() -> list[Case]:
    """Order of the halves of cvt, fused arithmetic on pairs, and a pair cut and joined."""
    a = np.arange(32).astype(np.float32) % 12 - 5
    b = 2 * a + 1
    low, high = (bf16_bits(x).astype(np.uint32) for x in (b, a))
    square = bf16_bits(b * b + b).astype(np.uint32) | bf16_bits(a * a + a).astype(np.uint32) << 16
    halves = f16_bits(b).astype(np.uint32) | f16_bits(a).astype(np.uint32) << 16
    product = f16_bits(b * b).astype(np.uint32) | f16_bits(a * a).astype(np.uint32) << 16
    expected = np.stack([low | high << 16, square, halves, product, high | low << 16], 1)
    body = """
        cvt.rn.bf16x2.f32 %y0, %x0, %x1;
        fma.rn.bf16x2 %y1, %y0, %y0, %y0;
        cvt.rn.f16x2.f32 %y2, %x0, %x1;
        mul.rn.f16x2 %y3, %y2, %y2;
        mov.b32 {%h0, %h1}, %y0;
        mov.b32 %y4, {%h1, %h0};"""
    words = np.stack([a, b], 1)
    return [probe("packing", "80", body, input=words, loads=2, expected=expected)]


def _rounding() -> list[Case]:
    """float32 -> bfloat16 and TF32 at and beside ties, and float -> integer at the limits."""
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3F800800, 0x3F801000,
                     0x3F801800, 0xBF818000], np.uint32)  # fmt: skip
    nearest = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x3F80, 0x3F80, 0x3F80, 0xBF82]
    down = [0x3F80, 0x3F81, 0x3F80, 0x3F80, 0x3F80, 0x3F80, 0x3F80, 0xBF81]
    tf32 = [(int(x) + 0x1000) & 0xFFFFE000 for x in ties]
    numbers = np.array([1.5, 2.5, -1.5, -2.5, 3e9, -3e9, np.nan, 0.49], np.float32)
    to_even = [2, 2, -2, -2, 2**31 - 1, -(2**31), 0, 0]
    to_zero = [1, 2, -1, -2, 2**31 - 1, -(2**31), 0, 0]
    unsigned = [1, 2, 0, 0, 3000000000, 0, 0, 0]
    expected = np.array([nearest, down, tf32, to_even, to_zero, unsigned], np.int64).T & _M32
    body = """
        cvt.rn.bf16.f32 %h0, %x0;
        cvt.u32.u16 %y0, %h0;
        cvt.rz.bf16.f32 %h0, %x0;
        cvt.u32.u16 %y1, %h0;
        cvt.rna.tf32.f32 %y2, %x0;
        cvt.rni.s32.f32 %y3, %x1;
        cvt.rzi.s32.f32 %y4, %x1;
        cvt.rzi.u32.f32 %y5, %x1;"""
    words = np.stack([ties, numbers.view(np.uint32)], 1)
    return [probe("rounding", "90a", body, input=np.tile(words, (4, 1)), loads=2,
                  expected=np.tile(expected.astype(np.uint32), (4, 1)))]  # fmt: skip


def _approximations() -> list[Case]:
    """ex2, lg2, rcp, rsqrt, sqrt, tanh: within what the manual grants them."""
    x = np.linspace(0.1, 6, 32).astype(np.float32)
    exact = x.astype(np.float64)
    expected = np.stack(
        [np.exp2(exact), np.log2(exact), 1 / exact, exact**-0.5, np.sqrt(exact), np.tanh(exact)], 1
    ).astype(np.float32)
    names = ["ex2.approx.ftz", "lg2.approx", "rcp.approx", "rsqrt.approx", "sqrt.approx"]
    lines = [f"{name}.f32 %y{n}, %x0;" for n, name in enumerate([*names, "tanh.approx"])]
    return [probe("approximations", "80", "\n".join(lines), input=x, loads=1, expected=expected,
                  tolerance=2.0**-10.5)]  # fmt: skip


def _atomics() -> list[Case]:
    """Additions of all threads to one place: integers, floats, pairs of halves, vectors."""
    start = np.zeros(8, np.uint32)
    start[6] = 100
    total = sum(range(32))
    expected = start.copy()
    expected[0] = total
    expected[1] = np.float32(total).view(np.uint32)
    expected[2] = f16_bits(np.array([32, 64])).view(np.uint32)[0]
    expected[3] = bf16_bits(np.array([32, 64])).view(np.uint32)[0]
    expected[4:6] = np.array([total, 2 * total], np.float32).view(np.uint32)
    expected[6], expected[7] = 100 - 31, 31
    ones = f16_bits(np.array([1, 2])).view(np.uint32)[0]
    bf_ones = bf16_bits(np.array([1, 2])).view(np.uint32)[0]
    body = f"""
        cvt.rn.f32.u32 %x0, %t0;
        add.f32 %x1, %x0, %x0;
        red.global.add.u32 [%d1], %t0;
        red.global.add.f32 [%d1+4], %x0;
        mov.b32 %t2, {ones};
        red.global.add.noftz.f16x2 [%d1+8], %t2;
        mov.b32 %t3, {bf_ones};
        red.global.add.noftz.bf16x2 [%d1+12], %t3;
        red.global.add.v2.f32 [%d1+16], {{%x0, %x1}};
        sub.u32 %t4, 100, %t0;
        red.global.min.u32 [%d1+24], %t4;
        atom.global.inc.u32 %t5, [%d1+28], 1000;
        sub.u32 %t6, %t5, %t5;
        atom.global.max.u32 %t5, [%d1+28], %t6;
        setp.ne.u32 %p0, %t0, 31;
        @%p0 bra END;
        atom.global.cas.b32 %t5, [%d1+28], 32, 31;
        END:"""
    return [probe("atomics", "90a", body, input=np.zeros(1), stores=0, expected=expected,
                  start=start)]  # fmt: skip


def cases() -> list[Case]:
    return [*_bits(), *_packing(), *_rounding(), *_approximations(), *_atomics()]
