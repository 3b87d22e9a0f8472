"""The CUDA library beside a torch without CUDA, on a machine without a driver."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from cuda.library import cuda_library

from fused_attention.backends.call import Call


def symbols(*options: str) -> list[str]:
    command = ["nm", "-D", *options, str(cuda_library())]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listed.splitlines()]


CALL = (
    *("query", "key", "value", "bias", "alibi_slopes", "sinks", "kv_lengths", "cu_seqlens_q"),
    *("cu_seqlens_k", "band_offsets", "rng_state", "max_seqlen_q", "max_seqlen_k", "scale"),
    *("softcap", "left", "right", "offset", "dropout_p"),
)
DECODE_CALL = (
    *("query", "key_cache", "value_cache", "key", "value", "cache_lengths", "cache_batch"),
    *("cache_starts", "block_table", "rotary_cos", "rotary_sin", "alibi_slopes", "sinks"),
    *("scale", "softcap", "left", "right", "rotary_interleaved", "splits", "batch_invariant"),
)
GRADIENTS = ("delta", "grad_query", "grad_key", "grad_value")
ARGUMENTS = {
    "cuda_sm80_forward": (*CALL, "out", "lse"),
    "cuda_sm80_backward": (*CALL, "out", "lse", "grad_out", "grad_lse", *GRADIENTS),
    "cuda_decode": (*DECODE_CALL, "out", "lse"),
}
WRITTEN = {
    "cuda_sm80_forward": {"out", "lse"},
    "cuda_sm80_backward": set(GRADIENTS),
    "cuda_decode": {"key_cache", "value_cache", "out", "lse"},
}


# In a process of its own: the tests' may have loaded the package's library, with these operators.
LOAD = f"""
import json, torch
torch.ops.load_library({{library!r}})
told = {{}}
for name in {tuple(ARGUMENTS)}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fused_attention::" + name, "CUDA"), name
    arguments = getattr(torch.ops.fused_attention, name).default._schema.arguments
    told[name] = [(a.name, bool(a.alias_info and a.alias_info.is_write)) for a in arguments]
assert isinstance(torch.ops.fused_attention.cuda_driver_error(), str)
assert not torch.cuda.is_initialized()
print(json.dumps(told))
"""


@pytest.mark.slow
def test_loads_beside_this_torch_with_operators_that_take_a_call():
    """The names stand in the order of the call's fields; `deterministic` alone is not handed on."""
    code = LOAD.replace("{library!r}", repr(str(cuda_library())))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Call._fields[:-1] == CALL
    for name, arguments in json.loads(run.stdout).items():
        assert tuple(argument for argument, _ in arguments) == ARGUMENTS[name]
        assert {argument for argument, written in arguments if written} == WRITTEN[name]


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
