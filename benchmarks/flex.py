"""torch's FlexAttention, compiled, as a contender on CPUs: forward only, with a C++ compiler."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Inputs
from .contenders import FLEX, Contender


def flex(case: Case, inputs: Inputs) -> Tensor:
    """The case's band as a block mask, made outside of the timed region as SDPA's mask is.

    Raises:
        NotImplementedError: there is no compiler for it.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise NotImplementedError("needs a C++ compiler at run time")
    with torch.no_grad():
        result: Tensor = _compiled(case)(inputs.query, inputs.key, inputs.value)
    return result


@functools.lru_cache(maxsize=1)
def _compiled(case: Case) -> Callable[..., Any]:
    """Compiled for this shape alone: the fastest that it can be."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = None
    if not case.hides_nothing:
        band = case.band.resolve(case.len_q, case.len_k)
        offset = band.offset
        assert offset is not None  # resolve() always sets it

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            diagonal = query + offset
            return (key >= diagonal - band.left) & (key <= diagonal + band.right)

        mask = create_block_mask(visible, None, None, case.len_q, case.len_k, device=case.device)
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped = case.heads_q != case.heads_kv
    return functools.partial(compiled, block_mask=mask, enable_gqa=grouped)


FLEX_CONTENDER = Contender(FLEX, flex, differentiable=False)
