"""In which dtype a run computes."""

from __future__ import annotations

import dataclasses

import torch

from fused_attention.training.settings import AUTO, Settings

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settled(settings: Settings, device: torch.device) -> Settings:
    """The settings with a precision in the place of "auto": a run keeps what it began with."""
    if settings.precision != AUTO:
        return settings
    return dataclasses.replace(settings, precision="bf16" if multiplies_bf16(device) else "fp32")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has products of bf16 numbers, not only conversions of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False  # older versions of torch do not tell
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
