"""The contenders on a GPU: ours and each of torch's own attention kernels."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from fused_attention import attention_with_kv_cache

from .cases import Case, Inputs
from .contenders import CUDNN, EFFICIENT, FLASH, MATH, OURS, Contender, ours

DECODING_QUERIES = 16
_BACKENDS = {
    FLASH: SDPBackend.FLASH_ATTENTION,
    EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    CUDNN: SDPBackend.CUDNN_ATTENTION,
    MATH: SDPBackend.MATH,
}
# How torch says that a backend that was asked for cannot do a problem.
_NO_KERNEL = ("No available kernel", "No viable backend")


def sdpa(case: Case, inputs: Inputs) -> Tensor:
    """torch's function, told that the mask is causal where it is, else given it as a tensor.

    Raises:
        NotImplementedError: the kernel that was asked for cannot do this.
    """
    square = case.len_q == case.len_k
    mask = inputs.mask
    if case.is_causal:
        mask = None if square else causal_lower_right(case.len_q, case.len_k)
    try:
        return scaled_dot_product_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            attn_mask=mask,
            is_causal=case.is_causal and square,
            enable_gqa=case.heads_q != case.heads_kv,
        )
    except RuntimeError as error:
        if any(words in str(error) for words in _NO_KERNEL):
            raise NotImplementedError("torch has no kernel of this kind for it") from None
        raise


@contextmanager
def only(backend: SDPBackend) -> Iterator[None]:
    """torch may use no other kernel, and does not explain at length why it will not use it."""
    with warnings.catch_warnings(), sdpa_kernel(backend):
        warnings.simplefilter("ignore")
        yield


def ours_on_gpu(case: Case, inputs: Inputs) -> Tensor:
    """A few queries to many keys are a step of decoding, which has kernels of its own on a GPU."""
    if case.backward or case.len_q > DECODING_QUERIES:
        return ours(case, inputs)
    caches = (inputs.key, inputs.value)
    return attention_with_kv_cache(inputs.query, *caches, cache_lengths=case.len_k, band=case.band)


CUDA_CONTENDERS = (
    Contender(OURS, ours_on_gpu),
    *(Contender(name, sdpa, functools.partial(only, b)) for name, b in _BACKENDS.items()),
)
