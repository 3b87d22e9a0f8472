"""A case on the emulator."""

from __future__ import annotations

import numpy as np

from ..launch import launch
from ..memory import GlobalMemory
from ..tensor_map import tensor_map
from .probe import Case

ELEMENT_BYTES = {"u16": 2, "bf16": 2, "u32": 4, "f32": 4}


def run(case: Case, seed: int | None = None) -> np.ndarray:
    """The output of the case, in the shape and dtype of what is expected."""
    memory = GlobalMemory()
    place = {"input": memory.put(case.input), "output": memory.put(case.output())}
    maps = [
        tensor_map(
            place[m.buffer] + m.offset, m.shape, m.strides, m.box, ELEMENT_BYTES[m.kind], m.swizzle
        )
        for m in case.maps
    ]
    args = [place["input"], place["output"], *maps]
    launch(case.ptx, None, (1,), (case.threads,), args, seed=seed, memory=memory)
    return memory.get(place["output"])
