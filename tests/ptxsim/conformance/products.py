"""mma.sync: fragments by the tables of the PTX manual, sections "Matrix fragments for mma"."""

from __future__ import annotations

import numpy as np

from . import group_products
from .probe import Case, bits, probe, small_integers


def a_place(lane: int, element: int) -> tuple[int, int]:
    """Row and column of element i of A, 16-bit types, m16n8k8 and m16n8k16."""
    group, member = lane >> 2, lane % 4
    row = group if element % 4 < 2 else group + 8
    column = member * 2 + (element & 1) + (8 if element >= 4 else 0)
    return row, column


def b_place(lane: int, element: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    return member * 2 + (element & 1) + (8 if element >= 2 else 0), group


def c_place(lane: int, element: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    return (group if element < 2 else group + 8), member * 2 + (element & 1)


def a_place_tf32(lane: int, element: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    row = group if element % 2 == 0 else group + 8
    return row, member if element < 2 else member + 4


def b_place_tf32(lane: int, element: int) -> tuple[int, int]:
    return lane % 4 + 4 * element, lane >> 2


def fragment(matrix: np.ndarray, place, count: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """[32, count] elements of the lanes."""
    return np.array([[matrix[place(lane, e)] for e in range(count)] for lane in range(32)])


def _case(k: int, kind: str, result: str) -> Case:
    a, b = small_integers(k, 16, k), small_integers(k + 1, k, 8)
    c = small_integers(k + 2, 16, 8)
    tf32 = kind == "tf32"
    per_register = 1 if tf32 else 2
    a_regs, b_regs = 16 * k // 32 // per_register, 8 * k // 32 // per_register
    places = (a_place_tf32, b_place_tf32) if tf32 else (a_place, b_place)
    held_c = np.float32 if result == "f32" else np.float16
    words = np.concatenate(
        [
            bits(fragment(a, places[0], a_regs * per_register), kind).view(np.uint32),
            bits(fragment(b, places[1], b_regs * per_register), kind).view(np.uint32),
            fragment(c, c_place, 4).astype(held_c).view(np.uint32),
        ],
        1,
    )
    expected = fragment(a @ b + c, c_place, 4).astype(held_c)
    c_regs = 4 if result == "f32" else 2

    def names(letter: str, start: int, count: int) -> str:
        return "{" + ", ".join(f"%{letter}{start + n}" for n in range(count)) + "}"

    body = (
        f"mma.sync.aligned.m16n8k{k}.row.col.{result}.{kind}.{kind}.{result} "
        f"{names('y', 0, c_regs)}, {names('x', 0, a_regs)}, {names('x', a_regs, b_regs)}, "
        f"{names('x', a_regs + b_regs, c_regs)};"
    )
    return probe(f"mma_k{k}_{kind}_{result}", "80", body, input=words, loads=words.shape[1],
                 expected=expected)  # fmt: skip


def cases() -> list[Case]:
    forms = [
        (16, "f16", "f32"), (16, "bf16", "f32"), (16, "f16", "f16"), (8, "f16", "f32"),
        (8, "bf16", "f32"), (8, "f16", "f16"), (4, "tf32", "f32"), (8, "tf32", "f32"),
    ]  # fmt: skip
    return [*(_case(*form) for form in forms), *group_products.cases()]
