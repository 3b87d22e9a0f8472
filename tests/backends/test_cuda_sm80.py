"""The backend cuda_sm80 without a GPU: its reasons, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fused_attention import _ext, explain
from fused_attention.backends import ORDER, cuda_sm80
from fused_attention.backends.call import Call
from fused_attention.support import sample_problem

PLAIN = sample_problem("cuda", "bf16")


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if library, driver and a GPU were there."""
    monkeypatch.setattr(_ext, "cuda_unavailable", lambda: ())


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    "feature",
    [
        *("forward", "backward", "causal", "sliding window", "grouped heads", "head_dim 256"),
        *("head_dim 80", "value dim unlike head_dim", "packed sequences", "kv_lengths"),
        *("band_offsets", "softcap", "ALiBi", "sinks", "dropout", "deterministic backward"),
    ],
)
def test_runs_every_feature_but_a_bias(feature):
    for dtype in ("bf16", "fp16"):
        assert cuda_sm80.why_not(sample_problem("cuda", dtype, feature)) == []


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    "problem, reason",
    [
        (sample_problem("cpu", "bf16"), "runs on CUDA tensors, got cpu"),
        (sample_problem("cuda", "fp32"), "computes in fp16 and bf16, got float32"),
        (sample_problem("cuda", "fp64"), "computes in fp16 and bf16, got float64"),
        (
            sample_problem("cuda", "bf16", "head_dim 512"),
            "head and value dims go up to 256, got 512",
        ),
        (PLAIN._replace(value_dim=264), "head and value dims go up to 256, got 264"),
        (sample_problem("cuda", "bf16", "bias"), "takes no bias"),
    ],
)
def test_reasons(problem, reason):
    assert cuda_sm80.why_not(problem) == [reason]


@pytest.mark.usefixtures("usable")
def test_decoding_has_the_same_reasons():
    assert cuda_sm80.decode_why_not(PLAIN) == []
    for changed in ({"dtype": torch.float32}, {"head_dim": 257}, {"device_type": "cpu"}):
        problem = PLAIN._replace(**changed)
        assert cuda_sm80.decode_why_not(problem) == cuda_sm80.why_not(problem) != []


@pytest.mark.usefixtures("usable")
def test_comes_first_on_gpus():
    assert next(backend.NAME for backend in ORDER if not backend.why_not(PLAIN)) == "cuda_sm80"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """cuda_unavailable() on a machine of which this is known; by default nothing is missing."""

    def reasons(
        load_error: str | None = None,
        driver: str = "",
        torch_cuda: str | None = "13.0",
        devices: int = 1,
        capability: tuple[int, int] | None = None,
    ) -> tuple[str, ...]:
        operators = type("Operators", (), {"cuda_driver_error": lambda: driver})
        monkeypatch.setattr(torch.ops, "fused_attention", operators, raising=False)
        monkeypatch.setattr(_ext, "load_error", lambda name: load_error)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        forget()
        return _ext.cuda_unavailable()

    def forget() -> None:
        _ext._cuda_without_device.cache_clear()
        _ext.gpu_missing.cache_clear()

    yield reasons
    forget()


def test_reasons_of_the_machine(machine):
    assert machine() == ()
    assert machine(load_error="not built") == ("not built",)
    assert machine(driver="too old") == ("too old",)
    assert machine(torch_cuda=None) == ("this torch is built without CUDA",)
    assert machine(devices=0) == ("no GPU was found",)
    assert machine("not built", torch_cuda=None) == (
        "not built",
        "this torch is built without CUDA",
    )


def test_old_gpus_are_refused_once_torch_knows_them(machine):
    assert machine(capability=(8, 0)) == machine(capability=(12, 0)) == ()
    refusal = "needs a GPU of compute capability 8.0 or newer, got 7.5"
    assert machine(capability=(7, 5)) == (refusal,)


def test_a_missing_or_broken_library_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(_ext, "LIBRARY_FOLDER", tmp_path)
    missing = _ext.load_error.__wrapped__("cuda")
    assert missing is not None and "libfused_attention_cuda.so has not been built" in missing
    assert "FUSED_ATTENTION_CUDA=1" in missing
    (tmp_path / "libfused_attention_cuda.so").write_text("no library")
    broken = _ext.load_error.__wrapped__("cuda")
    assert broken is not None and "libfused_attention_cuda.so cannot be loaded" in broken


def test_forced_on_the_cpu_it_gives_its_reasons():
    query = torch.randn(1, 1, 4, 8)
    told = explain(query, query, query, backend="cuda_sm80")
    assert told.chosen is None
    assert "runs on CUDA tensors, got cpu" in told.reasons["cuda_sm80"]


def test_operators_get_the_call_in_its_order_and_what_they_write(monkeypatch):
    """Their argument names are looked at in cuda/test_library.py."""
    given = {}

    class Operators:
        def __getattr__(self, name):
            return lambda *arguments: given.update({name: arguments})

    monkeypatch.setattr(torch.ops, "fused_attention", Operators(), raising=False)
    tensors = [torch.randn(1, 2, 3, 8, dtype=torch.bfloat16) for _ in range(3)]
    call = Call(*tensors, *(None,) * 8, 3, 3, 0.5, 0.0, 1, 2, 0, 0.0)
    out, lse = cuda_sm80.forward(call)
    handed_on = call[:-1]  # without `deterministic`, which they always are
    fields = len(handed_on)
    assert given["cuda_sm80_forward"][:fields] == handed_on
    assert given["cuda_sm80_forward"][fields:] == (out, lse)
    assert out.shape == (1, 2, 3, 8) and lse.dtype == torch.float32

    upstream = (torch.randn_like(out), None)
    grads = cuda_sm80.backward(call, *upstream, out, lse, False)
    arguments = given["cuda_sm80_backward"]
    assert arguments[:fields] == handed_on
    assert arguments[fields : fields + 4] == (out, lse, *upstream)
    assert arguments[-3:] == (grads.query, grads.key, grads.value)
    assert arguments[-4].shape == lse.shape and grads.bias is None and grads.sinks is None


def test_neither_import_nor_a_call_on_the_cpu_initialises_cuda():
    code = """
import torch, fused_attention
maps = open("/proc/self/maps").read()
assert "libfused_attention" not in maps
query = torch.randn(1, 1, 4, 8)
fused_attention.attention(query, query, query)
fused_attention.backends()
assert not torch.cuda.is_initialized()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
