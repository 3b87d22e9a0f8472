"""The masks that models get from transformers.

A model asks for its masks once per forward pass and hands them to all of its layers, so whatever
is found out here (is there padding, where, is it a band) is found out once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import MODEL_MAPPING
from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

from fused_attention.integrations._transformers_bands import UNKNOWN, MaskFunction, band_of
from fused_attention.integrations._transformers_packing import find_packing
from fused_attention.integrations._transformers_visible import (
    Visible,
    hiding,
    remember,
    visible_in_tensor,
    visible_of_band,
)
from fused_attention.masks import Band


class FusedMask:
    """A mask [batch, 1, len_q, len_k] that exists as numbers only if somebody asks for them.

    `fused_attention_mask` makes it, the attention function takes `visible` out of it. A model that
    does anything else to it (slices it, concatenates it, asks for its dtype) meets the tensor that
    transformers' own attention gets: bool, True where visible, or for a model that knows only eager
    attention 0 where visible and the lowest number elsewhere.
    """

    ndim = 4

    def __init__(
        self, shape: tuple[int, int, int, int], make_tensor: Callable[[], Tensor], visible: Visible
    ) -> None:
        self.shape = shape
        self.make_tensor = make_tensor
        self.visible = visible

    def tensor(self) -> Tensor:
        """[batch, 1, len_q, len_k], bool or floating point."""
        return self.make_tensor().expand(self.shape)

    def contiguous(self) -> FusedMask:
        return self

    def dim(self) -> int:
        return self.ndim

    def to(self, *args: Any, **kwargs: Any) -> FusedMask | Tensor:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or dtype not in (None, torch.bool):
            return self.tensor().to(*args, **kwargs)
        return FusedMask(self.shape, lambda: self.tensor().to(device), self.visible.to(device))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols that a tensor has and this has not
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __invert__(self) -> Tensor:
        return ~self.tensor()

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(cls, cls.tensor, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)


def fused_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | FusedMask | None = None,
    *,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> FusedMask | Tensor:
    """The mask of one forward pass; transformers calls this for models set to "fused_attention".

    Args:
        batch_size, q_length, kv_length: its sizes.
        q_offset: position of the first query; a tensor where a static cache counts.
        kv_offset: position of the first key.
        mask_function: which positions see each other, padding aside.
        attention_mask: bool [batch_size, positions so far], False where padded.
        allow_is_causal_skip: False, with the next one, where the mask is not transformers' own
            function, or must be a tensor because a compiled step takes it.
        allow_is_bidirectional_skip: the same for encoders.
        dtype: of the model, and of the bias where there must be one.
        kwargs: what transformers' own function for bool masks takes besides.
    """
    if isinstance(attention_mask, FusedMask):
        return attention_mask  # generate had it made in advance
    make = partial(
        _make_tensor,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        dtype=dtype,
        **kwargs,
    )
    transparent = allow_is_causal_skip or allow_is_bidirectional_skip
    tracing = is_tracing(attention_mask)
    if q_length == 1 and not transparent:
        # The input of a step that may be compiled: it must be a tensor, one like in the last step.
        mask = make().contiguous()
        return mask if tracing else remember(mask, visible_in_tensor(mask, dtype))
    shape = (batch_size, 1, q_length, kv_length)
    if attention_mask is None or attention_mask.dim() == 2:
        band = None
        if transparent or not tracing:
            band = band_of(mask_function, 0 if tracing else UNKNOWN)
        if band is not None:
            offset = (q_offset if tracing else int(q_offset)) - kv_offset
            padding = _padding(attention_mask, batch_size, kv_length, kv_offset)
            visible = visible_of_band(shape, band, offset, padding, tracing, dtype)
            return FusedMask(shape, make, visible)
    if attention_mask is None and q_length == kv_length and not tracing:
        packing = find_packing(mask_function)
        if packing is not None:
            return FusedMask(shape, make, Visible(packing.band, segments=packing.segments))
    return FusedMask(shape, make, Visible(Band.full(), bias=hiding(make(config=None), dtype)))


def _make_tensor(*, config: Any = None, **arguments: Any) -> Tensor:
    """The tensor that a model of this config expects; bool without one."""
    eager = config is not None and _knows_only_eager(type(config))
    arguments["allow_is_causal_skip"] = arguments["allow_is_bidirectional_skip"] = False
    mask: Tensor = (eager_mask if eager else sdpa_mask)(**arguments)
    return mask


@functools.cache
def _has_no_fused_path(config_class: type) -> bool:
    model = MODEL_MAPPING.get(config_class, None)
    models = model if isinstance(model, (tuple, list)) else (model,)
    return all(
        one is not None and not (one._supports_sdpa or one._supports_flash_attn) for one in models
    )


def _knows_only_eager(config_class: type) -> bool:
    """Whether transformers runs the model of this config by its eager formulas alone."""
    return _has_no_fused_path(config_class)


# torch.compile takes the answer as a constant instead of tracing into transformers' imports. This
# is what torch.compiler.assume_constant_result sets; calling that would import the compiler here.
_knows_only_eager._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _padding(mask: Tensor | None, batch: int, kv_length: int, kv_offset: int) -> Tensor | None:
    """[batch, kv_length], True where there is a token: a static cache is longer than the mask."""
    if mask is None:
        return None
    missing = kv_length + kv_offset - mask.shape[-1]
    if missing > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    return mask[:, kv_offset : kv_offset + kv_length].expand(batch, kv_length)
