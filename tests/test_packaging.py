"""The wheel: built from this tree, it holds everything and runs without the tree."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

OFFLINE = Path(sys.prefix) / "stamps" / "offline"  # of make setup
ROOT = Path(__file__).resolve().parents[1]
CODE = """
import torch, fused_attention
query = torch.randn(1, 2, 9, 8, requires_grad=True)
fused_attention.attention(query, query, query, causal=True, backend="cpu").sum().backward()
print(fused_attention.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_is_complete(wheel):
    assert "-py3-none-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fused_attention/lib/libfused_attention_cpu.so" in names
    assert "fused_attention/py.typed" in names
    rooms = {"": "python/fused_attention", "benchmarks/": "benchmarks"}
    rooms["triton_kernels/"] = "triton_kernels"
    for room, folder in rooms.items():
        modules = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        assert {f"fused_attention/{room}{module}" for module in modules} <= names
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


@pytest.mark.slow
def test_unpacked_wheel_runs_by_itself(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CODE}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path))


def missing(requirements: list[str]) -> list[str]:
    """The distributions of these requirements that are not installed."""
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in requirements]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return [name for name in names if name.lower() not in installed]


@pytest.mark.skipif(OFFLINE.exists(), reason="make setup could not fetch everything")
def test_no_test_is_skipped_for_want_of_a_library():
    requirements = metadata.requires("fused-attention") or []
    wanted = [one for one in requirements if re.search("extra == .test.", one)]
    assert len(wanted) > 5 and missing(wanted) == []
    assert missing([*wanted, "no-such-library>=1"]) == ["no-such-library"]
