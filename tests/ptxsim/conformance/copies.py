"""cp.async, bulk copies and tensor copies with swizzles and out-of-bounds fill."""

from __future__ import annotations

import numpy as np

from .group_products import swizzle_place
from .probe import Case, Map, probe

_INIT = """
    mov.u32 %t5, barrier;
    setp.eq.u32 %p0, %t0, 0;
    @%p0 mbarrier.init.shared::cta.b64 [%t5], 1;
    fence.mbarrier_init.release.cluster;
    bar.sync 0;
"""
_WAIT = """
    TRY:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%t5], 0;
    @!%p1 bra TRY;
"""


def _read_tile(words: int) -> str:
    """Thread t stores words t * words .. of the tile."""
    reads = "\n".join(f"ld.shared.b32 %y{n}, [%t3+{4 * n}];" for n in range(words))
    return f"mad.lo.u32 %t3, %t0, {4 * words}, %t1;\n{reads}"


def _async_copies() -> list[Case]:
    """Every thread copies 16 bytes in pieces; the last piece takes fewer bytes, the rest is 0."""
    found = []
    for size, used in [(4, 4), (8, 8), (16, 16), (4, 0), (8, 3), (16, 5), (16, 0)]:
        data = np.random.default_rng(size).integers(0, 256, (32, 16)).astype(np.uint8)
        expected = data.copy()
        expected[:, 16 - size + used :] = 0
        kind = "cg" if size == 16 else "ca"
        lines = [
            f"cp.async.{kind}.shared.global [%t2+{at}], [%d4+{at}], {size}"
            f"{f', {used}' if at == 16 - size and used < size else ''};"
            for at in range(0, 16, size)
        ]
        body = f"""
            mad.lo.u32 %t2, %t0, 16, %t1;
            mad.wide.u32 %d4, %t0, 16, %d0;
            {chr(10).join(lines)}
            cp.async.commit_group;
            cp.async.wait_group 0;
            bar.sync 0;
            {_read_tile(4)}"""
        found.append(probe(f"cp_async_{size}_of_{used}", "80", body, input=data, shared=512,
                           expected=expected))  # fmt: skip
    return found


def _bulk() -> list[Case]:
    """A plain bulk load and store, and a bulk reduction."""
    data = np.arange(128).astype(np.uint32)
    load = (
        _INIT
        + """
        @!%p0 bra LOADED;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], 512;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%d0], 512, [%t5];
        LOADED:
    """
        + _WAIT
    )
    store = """
        bar.sync 0;
        @!%p0 bra STORED;
        cp{}.async.bulk.global.shared::cta.bulk_group{} [%d1], [%t1], 512;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        STORED:"""
    floats = np.arange(128).astype(np.float32)
    start = np.full(128, 1000, np.float32)
    return [
        probe("bulk_load", "90a", load + _read_tile(4), input=data, shared=512, expected=data),
        probe("bulk_store", "90a", load + store.format("", ""), input=data, shared=512, stores=0,
              expected=data),
        probe("bulk_reduce_add_f32", "90a", load + store.format(".reduce", ".add.f32"),
              input=floats, shared=512, stores=0, expected=floats + start, start=start),
    ]  # fmt: skip


def _tensor_loads() -> list[Case]:
    """A box of 8 rows at (column, row, 0), partly outside: what is outside becomes 0."""
    found = []
    rows, columns, heads = 10, 96, 2
    source = np.arange(heads * rows * columns).astype(np.uint16).reshape(heads, rows, columns)
    source += 1
    for swizzle in (0, 32, 64, 128):
        width = (swizzle or 128) // 2
        for row, column in ((0, 0), (5, 64), (-3, -8)):
            box = np.zeros((16, width), np.uint16)
            for r in range(16):
                for c in range(width):
                    if 0 <= r + row < rows and 0 <= c + column < columns:
                        box[r, c] = source[1, r + row, c + column]
            tile = np.zeros(16 * width * 2, np.uint8)
            for r in range(16):
                for c in range(width):
                    at = swizzle_place(r, 2 * c, swizzle) if swizzle else (r * width + c) * 2
                    tile[at : at + 2] = box[r, c : c + 1].view(np.uint8)
            map_ = Map("input", 0, (columns, rows, heads), (2, 2 * columns, 2 * columns * rows),
                       (width, 16, 1), "u16", swizzle)  # fmt: skip
            body = (
                _INIT
                + f"""
                mov.u64 %d4, map0;
                cvta.param.u64 %d4, %d4;
                mov.s32 %t2, {column};
                mov.s32 %t3, {row};
                mov.s32 %t4, 1;
                @!%p0 bra LOADED;
                mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], {tile.size};
                cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%t1], [%d4, {{%t2, %t3, %t4}}], [%t5];
                LOADED:
                """
                + _WAIT
                + _read_tile(tile.size // 128)
            )
            name = f"tensor_load_swizzle{swizzle}_{row}_{column}".replace("-", "m")
            found.append(probe(name, "90a", body, input=source, shared=tile.size, expected=tile,
                               maps=(map_,)))  # fmt: skip
    return found


def _tensor_stores() -> list[Case]:
    """A swizzled box is stored, or added, partly outside of the tensor."""
    found = []
    rows, columns = 12, 32
    for operation, swizzle in (("store", 128), ("store", 64), ("store", 0), ("add", 128)):
        width = (swizzle or 128) // 4
        box = np.arange(16 * width).reshape(16, width).astype(np.float32)
        tile = np.zeros(16 * width * 4, np.uint8)
        for r in range(16):
            for c in range(width):
                at = swizzle_place(r, 4 * c, swizzle) if swizzle else (r * width + c) * 4
                tile[at : at + 4] = box[r, c : c + 1].view(np.uint8)
        start = np.full((rows, columns), 7, np.float32)
        expected = start.copy()
        for r in range(16):
            for c in range(width):
                if r + 2 < rows and c + 8 < columns:
                    kept = expected[r + 2, c + 8] if operation == "add" else 0
                    expected[r + 2, c + 8] = box[r, c] + kept
        map_ = Map("output", 0, (columns, rows), (4, 4 * columns), (width, 16), "f32", swizzle)
        copy, adding = ("cp.reduce", ".add.tile") if operation == "add" else ("cp", "")
        body = f"""
            mov.u64 %d4, map0;
            cvta.param.u64 %d4, %d4;
            mov.s32 %t2, 8;
            mov.s32 %t3, 2;
            setp.ne.u32 %p0, %t0, 0;
            @%p0 bra STORED;
            {copy}.async.bulk.tensor.2d.global.shared::cta{adding}.bulk_group \
[%d4, {{%t2, %t3}}], [%t1];
            cp.async.bulk.commit_group;
            cp.async.bulk.wait_group 0;
            STORED:"""
        found.append(probe(f"tensor_{operation}_swizzle{swizzle}", "90a", body, input=tile,
                           fill=tile.size, fence=True, stores=0, expected=expected, start=start,
                           maps=(map_,)))  # fmt: skip
    return found


def _copy_arrives() -> list[Case]:
    """cp.async that reports to an mbarrier, and a wait of 32 arrivals for it."""
    data = np.arange(128).astype(np.uint32)
    body = """
        mov.u32 %t5, barrier;
        setp.eq.u32 %p0, %t0, 0;
        @%p0 mbarrier.init.shared.b64 [%t5], 32;
        bar.sync 0;
        mad.lo.u32 %t2, %t0, 16, %t1;
        mad.wide.u32 %d4, %t0, 16, %d0;
        cp.async.cg.shared.global [%t2], [%d4], 16;
        cp.async.mbarrier.arrive.noinc.shared.b64 [%t5];
        TRY:
        mbarrier.test_wait.parity.shared.b64 %p1, [%t5], 0;
        @!%p1 bra TRY;
        """ + _read_tile(4)
    return [probe("cp_async_mbarrier", "80", body, input=data, shared=512, expected=data)]


def cases() -> list[Case]:
    return [
        *_async_copies(), *_copy_arrives(), *_bulk(), *_tensor_loads(), *_tensor_stores()
    ]  # fmt: skip
