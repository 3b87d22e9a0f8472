"""FlexAttention as a contender: right on every kind of mask, absent where it cannot be."""

from __future__ import annotations

import shutil

import pytest

from fused_attention import Band
from fused_attention.benchmarks import run
from fused_attention.benchmarks.cases import Case, square
from fused_attention.benchmarks.contenders import FLEX, OURS
from fused_attention.benchmarks.flex import FLEX_CONTENDER
from fused_attention.benchmarks.gate import judge
from fused_attention.benchmarks.run import contenders_for

WINDOW = square(1, 4, 160, 16, heads_kv=2, band=Band.window(9, 2))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
@pytest.mark.parametrize(
    "case", [WINDOW, Case(1, 4, 2, 1, 130, 16, band=Band.causal(), backward=False)], ids=str
)
def test_its_results_are_compared_with_the_reference(case: Case) -> None:
    verdict = judge(case, case.make_inputs(), [FLEX_CONTENDER])[FLEX]
    assert verdict.right, verdict


def test_without_a_compiler_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    results = list(run.run_case(WINDOW, contenders_for(WINDOW, "cpu"), seconds=0.01))
    assert [result["direction"] for result in results] == ["forward", "backward"]
    entry = results[0]["contenders"][FLEX]
    assert entry == {"status": "skipped", "reason": "needs a C++ compiler at run time"}
    assert FLEX not in results[1]["contenders"], "it has no backward pass on CPUs"
    assert results[1]["contenders"][OURS]["status"] == "ok"


def test_only_the_cpu_set_waits_for_compilers() -> None:
    assert FLEX_CONTENDER in contenders_for(WINDOW, "cpu")
    assert FLEX_CONTENDER not in contenders_for(WINDOW, "demo")
