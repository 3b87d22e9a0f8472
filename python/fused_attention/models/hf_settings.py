"""Reading the settings of Hugging Face's models: names of activations, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

# Our name first among those that stand for it there.
_ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}


def refuse(setting: str, rule: str, got: object) -> NoReturn:
    """Raise the error for a setting of a checkpoint that the model cannot follow."""
    raise ValueError(f"{setting}: {rule}, got {got!r}")


def our_activation(settings: Mapping[str, Any], setting: str, default: str = "gelu") -> str:
    """FeedForward's name of the activation that `settings[setting]` names."""
    theirs = settings.get(setting, default)
    for ours, names in _ACTIVATIONS.items():
        if theirs in names:
            return ours
    known = ", ".join(name for names in _ACTIVATIONS.values() for name in names)
    refuse(setting, f"must be one of {known}", theirs)


def their_activation(ours: str) -> str:
    """A name of FeedForward's activation there."""
    return _ACTIVATIONS[ours][0]


def require(settings: Mapping[str, Any], **wanted: object) -> None:
    """Refuse settings that are there and have other values than these.

    Raises:
        ValueError: one of them does.
    """
    for setting, value in wanted.items():
        if settings.get(setting, value) not in (value, None):
            refuse(setting, f"must be {value!r} for this model", settings[setting])
