"""Named barriers with votes, and the phases of an mbarrier."""

from __future__ import annotations

import numpy as np

from .probe import Case, probe

THREADS = 96


def _votes() -> list[Case]:
    values = (np.arange(THREADS) % 5 == 0).astype(np.uint32)
    one = [values.sum(), 0, 1, THREADS]
    expected = np.tile(np.array(one, np.uint32), (THREADS, 1))
    body = """
        setp.ne.u32 %p0, %x0, 0;
        barrier.cta.red.popc.aligned.u32 %y0, 0, %p0;
        barrier.cta.red.and.aligned.pred %p1, 0, %p0;
        barrier.cta.red.or.aligned.pred %p2, 0, %p0;
        barrier.cta.red.popc.aligned.u32 %y3, 1, 96, %p3;
        selp.b32 %y1, 1, 0, %p1;
        selp.b32 %y2, 1, 0, %p2;"""
    body = "setp.eq.u32 %p3, 0, 0;\n" + body
    return [
        probe("barrier_red", "80", body, input=values, loads=1, threads=THREADS, expected=expected)
    ]


def _hand_over() -> list[Case]:
    """Two warps arrive and go on, the third waits for what they wrote."""
    expected = np.concatenate([np.zeros(64), np.arange(32) + 32 + np.arange(32)]).astype(np.uint32)
    body = """
        mov.b32 %y0, 0;
        setp.ge.u32 %p0, %t0, 64;
        mad.lo.u32 %t2, %t0, 4, %t1;
        @%p0 bra LATE;
        st.shared.b32 [%t2], %t0;
        bar.arrive 2, 96;
        bra END;
        LATE:
        bar.sync 2, 96;
        ld.shared.b32 %t3, [%t2+-256];
        ld.shared.b32 %t4, [%t2+-128];
        add.u32 %y0, %t3, %t4;
        END:"""
    return [probe("barrier_arrive", "80", body, input=np.zeros(1), threads=THREADS, shared=512,
                  expected=expected)]  # fmt: skip


def _phases() -> list[Case]:
    """An mbarrier of two arrivals: the answers of test_wait for both parities as phases pass."""
    steps = [("test", 0), ("test", 1), ("arrive", 0), ("test", 0), ("arrive", 0), ("test", 0),
             ("test", 1), ("arrive", 0), ("arrive", 0), ("test", 0), ("test", 1)]  # fmt: skip
    lines = ["mov.u32 %t5, barrier;", "mbarrier.init.shared.b64 [%t5], 2;"]
    answers, pending, phase = [], 2, 0
    for action, parity in steps:
        if action == "arrive":
            lines.append("mbarrier.arrive.shared.b64 %d4, [%t5];")
            pending -= 1
            if not pending:
                pending, phase = 2, phase + 1
            continue
        lines.append(f"mbarrier.test_wait.parity.shared.b64 %p0, [%t5], {parity};")
        lines.append(f"selp.b32 %y{len(answers)}, 1, 0, %p0;")
        answers.append(int(phase % 2 != parity))
    expected = np.array([answers], np.uint32)
    return [probe("mbarrier_phases", "80", "\n".join(lines), input=np.zeros(1), threads=1,
                  expected=expected)]  # fmt: skip


def _state() -> list[Case]:
    """The token of an arrival, waited for by its own thread after all have arrived."""
    body = """
        mov.u32 %t5, barrier;
        setp.eq.u32 %p0, %t0, 0;
        @%p0 mbarrier.init.shared.b64 [%t5], 32;
        bar.sync 0;
        mad.lo.u32 %t2, %t0, 4, %t1;
        st.shared.b32 [%t2], %t0;
        mbarrier.arrive.shared.b64 %d4, [%t5];
        TRY:
        mbarrier.test_wait.shared.b64 %p1, [%t5], %d4;
        @!%p1 bra TRY;
        xor.b32 %t3, %t2, 4;
        ld.shared.b32 %y0, [%t3];"""
    expected = (np.arange(32) ^ 1).astype(np.uint32)
    return [probe("mbarrier_state", "80", body, input=np.zeros(1), shared=128, expected=expected)]


def cases() -> list[Case]:
    return [*_votes(), *_hand_over(), *_phases(), *_state()]
