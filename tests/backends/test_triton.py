"""What the Triton backend refuses and why, and how it stands under torch.compile."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys

import pytest
import torch
from places import PLACES

from fused_attention import Band, attention, explain
from fused_attention.backends import triton
from fused_attention.philox import dropout_keep_mask
from fused_attention.support import sample_problem, support_matrix

DEVICE = next(place.device for place in PLACES if place.backend == "triton")


@pytest.fixture(autouse=True)
def asked_anew():
    """Answers about this machine are kept for ever; here it pretends to be others."""
    triton._import_errors.cache_clear()
    yield
    triton._import_errors.cache_clear()


def reasons(device_type: str = DEVICE, **changes) -> list[str]:
    return triton.why_not(sample_problem(device_type, "fp16")._replace(**changes))


def test_runs_every_feature_but_fp64():
    entries = [e for e in support_matrix((DEVICE,)) if e.backend == "triton"]
    assert entries and all(entry.supported == (entry.dtype != "fp64") for entry in entries)


def test_refusals():
    assert reasons() == []
    assert reasons(dtype=torch.float64) == ["computes in fp16, bf16 and fp32, got float64"]
    assert reasons(value_dim=513) == ["head and value dims go up to 512, got 513"]
    assert reasons("meta")[-1] == "runs on CUDA tensors, got meta"


@pytest.mark.parametrize(("kib", "refused"), [(99, True), (163, False)])
def test_wide_heads_need_shared_memory_for_their_gradients(monkeypatch, kib, refused):
    monkeypatch.setattr(triton, "_shared_bytes", lambda device_type: kib << 10)
    wide = {"head_dim": 512, "value_dim": 512}
    told = ["gradients at head dims above 256 need 112 KiB of shared memory, this GPU has 99"]
    assert reasons(**wide, needs_grad=True) == (told if refused else [])
    assert reasons(**wide) == []
    assert reasons(needs_grad=True) == []


def test_cpu_tensors_in_the_interpreter_only(monkeypatch):
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    assert reasons("cpu") == ["runs on CUDA tensors, got cpu"]
    query = torch.randn(1, 1, 4, 16)
    with pytest.raises(NotImplementedError, match="'triton' cannot run this: runs on CUDA tensors"):
        attention(query, query, query, backend="triton")


def test_no_triton_is_a_reason(monkeypatch):
    original = builtins.__import__

    def without_triton(name, *args, **kwargs):
        if name == "triton":
            raise ImportError("no module")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_triton)
    assert reasons()[0] == "needs Triton: no module"


def test_an_old_triton_is_a_reason(monkeypatch):
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.5.1")
    assert reasons()[0] == "needs Triton 3.6 or newer, got 3.5.1"


def test_the_package_does_not_import_triton():
    """Nor does a call on the CPU, as long as nobody asks what Triton could do."""
    code = """
import sys, torch, fused_attention
query = torch.randn(1, 1, 4, 16)
fused_attention.attention(query, query, query)
assert "triton" not in sys.modules
assert not fused_attention.explain(query, query, query).reasons["triton"] == []
assert "fused_attention.triton_kernels" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_interpreter_by_its_own_switch_and_without_bf16():
    code = """
import torch
from fused_attention import attention, explain
query = torch.randn(1, 1, 4, 16)
out = attention(query, query, query, backend="triton")
torch.testing.assert_close(out, attention(query, query, query, backend="reference"))
half = query.bfloat16()
told = explain(half, half, half).reasons["triton"]
assert told == ["Triton's interpreter cannot compute in bf16"], told
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_cpu_is_preferred_for_its_tensors():
    query = torch.randn(1, 1, 4, 16)
    assert explain(query, query, query).chosen == "cpu"


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_dropout_keeps_what_every_backend_keeps(dropout_p):
    """Equal scores and V = 1: an output column is 0 exactly where its key is dropped."""
    len_q, len_k = 37, 70
    query = torch.zeros(2, 3, len_q, 16, device=DEVICE)
    key = torch.zeros(2, 3, len_k, 16, device=DEVICE)
    value = torch.eye(len_k, device=DEVICE).expand(2, 3, -1, -1).contiguous()
    options = {"dropout_p": dropout_p, "dropout_seed": 0x9876_5432_1234, "dropout_offset": 11}
    out = attention(query, key, value, backend="triton", **options)
    kept = dropout_keep_mask(torch.tensor([0x9876_5432_1234, 11]), dropout_p, 2, 3, len_q, len_k)
    assert torch.equal(out.cpu() != 0, kept)
    for other in ("reference", *(("cpu",) if DEVICE == "cpu" else ())):
        assert torch.equal(attention(query, key, value, backend=other, **options) != 0, out != 0)


def test_compiled_code_gives_the_same():
    def function(query, key, value):
        out = attention(query * 2, key, value, band=Band.sliding(9), backend="triton")
        return out.float().sin()

    torch.compiler.reset()
    operands = [torch.randn(1, 2, 40, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    found = torch.compile(function, fullgraph=True)(*operands)
    expected = function(*operands)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), operands), torch.autograd.grad(expected.sum(), operands)
    )


def test_the_operator_is_what_torch_expects():
    """Schema, fake tensors and autograd registrations, by torch's own test."""
    tensors = [torch.randn(1, 2, 20, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    arguments = (*tensors, *[None] * 8, 20, 20, 0.25, 0.0, 5, 0, 0, 0.0, False, "triton")
    torch.library.opcheck(torch.ops.fused_attention.forward, arguments)
