"""AMX: the model against the manual's arithmetic, and the instructions' encodings.

Nothing here runs on a processor with AMX; what it can show is that the model does what the manual
says, and that the compiled kernels contain the instructions that the model stands for.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fused_attention import _ext
from native.build import ROOT

SOURCE = Path(__file__).with_name("amx_instructions.cpp")
FOLDER = ROOT / "build" / "native"
COMMON = ["c++", "-std=c++17", "-O2", "-fPIC", f"-I{SOURCE.parent}"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="instructions of x86-64"
)


@pytest.fixture(scope="module")
def model() -> ctypes.CDLL:
    if "avx2" not in _ext.available_cpu_isas():
        pytest.skip("the model is compiled for AVX2 with FMA and F16C")
    FOLDER.mkdir(parents=True, exist_ok=True)
    library = FOLDER / "amx_instructions.so"
    flags = ["-mavx2", "-mfma", "-mf16c", "-DFUSED_ATTENTION_AMX_MODEL", "-shared"]
    subprocess.run([*COMMON, *flags, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def real_object() -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "amx_instructions.o"
    flags = ["-mamx-tile", "-mamx-bf16", "-c"]
    command = [*COMMON, *flags, str(SOURCE), "-o", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and "-mamx" in result.stderr:
        pytest.skip("this compiler does not know AMX, and the library was built without")
    assert result.returncode == 0, result.stderr
    return path


def run(model: ctypes.CDLL, name: str, a: torch.Tensor, b: torch.Tensor, c: np.ndarray):
    """C + A B with A [16, 32] inside wider rows and B [32, 16], zipped for the instruction."""
    wide = torch.nn.functional.pad(a, (0, 8), value=torch.nan).contiguous()
    pairs = b.reshape(16, 2, 16).transpose(1, 2).contiguous()
    out = np.ascontiguousarray(c, dtype=np.float32).copy()
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (wide, pairs)]
    stride = ctypes.c_int64(wide.stride(0) * 2)
    getattr(model, name)(pointers[0], stride, pointers[1], out.ctypes.data_as(ctypes.c_void_p))
    return out


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x).astype(np.float32)


def by_the_manual(a: torch.Tensor, b: torch.Tensor, c: np.ndarray) -> np.ndarray:
    """Even and odd members of the pairs by FMA from 0 in fp32, their sum, then C.

    numpy has no FMA. In fp64 the product of two halves is exact, and so is the sum with an fp32
    number of similar size, which is then rounded once.
    """
    wide_a, wide_b = a.double().numpy(), b.double().numpy()
    if a.dtype == torch.bfloat16:  # fp16's subnormal numbers are normal ones in fp32
        wide_a, wide_b = flushed(wide_a), flushed(wide_b)
    sums = []
    for parity in (0, 1):
        total = np.zeros((16, 16), dtype=np.float32)
        for k in range(parity, 32, 2):
            exact = np.outer(wide_a[:, k].astype(np.float64), wide_b[k].astype(np.float64))
            total = flushed((exact + total).astype(np.float32))
        sums.append(total)
    return flushed(flushed(c) + flushed(sums[0] + sums[1]))


DTYPES = {torch.bfloat16: "dot_bf16", torch.float16: "dot_fp16"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", [1.0, 2.0**-15])
def test_the_model_follows_the_manual_bit_for_bit(model, dtype, magnitude):
    """The small magnitude makes most fp16 numbers subnormal, which count."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        a, b, c = (torch.randn(n, generator=generator) for n in ((16, 32), (32, 16), (16, 16)))
        a, b = (a * magnitude).to(dtype), b.to(dtype)
        c = c.numpy() * magnitude
        np.testing.assert_array_equal(run(model, DTYPES[dtype], a, b, c), by_the_manual(a, b, c))


def test_the_order_of_the_sums_matters_to_the_comparison(model):
    """Otherwise the test above would also accept one sum over all 32."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, generator=generator).bfloat16() for n in ((16, 32), (32, 16)))
    c = np.zeros((16, 16), dtype=np.float32)
    assert (run(model, "dot_bf16", a, b, c) != (a.float() @ b.float()).numpy()).any()


def test_subnormal_bf16_operands_and_subnormal_results_are_zero(model):
    tiny = torch.finfo(torch.bfloat16).tiny
    a, b = torch.zeros(16, 32, dtype=torch.bfloat16), torch.zeros(32, 16, dtype=torch.bfloat16)
    a[0, 0], b[0] = tiny / 2, 2.0**100  # a subnormal operand
    a[1, 0] = tiny  # tiny * 2^100, a normal result
    a[2, 2], b[2] = tiny, 0.5  # a subnormal product
    c = np.zeros((16, 16), dtype=np.float32)
    c[3] = np.float32(1e-40)  # a subnormal sum
    out = run(model, "dot_bf16", a, b, c)
    assert (out[[0, 2, 3]] == 0).all()
    assert (out[1] == np.float32(tiny) * np.float32(2.0**100)).all()


def test_rows_of_a_tile_lie_a_stride_apart(model):
    out = np.ones((16, 40), dtype=np.float32)
    model.store_zeros(out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(160))
    assert (out[:, :16] == 0).all() and (out[:, 16:] == 1).all()


def test_encodings_are_those_of_the_assembler(real_object):
    """tmm3 += tmm4 tmm5: 5C with B, inverted, in the third byte and C and A in the last."""
    code = real_object.read_bytes()
    assert bytes.fromhex("c4e2525cdc") in code, "tdpbf16ps %tmm5, %tmm4, %tmm3"
    assert bytes.fromhex("c4e2535cdc") in code, "tdpfp16ps %tmm5, %tmm4, %tmm3"


def test_instructions_stand_in_their_order(real_object):
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    listing = subprocess.run(
        ["objdump", "-d", str(real_object)], capture_output=True, text=True, check=True
    ).stdout
    if "ldtilecfg" not in listing:
        pytest.skip("this objdump is older than AMX")
    body = listing.split("<dot_bf16>:")[1].split(">:")[0]
    found = re.findall(r"\t(ldtilecfg|tile\w+|tdp\w+)\s*(.*)", body)
    assert [name for name, _ in found] == [
        "ldtilecfg",
        *["tileloadd"] * 3,
        "tdpbf16ps",
        "tilestored",
        "tilerelease",
    ]
    assert [re.findall(r"%tmm\d", operands) for _, operands in found[1:-1]] == [
        ["%tmm3"],
        ["%tmm4"],
        ["%tmm5"],
        ["%tmm5", "%tmm4", "%tmm3"],
        ["%tmm3"],
    ]


@pytest.mark.parametrize("prefix", ["4a", "42"], ids=["tmm6", "tmm7"])
@pytest.mark.parametrize("name,bits", [("bf16", 0), ("fp16", 1)])
def test_the_library_contains_the_products(real_object, name, bits, prefix):
    """C in tmm0 to tmm3, A in tmm4 and tmm5, B in tmm6 and tmm7; third byte as above."""
    library = _ext.LIBRARY_FOLDER / "libfused_attention_cpu.so"
    third = f"{int(prefix, 16) + bits:02x}"
    operands = ("c4", "d5") if prefix == "4a" else ("cc", "dd")
    for last in operands:
        encoding = bytes.fromhex(f"c4e2{third}5c{last}")
        assert encoding in library.read_bytes(), f"tdp{name}ps {encoding.hex()}"
