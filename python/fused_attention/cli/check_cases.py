"""The problems that `fused-attention check` compares: one for each feature, all of them small."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fused_attention import Band, attention, attention_varlen
from fused_attention.reference import attention_reference

SEED, OFFSET = 20, 26  # of the dropout


@dataclass(frozen=True)
class CheckCase:
    """One attention problem without its numbers."""

    name: str
    batch: int = 2
    heads_q: int = 2
    heads_kv: int = 2
    len_q: int = 72
    len_k: int = 72
    head_dim: int = 32
    value_dim: int = 32
    features: frozenset[str] = frozenset()  # bias, alibi, sinks, dropout, lengths, packed, strided
    options: dict[str, Any] = field(default_factory=dict)  # band, scale, softcap


def _case(name: str, *features: str, **values: Any) -> CheckCase:
    known = CheckCase.__dataclass_fields__
    fields = {key: values.pop(key) for key in list(values) if key in known}
    return CheckCase(name, features=frozenset(features), options=values, **fields)


CHECK_CASES: tuple[CheckCase, ...] = (
    _case("full"),
    _case("causal", band=Band.causal()),
    _case("causal, more keys than queries", band=Band.causal(), len_q=20, len_k=90),
    _case("causal, more queries than keys", band=Band.causal(), len_q=90, len_k=20),
    _case("causal, top-left", band=Band.causal(offset=0), len_q=20, len_k=90),
    _case("sliding window", band=Band.sliding(17), len_q=150, len_k=150),
    _case("window on both sides", band=Band.window(9, 4)),
    _case("one query (decoding)", band=Band.causal(), len_q=1, len_k=200),
    _case("grouped heads", heads_q=6, band=Band.causal()),
    _case("one key-value head", heads_q=4, heads_kv=1),
    _case("head dimension 128", head_dim=128, value_dim=128),
    _case("odd head dimensions", head_dim=40, value_dim=72, len_q=61, len_k=83),
    _case("scale", scale=0.4),
    _case("softcap", softcap=3.0),
    _case("additive bias", "bias"),
    _case("ALiBi", "alibi", band=Band.causal()),
    _case("sinks", "sinks", band=Band.sliding(9)),
    _case("dropout", "dropout"),
    _case("padded keys", "lengths"),
    _case("packed sequences", "packed", band=Band.causal()),
    _case("[B, L, H, D] views", "strided"),
    _case(
        "everything at once",
        *("bias", "alibi", "sinks", "dropout", "lengths", "strided"),
        heads_q=4,
        band=Band.window(30, 5),
        softcap=5.0,
        scale=0.3,
        value_dim=24,
    ),
)


@dataclass(frozen=True)
class CheckInputs:
    """Tensors of one case: what is differentiated, what is not, and the gradients that come in."""

    leaves: dict[str, Tensor]  # query, key, value, and with these features bias and sinks
    constants: dict[str, Any]
    dropout_p: float
    grad_out: Tensor
    grad_lse: Tensor

    def on(self, device: str) -> CheckInputs:
        """The same numbers on another device, detached from these."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(
            self,
            leaves={n: move(t.detach()).requires_grad_() for n, t in self.leaves.items()},
            constants={name: move(value) for name, value in self.constants.items()},
            grad_out=move(self.grad_out),
            grad_lse=move(self.grad_lse),
        )

    def to(self, dtype: torch.dtype) -> CheckInputs:
        """The same numbers in another dtype, detached from these."""
        leaves = {
            name: tensor.detach().to(dtype).requires_grad_() for name, tensor in self.leaves.items()
        }
        return replace(self, leaves=leaves)


def make_inputs(case: CheckCase, dtype: torch.dtype, seed: int) -> CheckInputs:
    """Standard normal tensors for a case; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def operand(heads: int, length: int, dim: int) -> Tensor:
        if "packed" in case.features:
            return normal(case.batch * length, heads, dim)
        if "strided" in case.features:
            return normal(case.batch, length, heads, dim).transpose(1, 2)
        return normal(case.batch, heads, length, dim)

    leaves = {
        "query": operand(case.heads_q, case.len_q, case.head_dim),
        "key": operand(case.heads_kv, case.len_k, case.head_dim),
        "value": operand(case.heads_kv, case.len_k, case.value_dim),
    }
    constants = dict(case.options)
    if "bias" in case.features:
        leaves["bias"] = normal(1, case.heads_q, case.len_q, case.len_k)
    if "sinks" in case.features:
        leaves["sinks"] = normal(case.heads_q)
    if "alibi" in case.features:
        constants["alibi_slopes"] = torch.rand(case.heads_q, generator=generator)
    if "lengths" in case.features:
        constants["kv_lengths"] = torch.tensor([case.len_k // 2 + 1, case.len_k])[: case.batch]
    if "packed" in case.features:
        ends = [0, case.len_q // 3, case.batch * case.len_q]
        constants["cu_seqlens_q"] = constants["cu_seqlens_k"] = torch.tensor(ends)
    rows = leaves["query"].shape[:-1]
    for tensor in leaves.values():
        tensor.requires_grad_()
    return CheckInputs(
        leaves,
        constants,
        dropout_p=0.2 if "dropout" in case.features else 0.0,
        grad_out=normal(*rows, case.value_dim),
        grad_lse=normal(*(reversed(rows) if len(rows) == 2 else rows)),
    )


def run_backend(inputs: CheckInputs, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """out, lse and the gradients of one backend, computed on `device`, returned on the CPU.

    Raises:
        NotImplementedError: the backend cannot run this.
    """
    inputs = inputs if device == "cpu" else inputs.on(device)
    call: Any = attention_varlen if "cu_seqlens_q" in inputs.constants else attention
    out, lse = call(
        **inputs.leaves,
        **inputs.constants,
        dropout_p=inputs.dropout_p,
        dropout_seed=SEED,
        dropout_offset=OFFSET,
        return_lse=True,
        backend=backend,
    )
    results = _with_gradients(out, lse, inputs)
    return {name: result.cpu() for name, result in results.items()}


def run_reference(inputs: CheckInputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same from the plain formula, computed in `dtype`."""
    converted = inputs.to(dtype)
    out, lse = attention_reference(
        **converted.leaves,
        **converted.constants,
        dropout_p=inputs.dropout_p,
        rng_state=torch.tensor([SEED, OFFSET]),
        compute_dtype=dtype,
    )
    return _with_gradients(out, lse, converted)


def _with_gradients(out: Tensor, lse: Tensor, inputs: CheckInputs) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        (out, lse),
        tuple(inputs.leaves.values()),
        (inputs.grad_out.to(out.dtype), inputs.grad_lse.to(lse.dtype)),
    )
    names = (f"gradient of {name}" for name in inputs.leaves)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, gradients, strict=True))}
