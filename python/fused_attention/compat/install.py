"""`import flash_attn` without flash-attn: its module names as aliases of the modules here."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

# The names that code imports, and the modules of this package that stand behind them. A package
# behind which nothing stands has its submodules only.
_MODULES = {
    "flash_attn.flash_attn_interface": "flash_attn",
    "flash_attn.bert_padding": "bert_padding",
    "flash_attn.layers.rotary": "rotary",
    "flash_attn.ops.triton.rotary": "rotary",
    "flash_attn_3.flash_attn_interface": "flash_attn_interface",
    "flash_attn_interface": "flash_attn_interface",
}
_PACKAGES = {
    "flash_attn": "flash_attn",
    "flash_attn.layers": None,
    "flash_attn.ops": None,
    "flash_attn.ops.triton": None,
    "flash_attn_3": None,
}
_installed: dict[str, ModuleType] = {}


def install() -> None:
    """Let `import flash_attn` and `import flash_attn_interface` find this package's functions.

    For this process, until `uninstall`. Call it before the first such import of the program; an
    installed flash-attn is then left unused. A second call does nothing.

    Raises:
        RuntimeError: the original is imported already.
    """
    if _installed:
        return
    names = {*_MODULES, *_PACKAGES}
    for name in sorted(names & set(sys.modules)):
        raise RuntimeError(f"{name}: is imported already; call install() before its first import")
    for name, source in _PACKAGES.items():
        _installed[name] = _package(name, source)
    for name, source in _MODULES.items():
        _installed[name] = import_module(f"fused_attention.compat.{source}")
    for name, module in _installed.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(_installed[parent], child, module)
        sys.modules[name] = module


def uninstall() -> None:
    """Take back `install`: the next `import flash_attn` finds the original, or fails.

    What a module has imported already stays what it is.
    """
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _installed.clear()


def _package(name: str, source: str | None) -> ModuleType:
    """An empty package of this name with the public names of a module."""
    package = ModuleType(name, f"An alias made by {__name__}.")
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    package.__path__ = []  # has submodules, but none that the file system could add
    if source is not None:
        module = import_module(f"fused_attention.compat.{source}")
        for public in ("__version__", *module.__all__):
            setattr(package, public, getattr(module, public))
    return package
