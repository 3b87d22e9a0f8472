"""What the emulator must report, and what it must not."""

from __future__ import annotations

import re

import pytest

from ptxsim import (
    AccessError,
    BarrierError,
    DeadlockError,
    RaceError,
    SimulationError,
    UnknownInstructionError,
)

from .small_kernels import run

MINE = "mad.lo.u32 %t2, %t0, 4, %t1;"  # %t2: this thread's word of the tile
NEXT = "add.u32 %t3, %t0, 1;\nand.b32 %t3, %t3, {last};\nmad.lo.u32 %t3, %t3, 4, %t1;"
SEEDS = [None, 1, 2, 3]
# Warp 0 reads the tile and reports with one lane; warp 1 waits for that and overwrites it.
HAND_OVER = """
    setp.eq.u32 %p0, %t0, 0;
    @%p0 mbarrier.init.shared.b64 [%t1+192], 1;
    mad.lo.u32 %t2, %t0, 4, %t1;
    and.b32 %t3, %t0, 31;
    mad.lo.u32 %t3, %t3, 4, %t1;
    setp.lt.u32 %p1, %t0, 32;
    @%p1 st.shared.u32 [%t2], %t0;
    bar.sync 0;
    @!%p1 bra TRY;
    ld.shared.u32 %t4, [%t2];
    {sync}
    @%p0 mbarrier.arrive.shared.b64 %d4, [%t1+192];
    bra END;
    TRY:
    mbarrier.try_wait.parity.shared.b64 %p2, [%t1+192], 0;
    @!%p2 bra TRY;
    st.shared.u32 [%t3], 99;
    END:
"""

# Two warps store a matrix at the same place, one after the other.
STMATRIX = """and.b32 %t2, %t0, 7;
    mad.lo.u32 %t2, %t2, 16, %t1;
    mov.b32 %x0, {value};
    setp.lt.u32 %p0, %t0, 32;
    @%p0 bra OTHER;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%t2], {{%x0}};
    bra END;
    OTHER:
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%t2], {{%x0}};
    END:"""

# name -> (body, the report, part of its message, how to run)
WRONG: dict[str, tuple[str, type[SimulationError], str, dict[str, int]]] = {
    "global read one byte beyond": (
        "ld.global.u8 %t2, [%d0+1024];", AccessError, "byte 1024 of a buffer", {}),
    "global vector half beyond": (
        "ld.global.v4.u32 {%t2, %t3, %t4, %t5}, [%d0+1016];", AccessError, "outside", {}),
    "global vector beyond": (
        "ld.global.v2.u32 {%t2, %t3}, [%d0+1024];", AccessError, "outside of every buffer", {}),
    "global write before": (
        "st.global.u32 [%d1+-4], %t0;", AccessError, "outside of every buffer", {}),
    "shared beyond": ("st.shared.u32 [%t1+272], %t0;", AccessError, "shared address 272", {}),
    "misaligned shared vector": (
        "st.shared.v2.u32 [%t1+4], {%t0, %t0};", AccessError, "misaligned", {}),
    "misaligned ldmatrix": (
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%y0}, [%t1+8];", AccessError, "misaligned", {}),
    "shared never written": ("ld.shared.u32 %t2, [%t1];", AccessError, "uninitialised", {}),
    "register never written": ("add.u32 %t2, %t3, 1;", AccessError, "register %t3", {}),
    "null pointer": ("mov.u64 %d4, 0;\nld.u32 %t2, [%d4];", AccessError, "outside", {}),
    "lanes of a warp": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\n{NEXT.format(last=31)}\nld.shared.u32 %t4, [%t3];",
        RaceError, "unordered with a write", {}),
    "lanes of a warp, write after read": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\nbar.warp.sync -1;\n{NEXT.format(last=31)}\n"
        "ld.shared.u32 %t4, [%t3];\nadd.u32 %t4, %t4, 9;\nst.shared.u32 [%t2], %t4;",
        RaceError, "unordered with a read", {}),
    "warps": (
        f"{MINE}\nst.shared.u32 [%t2], 0;\nbar.sync 0;\nst.shared.u32 [%t2], %t0;\n"
        f"bar.warp.sync -1;\n{NEXT.format(last=63)}\nld.shared.u32 %t4, [%t3];",
        RaceError, "unordered", {"threads": 64}),
    "write after read": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\nbar.sync 0;\nxor.b32 %t3, %t2, 128;\n"
        "ld.shared.u32 %t4, [%t3];\nadd.u32 %t4, %t4, 1;\nst.shared.u32 [%t2], %t4;",
        RaceError, "unordered", {"threads": 64}),
    "two values at once": ("st.shared.u32 [%t1], %t0;", RaceError, "different values", {}),
    "ldmatrix of another lane's rows": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\nmad.lo.u32 %t3, %t0, 16, %t1;\nand.b32 %t3, %t3, "
        "127;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%y0}, [%t3];",
        RaceError, "unordered with a write", {}),
    "stmatrix of two warps": (
        STMATRIX.format(value="%t0"), RaceError, "unordered with a write", {"threads": 64}),
    "blocks": (
        "mov.u32 %t2, %ctaid.x;\nst.global.u32 [%d1], %t2;", RaceError, "block",
        {"blocks": 2, "threads": 1}),
    "blocks of different waves": (
        "mov.u32 %t2, %ctaid.x;\nst.global.u32 [%d1], %t2;", RaceError, "has left",
        {"blocks": 2, "threads": 1, "resident": 1}),
    "block reads what another wrote": (
        "mov.u32 %t2, %ctaid.x;\nsetp.eq.u32 %p0, %t2, 0;\n@%p0 st.global.u32 [%d1], 5;\n"
        "@!%p0 ld.global.u32 %t3, [%d1];", RaceError, "block", {"blocks": 2, "threads": 1}),
    "atomic and plain write": (
        "setp.eq.u32 %p0, %t0, 0;\n@%p0 st.global.u32 [%d1], 5;\n"
        "@!%p0 red.global.add.u32 [%d1], 1;", RaceError, "unordered", {"threads": 64}),
    "cp.async read before the wait": (
        "mad.lo.u32 %t2, %t0, 4, %t1;\ncp.async.ca.shared.global [%t2], [%d0], 4;\n"
        "cp.async.commit_group;\nld.shared.u32 %t3, [%t2];", RaceError, "not been waited", {}),
    "cp.async of another thread, no barrier": (
        f"{MINE}\ncp.async.ca.shared.global [%t2], [%d0], 4;\ncp.async.wait_all;\n"
        f"{NEXT.format(last=63)}\nld.shared.u32 %t4, [%t3];",
        RaceError, "unordered", {"threads": 64}),
    "cp.async, one group too few": (
        f"{MINE}\ncp.async.ca.shared.global [%t2], [%d0], 4;\ncp.async.commit_group;\n"
        "cp.async.wait_group 1;\nld.shared.u32 %t3, [%t2];", RaceError, "not been waited", {}),
    "cp.async over a running copy": (
        f"{MINE}\ncp.async.ca.shared.global [%t2], [%d0], 4;\nst.shared.u32 [%t2], %t0;",
        RaceError, "not been waited", {}),
    "cp.async beyond a buffer": (
        f"{MINE}\ncp.async.ca.shared.global [%t2], [%d0+1024], 4;", AccessError, "outside", {}),
    "a barrier in a branch": (
        "setp.lt.u32 %p0, %t0, 7;\n@%p0 bra END;\nbar.sync 0;\nEND:\nbar.sync 0;",
        BarrierError, "divergent barrier", {}),
    "shuffle in a branch": (
        "setp.lt.u32 %p0, %t0, 7;\n@%p0 bra END;\nshfl.sync.bfly.b32 %t2, %t0, 1, 31, -1;\nEND:\n"
        "bar.warp.sync -1;", BarrierError, "member mask", {}),
    "shuffle of a lane that is no member": (
        "shfl.sync.bfly.b32 %t2, %t0, 1, 31, 0xFFFF;", BarrierError, "own member mask", {}),
    "mma in a branch": (
        "setp.lt.u32 %p0, %t0, 7;\nmov.b32 %x0, 0;\n@%p0 mma.sync.aligned.m16n8k8.row.col.f32.f16."
        "f16.f32 {%y0,%y1,%y2,%y3}, {%x0,%x0}, {%x0}, {%x0,%x0,%x0,%x0};",
        BarrierError, "divergent mma", {}),
    "barrier of half a warp": ("bar.sync 1, 16;", BarrierError, "no whole warps", {}),
    "barrier that warps disagree about": (
        "setp.lt.u32 %p0, %t0, 32;\n@%p0 bar.sync 1, 64;\n@!%p0 bar.sync 1, 96;",
        BarrierError, "by others", {"threads": 64}),
    "barrier that nobody else comes to": (
        "bar.sync 1, 96;", DeadlockError, "waits at barrier 1", {"threads": 64}),
    "barriers crossed": (
        "setp.lt.u32 %p0, %t0, 32;\n@%p0 bra OTHER;\nbar.sync 1, 64;\nbar.sync 2, 64;\nbra END;\n"
        "OTHER:\nbar.sync 2, 64;\nbar.sync 1, 64;\nEND:",
        DeadlockError, "barrier 1", {"threads": 64}),
    "an elected lane arrives before the others have read": (
        HAND_OVER.format(sync=""), RaceError, "unordered with a read", {"threads": 64}),
    "mbarrier without init": (
        "mbarrier.arrive.shared.b64 %d4, [%t1];", AccessError, "uninitialised", {}),
    "mbarrier at plain data": (
        "st.shared.u64 [%t1], %d0;\nmbarrier.arrive.shared.b64 %d4, [%t1];",
        BarrierError, "there is no mbarrier", {"threads": 1}),
    "mbarrier, too many arrivals": (
        "mbarrier.init.shared.b64 [%t1], 2;\nmbarrier.arrive.shared.b64 %d4, [%t1], 3;",
        BarrierError, "over 2 arrivals", {"threads": 1}),
    "mbarrier that never completes": (
        "mbarrier.init.shared.b64 [%t1], 2;\nmbarrier.arrive.shared.b64 %d4, [%t1];\nTRY:\n"
        "mbarrier.try_wait.parity.shared.b64 %p0, [%t1], 0;\n@!%p0 bra TRY;",
        DeadlockError, "1 arrivals and 0 bytes are missing", {"threads": 1}),
    "an endless loop": ("LOOP:\nbra LOOP;", DeadlockError, "no end", {"threads": 1}),
    "an unknown instruction": (
        "tcgen05.fence::before_thread_sync;", UnknownInstructionError, "tcgen05", {}),
    "an unknown form": (
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%y0}, {%x0}, {%x0}, {%x0};",
        UnknownInstructionError, "m8n8k4", {}),
    "trap": ("trap;", SimulationError, "trapped", {}),
}  # fmt: skip

RIGHT = {
    "lanes and a warp barrier": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\nbar.warp.sync -1;\n{NEXT.format(last=31)}\n"
        "ld.shared.u32 %t4, [%t3];", {}),
    "one's own word": (f"{MINE}\nst.shared.u32 [%t2], %t0;\nld.shared.u32 %t3, [%t2];", {}),
    "the same value from all": ("st.shared.u32 [%t1], 7;\nbar.sync 0;", {"threads": 64}),
    "stmatrix of the same values by two warps": (STMATRIX.format(value=7), {"threads": 64}),
    "bytes of one word": (
        "add.u32 %t2, %t0, %t1;\nst.shared.u8 [%t2], %t0;", {"threads": 64}),
    "warps and a barrier": (
        f"{MINE}\nst.shared.u32 [%t2], %t0;\nbar.sync 0;\n{NEXT.format(last=63)}\n"
        "ld.shared.u32 %t4, [%t3];", {"threads": 64}),
    "arrive releases, sync acquires": (
        f"{MINE}\nsetp.lt.u32 %p0, %t0, 32;\n@!%p0 bra READ;\nst.shared.u32 [%t2], %t0;\n"
        "bar.arrive 1, 64;\nbra END;\nREAD:\nbar.sync 1, 64;\nld.shared.u32 %t3, [%t2+-128];\n"
        "END:", {"threads": 64}),
    "an elected lane arrives for its warp": (
        HAND_OVER.format(sync="bar.warp.sync -1;"), {"threads": 64}),
    "a lane writes, a warp barrier, it arrives": (
        HAND_OVER.format(sync="@%p0 st.shared.u32 [%t1+128], 5;\nbar.warp.sync -1;").replace(
            "st.shared.u32 [%t3], 99;", "ld.shared.u32 %t5, [%t1+128];"), {"threads": 64}),
    "a lane writes and arrives": (
        HAND_OVER.format(sync="bar.warp.sync -1;\n@%p0 st.shared.u32 [%t1+128], 5;").replace(
            "st.shared.u32 [%t3], 99;", "ld.shared.u32 %t5, [%t1+128];"), {"threads": 64}),
    "exited threads do not hold a barrier": (
        "setp.ge.u32 %p0, %t0, 32;\n@%p0 exit;\nbar.sync 0;", {"threads": 64}),
    "blocks add atomically": (
        "red.global.add.u32 [%d1], 1;", {"blocks": 5, "threads": 64, "resident": 2}),
    "release and acquire between blocks": (
        """mov.u32 %t2, %ctaid.x;
        setp.ne.u32 %p0, %t2, 0;
        @%p0 bra WAIT;
        st.global.u32 [%d1+8], 5;
        st.release.gpu.global.u32 [%d1], 1;
        bra END;
        WAIT:
        ld.acquire.gpu.global.u32 %t3, [%d1];
        setp.ne.u32 %p1, %t3, 1;
        @%p1 bra WAIT;
        ld.global.u32 %t4, [%d1+8];
        END:""", {"blocks": 2, "threads": 1}),
    "fences around atomics between blocks": (
        """mov.u32 %t2, %ctaid.x;
        mad.wide.u32 %d4, %t2, 4, %d1;
        st.global.u32 [%d4+16], %t2;
        membar.gl;
        atom.global.inc.u32 %t3, [%d1], 99;
        setp.ne.u32 %p0, %t3, 2;
        @%p0 bra END;
        membar.gl;
        ld.global.u32 %t4, [%d1+16];
        ld.global.u32 %t5, [%d1+20];
        ld.global.u32 %t6, [%d1+24];
        END:""", {"blocks": 3, "threads": 1, "resident": 2}),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_is_reported(name: str, seed: int | None) -> None:
    body, report, message, how = WRONG[name]
    with pytest.raises(report, match=re.escape(message)):
        run(body, seed=seed, **how)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RIGHT)
def test_right_is_not_reported(name: str, seed: int | None) -> None:
    body, how = RIGHT[name]
    run(body, seed=seed, **how)


def test_barrier_of_too_few_threads() -> None:
    with pytest.raises(BarrierError, match="more arrivals than 32 threads"):
        run("bar.sync 1, 32;", threads=64)


def test_report_names_the_place() -> None:
    with pytest.raises(AccessError) as caught:
        run("setp.eq.u32 %p0, %t0, 40;\n@%p0 ld.shared.u32 %t2, [%t1];", threads=64, blocks=2)
    text = str(caught.value)
    assert "block (0, 0, 0) warp 1 lane 8" in text
    assert re.search(r"PTX line \d+: @%p0 ld\.shared\.u32 %t2, \[%t1\]", text)


def test_deadlock_lists_every_warp() -> None:
    with pytest.raises(DeadlockError) as caught:
        run("bar.sync 3, 128;", threads=64)
    assert str(caught.value).count("waits at barrier 3") == 2
    assert "block (0, 0, 0) warp 1 (32 lanes)" in str(caught.value)


@pytest.mark.parametrize("stride, expected", [(4, 1), (8, 2), (16, 4), (128, 32), (132, 1)])
def test_bank_conflicts_of_words(stride: int, expected: int) -> None:
    body = f"mad.lo.u32 %t2, %t0, {stride}, %t1;\nst.shared.u32 [%t2], %t0;"
    _, report = run(body, shared=32 * 132, count_banks=True)
    assert report.banks.per_phase("st.shared") == expected


@pytest.mark.parametrize("row_bytes, expected", [(128, 8), (144, 1), (16, 1), (64, 4)])
def test_bank_conflicts_of_ldmatrix(row_bytes: int, expected: int) -> None:
    fill = "".join(f"st.shared.u32 [%t2+{4 * n}], %t0;\n" for n in range(36))
    body = f"""
        mad.lo.u32 %t2, %t0, 144, %t1;
        {fill}
        bar.sync 0;
        and.b32 %t3, %t0, 7;
        mad.lo.u32 %t3, %t3, {row_bytes}, %t1;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%y0}}, [%t3];"""
    _, report = run(body, shared=32 * 144, count_banks=True)
    assert report.banks.per_phase("ldmatrix") == expected


def test_broadcast_is_one_wavefront() -> None:
    body = "st.shared.u32 [%t1], 1;\nbar.sync 0;\nld.shared.u32 %t2, [%t1];"
    _, report = run(body, count_banks=True)
    assert report.banks.per_phase("ld.shared") == 1
