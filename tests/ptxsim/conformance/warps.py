"""Shuffles, votes, matches, reductions and elections."""

from __future__ import annotations

import numpy as np

from .probe import Case, probe

LANES = range(32)


def _shuffled(mode: str, by: int, clamp: int) -> tuple[list[int], list[bool]]:
    """Source lane and predicate by the pseudocode of shfl.sync."""
    lanes, valid = [], []
    for lane in LANES:
        segment, limit = clamp >> 8 & 31, clamp & 31
        last = (lane & segment) | (limit & ~segment & 31)
        first = lane & segment
        source, inside = {
            "up": (lane - by, lane - by >= last),
            "down": (lane + by, lane + by <= last),
            "bfly": (lane ^ by, (lane ^ by) <= last),
            "idx": (first | (by & ~segment & 31), (first | (by & ~segment & 31)) <= last),
        }[mode]
        lanes.append(source if inside else lane)
        valid.append(inside)
    return lanes, valid


def _shuffles() -> list[Case]:
    found = []
    # clamp: 31 whole warp; 0x1800 | 7: segments of eight lanes.
    for mode, by, clamp in [
        ("up", 3, 0), ("down", 5, 31), ("bfly", 1, 31), ("bfly", 2, 31), ("bfly", 16, 31),
        ("idx", 9, 31), ("up", 2, 0x1800), ("down", 3, 0x181F), ("idx", 3, 0x181F),
        ("bfly", 4, 0x181F), ("bfly", 12, 0x181F),
    ]:  # fmt: skip
        lanes, valid = _shuffled(mode, by, clamp)
        values = np.arange(100, 132)
        expected = np.stack([values[lanes], np.array(valid) * 1], 1).astype(np.uint32)
        body = f"""
            shfl.sync.{mode}.b32 %y0|%p1, %x0, {by}, {clamp}, -1;
            selp.b32 %y1, 1, 0, %p1;"""
        name = f"shfl_{mode}_{by}_{clamp}"
        found.append(probe(name, "80", body, input=values.astype(np.uint32), loads=1,
                           expected=expected))  # fmt: skip
    return found


def _votes() -> list[Case]:
    found = []
    for label, values in (("some", np.arange(32) % 3 == 0), ("none", np.zeros(32)),
                          ("all", np.ones(32))):  # fmt: skip
        values = np.asarray(values).astype(np.uint32)
        ballot = sum(1 << lane for lane in LANES if values[lane])
        one = [values.any(), values.all(), values.all() or not values.any(), ballot]
        expected = np.tile(np.array(one, np.uint32), (32, 1))
        body = """
            setp.ne.u32 %p0, %x0, 0;
            vote.sync.any.pred %p1, %p0, -1;
            vote.sync.all.pred %p2, %p0, -1;
            vote.sync.uni.pred %p3, %p0, -1;
            vote.sync.ballot.b32 %y3, %p0, -1;
            selp.b32 %y0, 1, 0, %p1;
            selp.b32 %y1, 1, 0, %p2;
            selp.b32 %y2, 1, 0, %p3;"""
        found.append(probe(f"vote_{label}", "80", body, input=values, loads=1, expected=expected))
    return found


def _matches() -> list[Case]:
    values = np.array([5, 7, 5, 9] * 8, np.uint32)
    same = [sum(1 << m for m in LANES if values[m] == values[lane]) for lane in LANES]
    mixed = np.array([[same[lane], 0, 0] for lane in LANES], np.uint32)
    equal = np.tile(np.array([0xFFFFFFFF, 0xFFFFFFFF, 1], np.uint32), (32, 1))
    body = """
        match.any.sync.b32 %y0, %x0, -1;
        match.all.sync.b32 %y1|%p1, %x0, -1;
        selp.b32 %y2, 1, 0, %p1;"""
    return [
        probe("match_mixed", "80", body, input=values, loads=1, expected=mixed),
        probe("match_equal", "80", body, input=np.full(32, 3, np.uint32), loads=1, expected=equal),
    ]


def _reductions() -> list[Case]:
    values = np.random.default_rng(1).integers(-1000, 1000, 32).astype(np.int32)
    unsigned = values.view(np.uint32)
    one = [
        values.sum(), values.min(), values.max(), unsigned.min(), unsigned.max(),
        np.bitwise_and.reduce(unsigned), np.bitwise_or.reduce(unsigned),
        np.bitwise_xor.reduce(unsigned),
    ]  # fmt: skip
    expected = np.tile(np.array([int(x) & 0xFFFFFFFF for x in one], np.uint32), (32, 1))
    names = ["add.s32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32"]
    body = "\n".join(f"redux.sync.{name} %y{n}, %x0, -1;" for n, name in enumerate(names))
    return [probe("redux", "80", body, input=unsigned, loads=1, expected=expected)]


def _divergent() -> list[Case]:
    """activemask and a vote inside of a branch that the upper lanes take."""
    expected = np.array([[0, 0]] * 20 + [[0xFFF00000, 0x55500000]] * 12, np.uint32)
    body = """
        mov.b32 %y0, 0;
        mov.b32 %y1, 0;
        setp.lt.u32 %p0, %t0, 20;
        @%p0 bra JOIN;
        activemask.b32 %y0;
        and.b32 %t2, %t0, 1;
        setp.eq.u32 %p1, %t2, 0;
        vote.sync.ballot.b32 %y1, %p1, 0xFFF00000;
        JOIN:
        bar.warp.sync -1;"""
    return [probe("activemask", "80", body, input=np.zeros(1), expected=expected)]


def _election() -> list[Case]:
    """Which lane is elected is not said; that it is one, and that all learn which."""
    expected = np.tile(np.array([1, 1], np.uint32), (32, 1))
    body = """
        elect.sync %t2|%p0, -1;
        vote.sync.ballot.b32 %t3, %p0, -1;
        popc.b32 %y0, %t3;
        mov.b32 %t4, 1;
        shl.b32 %t4, %t4, %t2;
        setp.eq.b32 %p1, %t3, %t4;
        selp.b32 %y1, 1, 0, %p1;"""
    return [probe("elect", "90a", body, input=np.zeros(1), expected=expected)]


def cases() -> list[Case]:
    return [
        *_shuffles(), *_votes(), *_matches(), *_reductions(), *_divergent(), *_election()
    ]  # fmt: skip
