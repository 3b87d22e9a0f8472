"""wgmma: operands in shared memory in every layout of its descriptors, and from registers."""

from __future__ import annotations

import numpy as np

from .probe import Case, bits, probe, small_integers

_SWIZZLE_CODE = {0: 0, 128: 1, 64: 2, 32: 3}
THREADS = 128


def swizzle_place(row: int, byte: int, width: int) -> int:
    """Where byte `byte` of row `row` lies if rows of `width` bytes are swizzled over 128 bytes.

    128: the 16-byte column is XORed with the row modulo 8; 64 and 32 hold 2 and 4 rows in a line of
    128 bytes, and XOR fewer bits with the line.
    """
    column, inside = byte // 16, byte % 16
    if width == 128:
        column ^= row % 8
    elif width == 64:
        column ^= row // 2 % 4
    elif width == 32:
        column ^= row // 4 % 2
    return row * width + column * 16 + inside


def image_k(matrix: np.ndarray, width: int) -> tuple[np.ndarray, int, int]:
    """A [rows, k] tile whose rows go along K as bytes, its leading and stride byte offsets."""
    rows, k = matrix.shape
    size = matrix.dtype.itemsize
    if not width:  # 8 x 16 byte cores, those of one k after the other
        lead, stride = rows * 16, 128
        out = np.zeros(rows * k * size, np.uint8)
        for r in range(rows):
            for c in range(k):
                at = c * size // 16 * lead + r // 8 * stride + r % 8 * 16 + c * size % 16
                out[at : at + size] = matrix[r, c : c + 1].view(np.uint8)
        return out, lead, stride
    out = np.zeros(rows * width, np.uint8)
    for r in range(rows):
        for c in range(k):
            at = swizzle_place(r, c * size, width)
            out[at : at + size] = matrix[r, c : c + 1].view(np.uint8)
    return out, 0, 8 * width


def image_mn(matrix: np.ndarray, width: int) -> tuple[np.ndarray, int, int]:
    """The same tile with its rows (M or N) along the bytes: transposed operands."""
    rows, k = matrix.shape
    if not width:
        lead, stride = 128, 256  # next 8 of k, next 8 rows
        out = np.zeros(rows * k * 2, np.uint8)
        for r in range(rows):
            for c in range(k):
                at = r // 8 * stride + c // 8 * lead + c % 8 * 16 + r % 8 * 2
                out[at : at + 2] = matrix[r, c : c + 1].view(np.uint8)
        return out, lead, stride
    atom = width // 2  # rows that lie side by side
    lead, stride = k * width, 8 * width
    out = np.zeros(-(-rows // atom) * lead, np.uint8)
    for r in range(rows):
        for c in range(k):
            at = r // atom * lead + swizzle_place(c, r % atom * 2, width)
            out[at : at + 2] = matrix[r, c : c + 1].view(np.uint8)
    return out, lead, stride


def _descriptor(register: int, offset: int, lead: int, stride: int, width: int) -> str:
    fixed = (lead >> 4) << 16 | (stride >> 4) << 32 | _SWIZZLE_CODE[width] << 62
    return f"""
        add.u32 %t2, %t1, {offset};
        shr.u32 %t2, %t2, 4;
        and.b32 %t2, %t2, 0x3FFF;
        cvt.u64.u32 %d{register}, %t2;
        or.b64 %d{register}, %d{register}, {fixed};"""


def d_place(thread: int, element: int) -> tuple[int, int]:
    """Row and column of an accumulator's element."""
    warp, lane = thread // 32, thread % 32
    row = 16 * warp + (lane >> 2) + (8 if element // 2 % 2 else 0)
    return row, element // 4 * 8 + lane % 4 * 2 + (element & 1)


def _a_place(thread: int, element: int) -> tuple[int, int]:
    warp, lane = thread // 32, thread % 32
    row = 16 * warp + (lane >> 2) + (8 if element % 4 >= 2 else 0)
    return row, lane % 4 * 2 + (element & 1) + (8 if element >= 4 else 0)


def _case(
    n: int,
    kind: str = "bf16",
    result: str = "f32",
    width: int = 128,
    a_turned: bool = False,
    b_turned: bool = False,
    registers: bool = False,
    keeps: bool = True,
    negative: bool = False,
) -> Case:
    k = 8 if kind == "tf32" else 16
    a, b = small_integers(n, 64, k), small_integers(n + 1, n, k)  # B by columns
    d = small_integers(n + 2, 64, n)
    a_image, *a_steps = (image_mn if a_turned else image_k)(bits(a, kind), width)
    b_image, *b_steps = (image_mn if b_turned else image_k)(bits(b, kind), width)
    a_image = np.concatenate([a_image, np.zeros(-a_image.size % 1024, np.uint8)])
    fill = np.concatenate([a_image, b_image, np.zeros(-b_image.size % 16, np.uint8)])
    held = np.float32 if result == "f32" else np.float16
    count = n // 2 if result == "f32" else n // 4
    start = np.array([[d[d_place(t, e)] for e in range(n // 2)] for t in range(THREADS)])
    total = a @ b.T * (-1 if negative else 1) + (d if keeps else 0)
    expected = np.array([[total[d_place(t, e)] for e in range(n // 2)] for t in range(THREADS)])
    words = start.astype(held).view(np.uint32)
    flags = [-1 if negative else 1, 1]
    names = ", ".join(f"%y{i}" for i in range(count))
    source, loads = "%d4", ""
    if registers:
        elements = np.array([[a[_a_place(t, e)] for e in range(8)] for t in range(THREADS)])
        words = np.concatenate([words, bits(elements, kind).view(np.uint32)], 1)
        source = f"{{%x{count % 28}, %x{count % 28 + 1}, %x{count % 28 + 2}, %x{count % 28 + 3}}}"
        loads = "\n".join(
            f"ld.global.b32 %x{count % 28 + i}, [%d0+{4 * (count + i)}];" for i in range(4)
        )
    if kind != "tf32":
        flags += ([] if registers else [int(a_turned)]) + [int(b_turned)]
    base = "mad.wide.u32 %d0, %t0, {}, %d0;\nadd.u64 %d0, %d0, {};"
    body = f"""
        {base.format(4 * words.shape[1], fill.nbytes)}
        {"".join(f"ld.global.b32 %y{i}, [%d0+{4 * i}];" + chr(10) for i in range(count))}
        {loads}
        {_descriptor(4, 0, *a_steps, width)}
        {_descriptor(5, a_image.size, *b_steps, width)}
        setp.{"eq" if keeps else "ne"}.b32 %p0, 0, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n{n}k{k}.{result}.{kind}.{kind} {{{names}}}, {source}, \
%d5, %p0, {", ".join(map(str, flags))};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;"""
    turned = ("_a" if a_turned else "") + ("_b" if b_turned else "")
    name = f"wgmma_n{n}_{kind}_{result}_swizzle{width}{'_turned' + turned if turned else ''}"
    name += ("_registers" if registers else "") + ("" if keeps else "_fresh")
    name += "_negative" if negative else ""
    data = np.concatenate([fill.view(np.uint32), words.reshape(-1)])
    return probe(name, "90a", body, input=data, fill=fill.nbytes, threads=THREADS, fence=True,
                 expected=expected.astype(held))  # fmt: skip


def cases() -> list[Case]:
    found = [_case(32, width=width) for width in (0, 32, 64, 128)]
    found += [_case(64, width=width, b_turned=True) for width in (0, 32, 64, 128)]
    found += [_case(64, width=width, a_turned=True) for width in (0, 32, 64, 128)]
    found += [_case(n) for n in (8, 24, 256)]
    return [
        *found,
        _case(128, a_turned=True, b_turned=True),
        _case(64, registers=True),
        _case(64, registers=True, b_turned=True, kind="f16"),
        _case(64, kind="f16", result="f16"),
        _case(32, kind="f16", keeps=False),
        _case(32, kind="tf32", width=128),
        _case(32, kind="tf32", width=32),
        _case(16, negative=True),
    ]
