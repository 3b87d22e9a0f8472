"""Scaled rotary frequencies are transformers' own, and their limits are what they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fused_attention.nn import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    Rotary,
    YarnScaling,
)
from fused_attention.nn.rotary_scaling import RotaryScaling, frequencies

BASE, DIM, LENGTH = 10000.0, 32, 64

SCALINGS: dict[str, tuple[RotaryScaling, dict[str, Any]]] = {
    "linear": (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (DynamicScaling(4.0, LENGTH), {"rope_type": "dynamic", "factor": 4.0}),
    "llama3": (
        Llama3Scaling(8.0, 1.0, 4.0, LENGTH),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": LENGTH,
        },
    ),
    "yarn": (
        YarnScaling(4.0, LENGTH),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH},
    ),
    "yarn with a sharp ramp": (
        YarnScaling(4.0, LENGTH, 8.0, 2.0, 1.5, False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
            "truncate": False,
            "original_max_position_embeddings": LENGTH,
        },
    ),
}


@pytest.mark.parametrize("length", [LENGTH, 5 * LENGTH])
@pytest.mark.parametrize("name", SCALINGS)
def test_is_what_transformers_computes(name: str, length: int) -> None:
    llama = pytest.importorskip("transformers.models.llama")
    scaling, parameters = SCALINGS[name]
    config = llama.LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_theta": BASE, **parameters},
    )
    positions = torch.arange(length)
    embedding = llama.modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1), positions[None])
    rotation = Rotary(BASE, scaling=scaling).rotation(positions, DIM, torch.float32)
    torch.testing.assert_close(rotation.cos[:, 0], cos[0, :, : DIM // 2], atol=3e-5, rtol=0)
    torch.testing.assert_close(rotation.sin[:, 0], sin[0, :, : DIM // 2], atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", SCALINGS)
def test_scores_still_depend_on_distances(name: str) -> None:
    rotary = Rotary(scaling=SCALINGS[name][0])
    query, key = torch.randn(2, 1, 1, 4, DIM, dtype=torch.float64)
    at = [torch.arange(begin, begin + 4) for begin in (0, 40)]
    near, far = (rotary.rotate(query, p) @ rotary.rotate(key, p).mT for p in at)
    torch.testing.assert_close(near, far)


def test_what_changes_nothing() -> None:
    pairs = frequencies(BASE, DIM, torch.float64, None)
    one: list[RotaryScaling] = [
        LinearScaling(1.0),
        DynamicScaling(8.0, 4 * LENGTH),  # as long as the pretraining
        Llama3Scaling(1.0, 1.0, 4.0, LENGTH),
        YarnScaling(1.0, LENGTH),
    ]
    for scaling in one:
        torch.testing.assert_close(scaling.apply(pairs, BASE, 4 * LENGTH), pairs)
        assert scaling.amplitude == 1.0


MISTAKES: dict[str, Callable[[], RotaryScaling]] = {
    "factor: must be at least 1, got 0.5": lambda: LinearScaling(0.5),
    "factor: must be at least 1, got 0": lambda: DynamicScaling(0, 64),
    "factor: must be at least 1, got nan": lambda: YarnScaling(float("nan"), 64),
    "low_factor: must be below high_factor 2, got 4": lambda: Llama3Scaling(8, 4, 2, 64),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
