"""What setup.py decides: whether to build for GPUs, for which, from which sources."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CUDA, ARCHS = "FUSED_ATTENTION_CUDA", "FUSED_ATTENTION_CUDA_ARCHS"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, on a machine with nvcc, without GPU and without an earlier build."""
    spec = importlib.util.spec_from_file_location("fused_attention_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (CUDA, ARCHS, "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "LIBRARIES", tmp_path)
    monkeypatch.setattr(module, "ARCHS_FILE", tmp_path / "archs")
    monkeypatch.setattr(module, "native_archs", lambda: [])
    monkeypatch.setattr(module, "cuda_home", lambda: Path("/cuda"))
    return module


def wants(setup: ModuleType) -> bool:
    return setup.wants_cuda(setup.cuda_choice())


def test_auto_builds_for_gpus_where_there_is_one(setup, monkeypatch, capsys):
    assert not wants(setup)
    assert capsys.readouterr().err == "fused_attention: no GPU was found, building for CPUs only\n"
    monkeypatch.setattr(setup, "native_archs", lambda: ["90"])
    assert wants(setup)
    assert capsys.readouterr().err == ""


def test_auto_keeps_a_library_up_to_date_that_was_built_before(setup):
    (setup.LIBRARIES / "libfused_attention_cuda.so").touch()
    assert wants(setup)


def test_without_nvcc_auto_says_so_and_one_fails(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup, "cuda_home", lambda: None)
    monkeypatch.setattr(setup, "native_archs", lambda: ["90"])
    assert not wants(setup)
    assert "no nvcc was found, building for CPUs only" in capsys.readouterr().err
    monkeypatch.setenv(CUDA, "1")
    with pytest.raises(SystemExit, match="1 needs nvcc"):
        wants(setup)


def test_the_variable_decides(setup, monkeypatch):
    monkeypatch.setenv(CUDA, "1")
    assert wants(setup)
    monkeypatch.setattr(setup, "native_archs", lambda: ["90"])
    monkeypatch.setenv(CUDA, "0")
    assert not wants(setup)
    monkeypatch.setenv(CUDA, "yes")
    with pytest.raises(SystemExit, match=f"{CUDA}: must be 0, 1 or auto, got 'yes'"):
        wants(setup)


@pytest.mark.parametrize("given", ["80;90a", "8.0;9.0a", "80,90a", "80 90a"])
def test_archs_are_written_in_any_way(setup, monkeypatch, given):
    monkeypatch.setenv(ARCHS, given)
    assert setup.cuda_archs() == ["80", "90a"]


@pytest.mark.parametrize("given", ["75", "sm_80", "90f", "a"])
def test_wrong_archs_are_refused(setup, monkeypatch, given):
    monkeypatch.setenv(ARCHS, given)
    with pytest.raises(SystemExit, match=f"{ARCHS}: must name 80 or newer"):
        setup.cuda_archs()


def test_archs_are_this_machine_s_or_those_of_the_last_build(setup, monkeypatch):
    assert setup.cuda_archs() == ["80"]
    monkeypatch.setattr(setup, "native_archs", lambda: ["86", "90"])
    assert setup.cuda_archs() == ["86", "90", "90a"]
    setup.ARCHS_FILE.write_text("80 90")
    assert setup.cuda_archs() == ["80", "90"]
    monkeypatch.setenv(ARCHS, "100")
    assert setup.cuda_archs() == ["100"]


def test_gpus_are_asked_for_their_capability(setup, monkeypatch):
    spec = importlib.util.spec_from_file_location("again", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    fresh: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)

    def answer(text: str):
        done = subprocess.CompletedProcess([], 0, stdout=text)
        monkeypatch.setattr(fresh.subprocess, "run", lambda *_, **__: done)
        return fresh.native_archs()

    assert answer("9.0\n9.0\n10.0\n8.6\n7.5\n") == ["86", "90", "100"]
    assert answer("No devices were found\n") == []

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(fresh.subprocess, "run", missing)
    assert fresh.native_archs() == []


def test_machine_code_for_each_arch_and_ptx_for_newer_ones(setup):
    assert setup.code_flags(["90", "80"]) == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    assert setup.code_flags(["90a"]) == ["-gencode=arch=compute_90a,code=sm_90a"]


def test_hopper_s_room_is_compiled_for_90a_alone(setup, monkeypatch, tmp_path):
    for name in ("sm80/a.cu", "sm90/b.cu", "binding.cpp"):
        (tmp_path / "cuda" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cuda" / name).touch()
    monkeypatch.setattr(setup, "CSRC", tmp_path)

    def flags(archs: list[str]) -> dict[str, str]:
        return {s.path.name: " ".join(s.flags) for s in setup.cuda_sources(archs)}

    assert set(flags(["80"])) == {"a.cu", "binding.cpp"}
    both = flags(["80", "90a"])
    assert "sm_80" in both["a.cu"] and "90a" not in both["a.cu"]
    assert both["b.cu"] == "-gencode=arch=compute_90a,code=sm_90a"
    assert "arch=compute_90,code=sm_90" in flags(["90a"])["a.cu"]


def test_every_source_is_compiled_once(setup, tmp_path):
    sources = setup.cuda_sources(["80", "90a"])
    setup.write_ninja_file(tmp_path / "build.ninja", tmp_path / "lib.so", sources, Path("/cuda"))
    # ninja breaks long lines
    text = (tmp_path / "build.ninja").read_text().replace("$\n", "")
    for path in (ROOT / "csrc/cuda").rglob("*.c*"):
        if path.suffix in (".cu", ".cpp"):
            assert len([line for line in text.splitlines() if line.endswith(f" {path}")]) == 1
    assert "-lcudart_static" in text and "--exclude-libs,ALL" in text


def test_a_toolkit_is_what_has_nvcc_and_its_runtime(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("again", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    fresh: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    whole, script = tmp_path / "whole", tmp_path / "script"
    for home in (whole, script):
        (home / "bin").mkdir(parents=True)
        (home / "bin/nvcc").touch(mode=0o755)
    (whole / "lib64").mkdir()
    (whole / "lib64/libcudart_static.a").touch()
    monkeypatch.setenv("PATH", str(script / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(whole))
    assert fresh.cuda_home() == whole
    monkeypatch.setenv("CUDA_HOME", str(script))
    assert fresh.cuda_home() in (None, Path("/usr/local/cuda"))
