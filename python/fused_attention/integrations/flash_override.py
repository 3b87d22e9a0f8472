"""torch's flash attention operators on this package's kernels, for torch.nn.attention's registry.

torch decides before these operators which calls reach them, and differentiates forward by calling
backward; both are as torch defines them, down to the layouts of the results. What no fused kernel
can do goes to the kernel that torch had registered.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_attention import log
from fused_attention.autograd import attend, backward_op
from fused_attention.backends.call import Call
from fused_attention.integrations.sdpa_call import (
    NotServedError,
    choose,
    mask_options,
    prepared,
)
from fused_attention.masks import Band
from fused_attention.signature import join_backward

DOOR = "flash attention impl"
Results = tuple[Any, ...]
Kernel = Callable[..., Results]


class Override:
    """The overridden operators; torch's registry calls `remove` to restore them."""

    def __init__(self) -> None:
        self._library: torch.library.Library | None = torch.library.Library("aten", "IMPL")
        self._install("CPU", "_scaled_dot_product_flash_attention_for_cpu", cpu_forward)
        self._install("CPU", "_scaled_dot_product_flash_attention_for_cpu_backward", cpu_backward)
        if torch.version.cuda is not None:
            self._install("CUDA", "_scaled_dot_product_flash_attention", cuda_forward)
            self._install("CUDA", "_scaled_dot_product_flash_attention_backward", cuda_backward)

    def remove(self) -> None:
        """Restore torch's kernels; once more does nothing."""
        if self._library is not None:
            self._library._destroy()
            self._library = None

    def _install(self, key: str, operator: str, kernel: Kernel) -> None:
        assert self._library is not None
        original = torch.library.get_kernel(f"aten::{operator}", key)

        def served(keys: Any, *args: Any, **kwargs: Any) -> Results:
            try:
                return kernel(*args, **kwargs)
            except NotServedError as reason:
                if log.enabled:
                    log.served(DOOR, None, str(reason))
                results: Results = original.call_boxed(keys, *args, **kwargs)
                return results

        with warnings.catch_warnings():
            # "Overriding a previously registered kernel": that is what the user asked for.
            warnings.simplefilter("ignore", UserWarning)
            self._library.impl(operator, served, key, with_keyset=True, allow_override=True)


# The bodies run below torch's autograd, which records nothing of what they do.


def cpu_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Results:
    """aten::_scaled_dot_product_flash_attention_for_cpu: out and lse [B, H, L]."""
    call, backend = _call(query, key, value, dropout_p, is_causal, 0, attn_mask, scale)
    out, lse = attend(call, backend, needs_grad=False)
    return out, _length_first(lse)


def cpu_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Results:
    """aten::_scaled_dot_product_flash_attention_for_cpu_backward: dq, dk and dv."""
    call, backend = _call(query, key, value, dropout_p, is_causal, 0, attn_mask, scale)
    return tuple(map(_length_first, _gradients(grad_out, out, logsumexp, call, backend)))


def cuda_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> Results:
    """aten::_scaled_dot_product_flash_attention: out, lse [B, H, L] and what backward needs.

    The random state, which backward hands in again, is seed and offset of this package's Philox.
    """
    if return_debug_mask:
        raise NotServedError("return_debug_mask asks for a mask that no kernel of ours writes")
    call, backend = _call(query, key, value, dropout_p, is_causal, None, None, scale)
    state = torch.zeros(2, dtype=torch.int64, device=query.device)
    if dropout_p:
        state.random_(0, 1 << 32)
        call = call._replace(rng_state=state)
    out, lse = attend(call, backend, needs_grad=False)
    unused = torch.zeros((), dtype=torch.uint64, device=query.device)
    lengths = (query.shape[2], key.shape[2])
    return out, lse, None, None, *lengths, state.view(torch.uint64), unused, query.new_empty(0)


def cuda_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> Results:
    """aten::_scaled_dot_product_flash_attention_backward: dq, dk and dv."""
    call, backend = _call(query, key, value, dropout_p, is_causal, None, None, scale)
    if dropout_p:
        call = call._replace(rng_state=philox_seed.view(torch.int64))
    return _gradients(grad_out, out, logsumexp, call, backend)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    offset: int | None,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Call, str]:
    """The call and the name of its backend; `offset` is that of the causal diagonal.

    Raises:
        NotServedError: no fused kernel can do it.
    """
    options: dict[str, Any] = {"band": Band.causal(offset) if is_causal else Band.full()}
    if attn_mask is not None:
        if is_causal:
            raise NotServedError("attn_mask and is_causal exclude each other")
        options = mask_options(attn_mask, query, key)
    problem, call = prepared(query, key, value, scale=scale, dropout_p=dropout_p, **options)
    backend = choose(problem)
    if log.enabled:
        log.served(DOOR, problem, backend)
    return call, backend


def _gradients(
    grad_out: Tensor, out: Tensor, logsumexp: Tensor, call: Call, backend: str
) -> Results:
    """dq, dk and dv."""
    grads = backward_op(*join_backward((grad_out, None), call, (out, logsumexp), (backend, False)))
    return tuple(grads[:3])


def _length_first(tensor: Tensor) -> Tensor:
    """[batch, heads, length, ...] as torch promises it: in memory, length comes before heads."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
