"""Rotary scaling as Hugging Face's settings write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fused_attention.checks import wrong_value
from fused_attention.nn import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from fused_attention.nn.rotary_scaling import RotaryScaling

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def rotary_scaling(settings: Mapping[str, Any] | None, max_length: int) -> RotaryScaling | None:
    """The scaling of `rope_scaling` or of `rope_parameters`, whose base is read elsewhere.

    Args:
        settings: rope_type (or type) and what belongs to it.
        max_length: the model's, for what does not say how long the pretraining's texts were.

    Raises:
        ValueError: the type is none of `KINDS`, or a setting is missing.
    """
    if settings is None:
        return None
    kind = settings.get("rope_type", settings.get("type", "default"))
    length = int(settings.get("original_max_position_embeddings", max_length))
    if kind not in KINDS:
        wrong_value("rope_type", f"must be one of {', '.join(KINDS)}", kind)
    if kind == "default":
        return None
    try:
        factor = float(settings["factor"])
        if kind == "linear":
            return LinearScaling(factor)
        if kind == "dynamic":
            return DynamicScaling(factor, max_length)
        if kind == "llama3":
            low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
            return Llama3Scaling(factor, low, high, length)
    except KeyError as error:
        raise ValueError(f"rope_scaling: must have {error} for {kind}, got none") from error
    for name in ("mscale", "mscale_all_dim"):
        if settings.get(name):
            wrong_value(name, "must not be set (use attention_factor)", settings[name])
    amplitude = settings.get("attention_factor")
    return YarnScaling(
        factor,
        length,
        float(settings.get("beta_fast") or 32),
        float(settings.get("beta_slow") or 1),
        None if amplitude is None else float(amplitude),
        bool(settings.get("truncate", True)),
    )
