"""The compiled kernels: no spills, no stack, the registers that were agreed on; and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cuda import static_table
from cuda.build import nvcc
from cuda.occupancy import blocks_per_multiprocessor
from cuda.ptxas import demangled, optimisations_given_up, parse
from cuda.static_table import (
    Row,
    launch_shapes,
    nvcc_release,
    pin,
    pinned,
    rows,
    spilling,
    text,
)

NAME = (
    "_ZN15fused_attention4cuda4sm8014forward_kernelINS1_13ForwardConfigINS0_8Bfloat16ELi64EEEEEv"
    "NS1_16ForwardArgumentsE"
)
KERNEL = "sm80::forward_kernel<sm80::ForwardConfig<Bfloat16, 64>>"
SHAPES = {"sm80::ForwardConfig<Bfloat16, 64>": (128, 32768)}


def log(
    registers: int = 252, stack: str = "0 0 0", shared: str = "", arch: str = "80"
) -> list[str]:
    """What ptxas writes of one kernel, among other things."""
    frame, stores, loads = stack.split()
    return [
        "ptxas info    : 0 bytes gmem",
        f"ptxas info    : Compiling entry function '{NAME}' for 'sm_{arch}'",
        f"ptxas info    : Function properties for {NAME}",
        f"    {frame} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads",
        f"ptxas info    : Used {registers} registers, used 1 barriers, {shared}848 bytes cmem[0]",
        "ptxas info    : Compile time = 3250.252 ms",
    ]


@pytest.fixture(scope="module")
def compiled() -> tuple[list[str], list[Row]]:
    """ptxas's log of the whole library, and the table made of it."""
    nvcc()  # skips where it is missing
    lines = static_table.compile_logs()
    return lines, rows(lines, launch_shapes())


@pytest.mark.slow
def test_no_kernel_spills_or_has_a_stack(compiled):
    assert not spilling(compiled[1]), f"\n{text(compiled[1])}"


@pytest.mark.slow
def test_ptxas_gave_no_optimisation_up(compiled):
    assert optimisations_given_up(compiled[0]) == []


@pytest.mark.slow
def test_every_kernel_can_be_launched_on_every_gpu(compiled):
    for row in compiled[1]:
        assert min(row.blocks.values()) >= 1, row


@pytest.mark.slow
def test_registers_are_those_that_are_pinned(compiled):
    """Another number is no mistake by itself: look at the table, then pin it anew."""
    expected = pinned()
    if nvcc_release() != expected["nvcc"]:
        pytest.skip(f"registers are pinned for nvcc {expected['nvcc']}, this is {nvcc_release()}")
    found = {row.kernel: row.facts.registers for row in compiled[1]}
    assert found == expected["registers"], "make cuda-table WRITE=1"


@pytest.mark.slow
def test_every_instantiation_is_in_the_table(compiled):
    """Each dim of each config, in both dtypes; nothing else."""
    configs = {part for part in launch_shapes() if "<" in part}
    kernels = [row.kernel for row in compiled[1]]
    assert all(any(config in kernel for kernel in kernels) for config in configs)
    assert len(set(kernels)) == len(kernels)


def test_a_log_becomes_a_row():
    (row,) = rows(log(), SHAPES)
    assert row.kernel == KERNEL
    assert row.cells() == [KERNEL, "252", "0", "0", "128", "32768", "2/2/2"]
    assert text([row]).splitlines()[1].startswith(KERNEL)


def test_spills_stack_and_static_shared_memory_are_read():
    (facts,) = parse(log(255, "40 52 56", "4096 bytes smem, ", arch="90a"))
    assert facts[1:] == ("90a", 255, 40, 52, 56, 4096)
    (row,) = rows(log(stack="40 52 56", shared="4096 bytes smem, "), SHAPES)
    assert row.shared == 32768 + 4096 and row.cells()[2:4] == ["108", "40"]
    assert len(parse(log() + log(arch="90a"))) == 2
    assert parse(["ptxas info    : Used 9 registers"]) == []


def test_a_kernel_of_unknown_shape_is_an_error():
    with pytest.raises(KeyError, match="launch_shapes.cpp must say how it is launched"):
        rows(log(), {"sm80::ForwardConfig<Float16, 64>": (128, 0)})


def test_names_are_short_and_whole():
    assert demangled([NAME]) == {NAME: KERNEL}


def test_messages_of_lost_optimisations_are_seen():
    lost = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions ..."
    assert optimisations_given_up(["ptxas info    : 0 bytes gmem", lost]) == [lost]
    assert optimisations_given_up(log()) == []


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "blocks"),
    [
        ("80", 255, 128, 0, 2),  # 8 warps of 8192 registers
        ("80", 256, 128, 0, 2),
        ("80", 128, 256, 0, 2),
        ("80", 168, 384, 0, 1),
        ("80", 200, 64, 0, 4),  # 10 warps' worth of registers, but 2 in each quarter
        ("80", 32, 1024, 0, 2),  # 64 warps
        ("86", 32, 1024, 0, 1),  # 48 warps
        ("80", 16, 32, 0, 32),  # blocks
        ("86", 16, 32, 0, 16),
        ("80", 32, 128, 81 * 1024, 2),  # 164 KB, 1 KB of each block reserved
        ("80", 32, 128, 82 * 1024, 1),
        ("86", 32, 128, 99 * 1024, 1),
        ("86", 32, 128, 100 * 1024, 0),  # cannot be launched
        ("90", 32, 128, 113 * 1024, 2),
        ("90", 168, 384, 227 * 1024, 1),
    ],
)
def test_blocks_of_a_multiprocessor(arch, registers, threads, shared, blocks):
    assert blocks_per_multiprocessor(arch, registers, threads, shared) == blocks


def test_pinning_names_the_compiler_and_says_what_the_file_is(tmp_path: Path):
    path = tmp_path / "registers.json"
    pin(rows(log(), SHAPES), "13.0", path)
    assert pinned(path)["registers"] == {KERNEL: 252} and pinned(path)["nvcc"] == "13.0"
    assert "expectation" in json.loads(path.read_text())["about"]


def test_the_command_fails_on_a_spill(monkeypatch, capsys):
    monkeypatch.setattr(static_table, "launch_shapes", lambda: SHAPES)
    monkeypatch.setattr(static_table, "compile_logs", log)
    assert static_table.main([]) == 0
    monkeypatch.setattr(static_table, "compile_logs", lambda: log(255, "40 52 56"))
    assert static_table.main([]) == 1
    assert f"SPILLS: {KERNEL}" in capsys.readouterr().out
