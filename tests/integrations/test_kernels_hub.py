"""The package as a kernel of the Hugging Face hub, loaded by the hub's own loader."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_attention.compat.flash_attn import flash_attn_func, flash_attn_varlen_func
from fused_attention.integrations import _kernel_sources, kernels_hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("kernel")
    kernels_hub.lay_out(out, ("cpu", "cu130"))
    return out


def variants(repository: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in sorted((repository / "build").iterdir())}


def compiled_variant(repository: Path) -> Path:
    return next(path for name, path in variants(repository).items() if "abi211-cpu" in name)


def test_variants_and_metadata(repository: Path) -> None:
    found = variants(repository)
    assert {name.split("-x86")[0].split("-aarch")[0] for name in found} == {
        "torch-cpu",
        "torch-cuda",
        "torch-stable-abi211-cpu",
        "torch-stable-abi211-cu130",
    }
    identifiers = set()
    for name, folder in found.items():
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["name"] == "fused-attention"
        assert metadata["backend"]["type"] == ("cuda" if "cu1" in name or "cuda" in name else "cpu")
        assert metadata["id"].isidentifier()
        identifiers.add(metadata["id"])
        assert (folder / "lib").exists() == ("abi" in name)
    assert len(identifiers) == 4


def test_sources_count_on_no_name(repository: Path) -> None:
    folder = compiled_variant(repository)
    files = list(folder.rglob("*.py"))
    assert {"functional.py", "flash_attn.py", "cpu.py"} <= {file.name for file in files}
    assert not any(part in ("integrations", "cli", "nn") for file in files for part in file.parts)
    for file in files:
        source = file.read_text()
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            assert not any(name.split(".")[0] == "fused_attention" for name in names), file
        assert "torch.ops.fused_attention" not in source and '"fused_attention::' not in source


def test_library_is_renamed_and_nothing_else(repository: Path) -> None:
    folder = compiled_variant(repository)
    library = next((folder / "lib").glob("*.so"))
    original = (Path(kernels_hub._ext.LIBRARY_FOLDER) / library.name).read_bytes()
    changed = library.read_bytes()
    assert len(changed) == len(original)
    different = [i for i, (a, b) in enumerate(zip(original, changed, strict=True)) if a != b]
    assert different and different[-1] - different[0] < len("fused_attention")


@pytest.mark.slow
def test_variants_stand_on_their_own(repository: Path) -> None:
    kernels_hub.check(compiled_variant(repository))
    kernels_hub.check(variants(repository)["torch-cuda"])


def test_a_broken_kernel_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"id": "broken"}')
    (tmp_path / "__init__.py").write_text("import no_such_module\n")
    with pytest.raises(RuntimeError, match="cannot be loaded as a kernel\n(.*\n)*.*no_such_module"):
        kernels_hub.check(tmp_path)


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    monkeypatch.setattr(kernels_hub, "check", checked.append)
    kernels_hub.main([str(tmp_path)])
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == checked == [tmp_path / "build" / path.name for path in printed]
    assert len(printed) == 2
    with pytest.raises(SystemExit):
        kernels_hub.main([str(tmp_path), "--backend", "rocm"])
    assert 'backends: must be "cpu" or "cu" and a version, got \'rocm\'' in capsys.readouterr().err


def test_without_a_compiled_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_hub._ext, "LIBRARY_FOLDER", tmp_path / "none")
    assert [folder.name for folder in kernels_hub.lay_out(tmp_path)] == ["torch-cpu"]


def test_library_with_another_name_inside() -> None:
    with pytest.raises(ValueError, match="x.so: must hold 'fused_attention' once, got 2 times"):
        kernels_hub._renamed("x.so", b"\0fused_attention\0.\0fused_attention\0", "fused_attn_abcd")


def test_imports_without_a_relative_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "module.py"
    file.write_text("import fused_attention.masks\n")
    monkeypatch.setattr(_kernel_sources, "_origin", lambda module: file)
    with pytest.raises(ValueError, match="x: must use `from ... import` in line 1"):
        _kernel_sources.collect(["x"])


def test_modules_that_do_not_exist() -> None:
    with pytest.raises(ModuleNotFoundError, match="fused_attention.missing: is not installed"):
        _kernel_sources.collect(["fused_attention.missing"])


def assert_computes_like_ours(kernel: Any) -> None:
    q, k, v = torch.randn(3, 2, 7, 4, 16, requires_grad=True).unbind(0)
    expected = flash_attn_func(q, k, v, causal=True)
    found = kernel.flash_attn_func(q, k, v, causal=True)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), weights),
        torch.autograd.grad(expected, (q, k, v), weights),
        strict=True,
    ):
        assert torch.equal(one, other)
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    arguments = (*(x[0] for x in (q, k, v)), ends, ends, 4, 4)
    found = kernel.flash_attn_varlen_func(*arguments, causal=True)
    assert torch.equal(found, flash_attn_varlen_func(*arguments, causal=True))


def test_loader_takes_it_from_a_folder(repository: Path) -> None:
    """Beside the installed package: one process, two copies of the operators."""
    kernels = pytest.importorskip("kernels")
    kernel = kernels.get_local_kernel(repository, backend="cpu")
    assert "abi211_cpu" in kernel.__name__
    assert_computes_like_ours(kernel)
    assert "cpu" in [one.name for one in kernel.backends() if one.available]


def test_loader_takes_it_in_place_of_a_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = pytest.importorskip("kernels")
    monkeypatch.setenv("LOCAL_KERNELS", f"somebody/fused-attention={repository}")
    kernel = kernels.get_kernel("somebody/fused-attention", version=1, backend="cpu")
    assert_computes_like_ours(kernel)


@pytest.mark.parametrize("kind", ["none", "right", "left"])
def test_transformers_takes_it(
    kind: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """attn_implementation="owner/kernel" wraps these functions as flash attention."""
    kernels = pytest.importorskip("kernels")
    pytest.importorskip("transformers", minversion="5.4")
    import tiny_transformers as tiny
    from transformers.integrations import hub_kernels

    kernel = kernels.get_local_kernel(repository, backend="cpu")
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *_, **__: kernel)
    model, inputs = tiny.model("mistral"), tiny.batch("mistral", kind)
    rows = tiny.real_rows("mistral", inputs)
    logits = []
    for name in ("eager", "somebody/fused-attention"):
        model.set_attn_implementation(name, allow_all_kernels=True)
        logits.append(model(**inputs).logits[rows])
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
