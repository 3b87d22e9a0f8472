"""A scope in which torch's attention functions are ours.

Three names of torch are replaced while a scope is open: F.scaled_dot_product_attention,
F.multi_head_attention_forward (which nn.MultiheadAttention and the Transformer layers call) and
the switch of their inference path, which would go past both. Dynamo reads these names as eager
code does and guards on them, so compiled code follows the scope too, inside and around it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fused_attention import log
from fused_attention.integrations.mha_call import attend_multi_head
from fused_attention.integrations.sdpa_call import ForeignError, NotServedError, attend

Result = TypeVar("Result")
Weighted = tuple[Tensor, Tensor | None]  # out and the attention weights

# Not what the names hold now: that may be another library's function, which may call ours.
_TORCHS: Callable[..., Tensor] = torch._C._nn.scaled_dot_product_attention
_TORCHS_MULTI_HEAD: Callable[..., Weighted] = F.multi_head_attention_forward


class sdpa(ContextDecorator):  # noqa: N801
    """`with sdpa():` torch's scaled_dot_product_attention runs on this package's kernels.

    Everything that calls F.scaled_dot_product_attention at run time is served: models, library
    code, nn.MultiheadAttention (with need_weights=False) and the nn.Transformer layers in training
    and inference, under torch.compile too. Results and errors are torch's; what the kernels cannot
    do goes to torch's own function (FUSED_ATTENTION_LOG=1 says what and why).

    The scope is the process's, like that of torch.nn.attention.sdpa_kernel: other threads are in
    it as long as any thread is. It may be nested and entered by several threads, and it decorates
    functions. A backward that recomputes (torch.utils.checkpoint) has to run inside as well.
    """

    def __enter__(self) -> sdpa:
        _scope.change(depth=1)
        return self

    def __exit__(self, *exception: object) -> None:
        _scope.change(depth=-1)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What F.scaled_dot_product_attention is inside of the scope, for the same arguments."""
    args = (query, key, value, attn_mask, dropout_p, is_causal)
    if _scope.open:
        try:
            return attend(*args, scale, enable_gqa)
        except NotServedError as reason:
            _report("sdpa", reason)
            if isinstance(reason, ForeignError):
                return _outside(_TORCHS, *args, scale=scale, enable_gqa=enable_gqa)
    return _TORCHS(*args, scale=scale, enable_gqa=enable_gqa)


def multi_head_attention_forward(*args: Any, **kwargs: Any) -> Weighted:
    """What F.multi_head_attention_forward is inside of the scope, for the same arguments."""
    if _scope.open:
        try:
            return attend_multi_head(*args, **kwargs), None
        except NotServedError as reason:
            _report("nn.MultiheadAttention", reason)
            if isinstance(reason, ForeignError):
                return _outside(_TORCHS_MULTI_HEAD, *args, **kwargs)
    return _TORCHS_MULTI_HEAD(*args, **kwargs)


def _report(door: str, reason: NotServedError) -> None:
    if log.enabled:
        # Dynamo cannot print the sizes that may stand in the reason.
        compiling = torch.compiler.is_compiling()
        log.served(door, None, "eager code says why" if compiling else str(reason))


class _Scope:
    """How often the scope is open, and what the replaced names were before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.open = False  # depth > 0, for guards that nesting does not break
        self.pauses = 0
        self.installed = False
        self.before: tuple[Any, Any, bool] = (_TORCHS, _TORCHS_MULTI_HEAD, True)

    def change(self, depth: int = 0, pauses: int = 0) -> None:
        if torch.compiler.is_compiling():  # one trace at a time, and Dynamo knows no locks
            self._change(depth, pauses)
        else:
            with self.lock:
                self._change(depth, pauses)

    def _change(self, depth: int, pauses: int) -> None:
        self.depth += depth
        self.open = self.depth > 0
        self.pauses += pauses
        wanted = self.open and self.pauses == 0
        if wanted and not self.installed:
            path = torch.backends.mha._is_fastpath_enabled
            self.before = (F.scaled_dot_product_attention, F.multi_head_attention_forward, path)
            F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore
            F.multi_head_attention_forward = multi_head_attention_forward
            torch.backends.mha._is_fastpath_enabled = False
        elif self.installed and not wanted:
            # Whoever replaced a name after us keeps it: our functions only pass calls on then.
            if F.scaled_dot_product_attention is scaled_dot_product_attention:
                F.scaled_dot_product_attention = self.before[0]
            if F.multi_head_attention_forward is multi_head_attention_forward:
                F.multi_head_attention_forward = self.before[1]
            torch.backends.mha._is_fastpath_enabled = self.before[2]
        self.installed = wanted


_scope = _Scope()


def _outside(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call torch's function with the names as they were.

    Tensor subclasses tell the function that they stand in for by comparing it with these names.
    """
    _scope.change(pauses=1)
    try:
        return function(*args, **kwargs)
    finally:
        _scope.change(pauses=-1)
