"""install() makes `import flash_attn` find these functions, and uninstall() takes that back."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from fused_attention.compat import (
    bert_padding,
    flash_attn,
    flash_attn_interface,
    install,
    rotary,
    uninstall,
)

SEVEN = [name for name in flash_attn.__all__ if name.startswith("flash_attn")]


def ours() -> set[str]:
    return {name for name in sys.modules if name.split(".")[0].startswith("flash_attn")}


@pytest.fixture(autouse=True)
def without_flash_attn() -> Iterator[None]:
    assert not ours(), "flash_attn is imported by something else"
    yield
    uninstall()
    assert not ours()


def test_imports() -> None:
    install()
    from flash_attn import flash_attn_func, flash_attn_with_kvcache  # noqa: PLC0415
    from flash_attn.bert_padding import pad_input, unpad_input
    from flash_attn.flash_attn_interface import _flash_attn_forward, flash_attn_varlen_func
    from flash_attn.layers.rotary import RotaryEmbedding, apply_rotary_emb
    from flash_attn.ops.triton.rotary import apply_rotary
    from flash_attn_3.flash_attn_interface import flash_attn_func as third
    from flash_attn_interface import flash_attn_func as third_too

    assert flash_attn_func is flash_attn.flash_attn_func
    assert flash_attn_with_kvcache is flash_attn.flash_attn_with_kvcache
    assert flash_attn_varlen_func is flash_attn.flash_attn_varlen_func
    assert _flash_attn_forward is flash_attn._flash_attn_forward
    assert (pad_input, unpad_input) == (bert_padding.pad_input, bert_padding.unpad_input)
    assert apply_rotary_emb is rotary.apply_rotary_emb and apply_rotary is rotary.apply_rotary
    assert RotaryEmbedding is rotary.RotaryEmbedding
    assert third is third_too is flash_attn_interface.flash_attn_func


def test_attributes() -> None:
    install()
    package = importlib.import_module("flash_attn")
    assert len(SEVEN) == 7 and all(hasattr(package, name) for name in SEVEN)
    assert package.__version__ == "2.8.4"
    assert package.layers.rotary is rotary and package.bert_padding is bert_padding
    assert importlib.util.find_spec("flash_attn").name == "flash_attn"
    assert importlib.util.find_spec("flash_attn.bert_padding") is not None


def test_what_is_not_there_is_said_so() -> None:
    install()
    with pytest.raises(ModuleNotFoundError, match="No module named 'flash_attn.losses'"):
        importlib.import_module("flash_attn.losses")
    with pytest.raises(ModuleNotFoundError, match="flash_attn.ops.rms_norm"):
        importlib.import_module("flash_attn.ops.rms_norm")


def test_twice_and_back() -> None:
    install()
    first = dict(sys.modules)
    install()
    assert {name: first[name] for name in ours()} == {name: sys.modules[name] for name in ours()}
    uninstall()
    assert not ours()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flash_attn")
    uninstall()


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn.bert_padding", "flash_attn_interface"])
def test_the_original_is_not_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, original)
    with pytest.raises(RuntimeError, match=f"{name}: is imported already"):
        install()
    assert ours() == {name} and sys.modules[name] is original
    monkeypatch.undo()


def test_uninstall_leaves_what_others_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    other = ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", other)
    uninstall()
    assert sys.modules["flash_attn"] is other
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.undo()
    sys.modules.pop("flash_attn", None)
