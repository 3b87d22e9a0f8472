"""The kernels as Triton compiles them: no spills, the registers that were agreed on, every chip."""

from __future__ import annotations

import pytest
import torch
import triton
from triton_compiled import static_table
from triton_compiled.calls import CALLS
from triton_compiled.compile import Compiler, kernel_module
from triton_compiled.static_table import Row, pin, pinned, resources, table, text

ROW = Row("sm_90", "forward", 64, 200, 0, 256, 98304, 1, 24, 12)


@pytest.mark.slow
def test_no_kernel_spills_or_has_a_stack():
    assert [row.name for row in table() if row.stack] == [], f"\n{text(table())}"


@pytest.mark.slow
def test_every_kernel_can_be_launched():
    assert [row.name for row in table() if row.blocks < 1] == []


@pytest.mark.slow
def test_hopper_multiplies_by_warpgroups_and_copies_by_tma():
    rows = {row.name: row for row in table()}
    for dim in static_table.DIMS:
        assert rows[f"sm_90 forward {dim}"].wgmma > 0 and rows[f"sm_90 forward {dim}"].tma > 0
        for kernel in ("backward_key", "backward_query"):
            assert rows[f"sm_90 {kernel} {dim}"].wgmma > 0
        assert rows[f"sm_80 forward {dim}"].wgmma == 0 == rows[f"sm_80 forward {dim}"].tma


@pytest.mark.slow
def test_registers_are_those_that_are_pinned():
    """Another number is no mistake by itself: look at the table, then pin it anew."""
    expected = pinned()
    if triton.__version__ != expected["triton"]:
        pytest.skip(f"pinned for Triton {expected['triton']}, this is {triton.__version__}")
    found = {row.name: row.registers for row in table()}
    assert found == expected["registers"], "make triton-table WRITE=1"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_100", "sm_120", "gfx942"])
@pytest.mark.parametrize("kind", CALLS)
def test_compiles_for_chips_that_nothing_is_executed_for(arch, kind):
    """At the fixed configs, within the shared memory that a program can have there."""
    compiler = Compiler(arch)
    CALLS[kind](compiler, 128, torch.bfloat16)
    assert compiler.compiled
    for compiled in compiler.compiled:
        code = compiled.asm["hsaco" if arch.startswith("gfx") else "cubin"]
        assert len(code) > 1000
        assert compiled.metadata.shared <= kernel_module("configs").shared_bytes(arch)


def test_a_row_is_a_line():
    assert text([ROW]).splitlines()[1].split() == [
        *("sm_90", "forward", "64", "200", "0", "256", "98304", "1", "24", "12")
    ]


def test_pinning_names_the_compiler_and_says_what_the_file_is(tmp_path):
    path = tmp_path / "registers.json"
    pin([ROW], path)
    assert pinned(path)["registers"] == {"sm_90 forward 64": 200}
    assert pinned(path)["triton"] == triton.__version__
    assert "expectation" in pinned(path)["about"]


def test_the_command_fails_on_a_spill(monkeypatch, capsys):
    monkeypatch.setattr(static_table, "table", lambda: (ROW,))
    assert static_table.main([]) == 0
    monkeypatch.setattr(static_table, "table", lambda: (ROW._replace(stack=40),))
    assert static_table.main([]) == 1
    assert "SPILLS: sm_90 forward 64" in capsys.readouterr().out


@pytest.mark.slow
def test_resources_are_those_of_the_code():
    compiler = Compiler("sm_80")
    CALLS["decode"](compiler, 64, torch.bfloat16)
    used = resources(compiler.compiled[0].asm["cubin"])
    assert 0 < used["REG"] < 256 and used["STACK"] == 0
