"""ldmatrix, stmatrix, movmatrix."""

from __future__ import annotations

import numpy as np

from .probe import Case, probe


def _fragment(matrix: np.ndarray, lane: int, transposed: bool) -> int:
    """The register of a lane: row lane / 4, columns 2 (lane % 4) and the next."""
    row, column = lane // 4, lane % 4 * 2
    source = matrix.T if transposed else matrix
    return int(source[row, column]) | int(source[row, column + 1]) << 16


def _addresses(count: int) -> str:
    """Lane l names row l; rows lie 48 bytes apart, so that the order of rows shows."""
    return f"""
        and.b32 %t2, %t0, {8 * count - 1};
        mad.lo.u32 %t2, %t2, 48, %t1;"""


def _rows(count: int) -> np.ndarray:
    """[8 count rows, 24] 16-bit numbers, of which the first eight of a row are the matrix's."""
    return np.arange(8 * count * 24).astype(np.uint16).reshape(-1, 24)


def _loads() -> list[Case]:
    found = []
    for count in (1, 2, 4):
        for transposed in (False, True):
            rows = _rows(count)
            expected = np.array(
                [
                    [_fragment(rows[8 * m : 8 * m + 8, :8], lane, transposed) for m in range(count)]
                    for lane in range(32)
                ],
                np.uint32,
            )
            names = ", ".join(f"%y{n}" for n in range(count))
            trans = ".trans" if transposed else ""
            body = (
                _addresses(count)
                + f"""
                ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%t2];"""
            )
            name = f"ldmatrix_x{count}{'_trans' if transposed else ''}"
            found.append(probe(name, "80", body, input=rows, fill=rows.nbytes, expected=expected))
    return found


def _stores() -> list[Case]:
    found = []
    for count in (1, 2, 4):
        for transposed in (False, True):
            registers = np.arange(32 * count).astype(np.uint32).reshape(32, count)
            registers = registers * 2 | (registers * 2 + 1) << 16
            rows = np.zeros((8 * count, 24), np.uint16)
            for lane in range(32):
                for m in range(count):
                    for half in (0, 1):
                        row, column = lane // 4, lane % 4 * 2 + half
                        if transposed:
                            row, column = column, row
                        rows[8 * m + row, column] = registers[lane, m] >> 16 * half & 0xFFFF
            fill = np.zeros((8 * count, 24), np.uint16)
            words = rows.nbytes // 4 // 32
            names = ", ".join(f"%x{n}" for n in range(count))
            trans = ".trans" if transposed else ""
            reads = "\n".join(f"ld.shared.b32 %y{n}, [%t3+{4 * n}];" for n in range(words))
            body = (
                _addresses(count)
                + f"""
                bar.sync 0;
                stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%t2], {{{names}}};
                bar.sync 0;
                mad.lo.u32 %t3, %t0, {4 * words}, %t1;
                {reads}"""
            )
            data = np.concatenate([fill.reshape(-1).view(np.uint32), registers.reshape(-1)])
            name = f"stmatrix_x{count}{'_trans' if transposed else ''}"
            found.append(
                probe(name, "90a", body, input=data, fill=rows.nbytes, loads=count,
                      expected=rows)
            )  # fmt: skip
    return found


def _move() -> list[Case]:
    matrix = np.arange(64).astype(np.uint16).reshape(8, 8)
    registers = np.array([_fragment(matrix, lane, False) for lane in range(32)], np.uint32)
    expected = np.array([_fragment(matrix, lane, True) for lane in range(32)], np.uint32)
    body = "movmatrix.sync.aligned.m8n8.trans.b16 %y0, %x0;"
    return [probe("movmatrix", "80", body, input=registers, loads=1, expected=expected)]


def cases() -> list[Case]:
    return [*_loads(), *_stores(), *_move()]
