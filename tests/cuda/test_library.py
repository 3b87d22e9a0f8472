"""The CUDA library beside a torch without CUDA, on a machine without a driver."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cuda.library import cuda_library

OPERATORS = ("cuda_sm80_forward", "cuda_sm80_backward", "cuda_decode")


def symbols(*options: str) -> list[str]:
    command = ["nm", "-D", *options, str(cuda_library())]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listed.splitlines()]


@pytest.mark.slow
def test_loads_beside_this_torch_and_registers_its_operators():
    code = f"""
import torch
torch.ops.load_library({str(cuda_library())!r})
for name in {OPERATORS}:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("fused_attention::" + name, "CUDA"), name
assert isinstance(torch.ops.fused_attention.cuda_driver_error(), str)
assert not torch.cuda.is_initialized()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_needs_only_symbols_of_the_stable_abi():
    """No C++ of torch's, and of its CUDA half nothing but the weak symbol of the stream."""
    needed = symbols("--undefined-only")
    assert not [name for name in needed if re.match(r"_ZN?K?(2at|3c10|5torch)", name)]
    assert not [name for name in needed if name.startswith(("cuda", "cu", "__cuda"))]
    strong = {name for name in needed if name.startswith(("aoti_torch", "torch_"))}
    assert {name for name in strong if "cuda" in name} == {
        "aoti_torch_device_type_cuda",
        "aoti_torch_get_current_cuda_stream",
    }
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(cuda_library())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"^\s+w aoti_torch_get_current_cuda_stream$", listed, re.M)


@pytest.mark.slow
def test_exports_nothing_that_could_replace_another_runtime():
    assert not [name for name in symbols("--defined-only") if name.startswith(("cuda", "__cuda"))]
