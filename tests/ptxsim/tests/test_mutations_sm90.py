"""Bugs planted in a TMA, mbarrier and wgmma kernel; every one must be reported, or show."""

from __future__ import annotations

import pytest

from .attention_kernels import enum_of_faults, needs_nvcc, run_sm90, run_sum, sm90_ptx
from .mutations import Edit, assert_found, change, change_all, drop, inside

pytestmark = needs_nvcc

SEEDS = [None, 3]
WAIT = r"WAIT:\s*mbarrier\.try_wait[^;]*;\s*@!done bra WAIT;"

# What the kernel does wrong by itself: its number of keys, and what is to be seen.
FAULTS = {
    "FULL_PARITY": (320, "deadlock|race"),
    "EMPTY_PARITY": (320, "barrier|race"),
    "FEWER_BYTES": (128, "deadlock"),
    "MORE_BYTES": (128, "deadlock"),
    "EMPTY_COUNT": (320, "deadlock"),
    "ARRIVE_TWICE": (320, "barrier|race"),
    "ARRIVE_EARLY": (320, "race"),
    "STAGE": (128, "race"),
    "K_STEP": (64, "numbers"),
    "DESCRIPTOR": (64, "numbers"),
    "MASK_EDGE": (37, "numbers"),
    "SCALE": (64, "numbers"),
    "ROW_SUM": (64, "numbers"),
    "COORDINATE": (64, "numbers"),
    "SWIZZLE_ROW": (64, "numbers"),
    "BARRIER_THREADS": (64, "barrier"),
    "SKIP_WARP": (64, "numbers"),
    "NO_RESCALE": (128, "numbers"),
}

# Edits of the PTX. Waits in the order of the text: the producer's for an empty stage, the
# consumers' for Q, for a full stage.
EDITS: dict[str, tuple[Edit, str]] = {
    "fence.proxy.async": (drop(r"fence\.proxy\.async"), "race"),
    "barrier before the store": (drop(r"bar\.sync\s+%r\d+, %r\d+"), "race"),
    "barrier behind mbarrier.init": (drop(r"bar\.sync\s+0"), "race"),
    "an mbarrier.init": (drop(r"mbarrier\.init", 1), "memory"),
    "wait for an empty stage": (change(WAIT, "", 0), "barrier|race"),
    "wait for Q": (change(WAIT, "", 1), "race"),
    "wait for a full stage": (change(WAIT, "", 2), "race"),
    "wait for S": (drop(r"wgmma\.wait_group", 0), "race"),
    "wait for O": (drop(r"wgmma\.wait_group", 1), "race"),
    "commit of S": (drop(r"wgmma\.commit_group", 0), "race"),
    "wgmma.fence behind P": (drop(r"wgmma\.fence", 1), "race"),
    "wait for the bulk store": (drop(r"cp\.async\.bulk\.wait_group"), "race"),
    "commit of the bulk store": (drop(r"cp\.async\.bulk\.commit_group"), "race"),
    "a lane of a shuffle": (change_all(r"(mov\.u32\s+%r\d+), -1;", r"\1, 65535;"), "barrier"),
    "distance of a shuffle": (
        change_all(r"(shfl\.sync\.bfly\.b32.*?, %r\d+), %r\d+,", r"\1, 4,"),
        "numbers",
    ),
    "order of a pair": (
        change(r"(cvt\.rn\.bf16x2\.f32 %r\d+), (%f\d+), (%f\d+)", r"\1, \3, \2"),
        "numbers",
    ),
    "transposition of V": (change_all(r", 1, 1, 1, 1;", ", 1, 1, 1, 0;"), "race"),
    "sign of S": (change_all(r"adds, 1, 1, 0, 0;", "adds, -1, 1, 0, 0;"), "numbers"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keys, queries, heads", [(1, 5, 1), (64, 64, 2), (320, 100, 2)])
def test_kernel_without_bugs(keys: int, queries: int, heads: int, seed: int | None) -> None:
    error, _ = run_sm90(sm90_ptx(), keys=keys, queries=queries, heads=heads, seed=seed)
    assert error < 1


def test_every_fault_is_listed() -> None:
    assert set(FAULTS) == set(enum_of_faults()) - {"NONE"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault: str, seed: int | None) -> None:
    keys, kind = FAULTS[fault]
    assert_found(lambda: run_sm90(sm90_ptx(), keys=keys, fault=fault, seed=seed)[0], kind)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EDITS)
def test_edit_is_found(name: str, seed: int | None) -> None:
    edit, kind = EDITS[name]
    ptx = edit(sm90_ptx())
    assert_found(lambda: run_sm90(ptx, keys=320, seed=seed)[0], kind)


SUM_EDITS: dict[str, tuple[Edit, str]] = {
    "fence.proxy.async": (drop(r"fence\.proxy\.async"), "race"),
    "barrier behind mbarrier.init": (drop(r"bar\.warp\.sync", 0), "race|memory"),
    "barrier before the reduction": (drop(r"bar\.warp\.sync", 1), "race"),
    "wait for the load": (change(WAIT, "", 0), "race"),
    "wait for the reduction": (drop(r"cp\.async\.bulk\.wait_group"), "race"),
    "type of the sums": (change(r"\.add\.f32(\s+\[%rd)", r".add.u32\1"), "numbers"),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_without_bugs(seed: int | None) -> None:
    assert run_sum(sm90_ptx(), seed=seed) == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SUM_EDITS)
def test_edit_of_sums_is_found(name: str, seed: int | None) -> None:
    edit, kind = SUM_EDITS[name]
    ptx = inside(("sum_sm90",), edit)(sm90_ptx())
    assert_found(lambda: run_sum(ptx, seed=seed), kind)


@pytest.mark.parametrize("swizzle", [0, 32, 64])
def test_wrong_swizzle_is_found(swizzle: int) -> None:
    def run() -> float:
        return run_sm90(sm90_ptx(), keys=64, swizzle=swizzle)[0]

    assert_found(run, "numbers" if swizzle == 0 else "deadlock")
