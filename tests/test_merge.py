"""merge_attention: attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

import math

import pytest
import torch
from attention_case import AttentionCase
from places import CPU_BACKENDS
from torch import Tensor

from fused_attention import attention, attention_varlen, merge_attention
from fused_attention.reference import attention_reference

every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def attend_in_parts(
    query: Tensor, key: Tensor, value: Tensor, cuts: tuple[int, ...], backend: str
) -> tuple[Tensor, Tensor]:
    """Attention over the keys in pieces, the pieces merged one after the other."""
    out = lse = None
    for begin, end in zip((0, *cuts), (*cuts, key.shape[2]), strict=True):
        part = attention(
            query,
            key[:, :, begin:end],
            value[:, :, begin:end],
            return_lse=True,
            backend=backend,
        )
        out, lse = part if out is None or lse is None else merge_attention(out, lse, *part)
    assert out is not None and lse is not None
    return out, lse


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    inputs = AttentionCase("", heads_q=4, heads_kv=2, len_q=7, len_k=20, dtype=dtype).make()
    return tuple(inputs.require_gradients().values())  # type: ignore[return-value]


def scalar(out: Tensor, lse: Tensor) -> Tensor:
    return out.square().sum() + lse.sin().sum()


@every_backend
@pytest.mark.parametrize("cuts", [(10,), (1,), (3, 11), (0, 20)], ids=str)
def test_parts_are_the_whole(cuts: tuple[int, ...], backend: str) -> None:
    """Values and gradients; a cut at 0 or 20 makes a part without keys."""
    tensors = operands()
    whole = attention_reference(*tensors)
    parts = attend_in_parts(*tensors, cuts, backend)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        torch.autograd.grad(scalar(*parts), tensors), torch.autograd.grad(scalar(*whole), tensors)
    )


@every_backend
@pytest.mark.parametrize("cuts", [(10,), (0, 20)], ids=str)
def test_double_backward_of_parts(cuts: tuple[int, ...], backend: str) -> None:
    def second(out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(scalar(out, lse), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    tensors = operands()
    found = second(*attend_in_parts(*tensors, cuts, backend))
    torch.testing.assert_close(found, second(*attention_reference(*tensors)))


@every_backend
def test_packed_batches(backend: str) -> None:
    """Sequence 0 has keys on both sides, 1 on the left only, 2 on none."""
    torch.manual_seed(0)
    query = torch.randn(6, 2, 4, dtype=torch.float64)
    left, right = torch.randn(5, 2, 4).double(), torch.randn(3, 2, 4).double()
    ends_q, ends_left, ends_right = (
        torch.tensor(e) for e in ([0, 2, 5, 6], [0, 2, 5, 5], [0, 3, 3, 3])
    )
    out, lse = merge_attention(
        *attention_varlen(query, left, left, ends_q, ends_left, return_lse=True, backend=backend),
        *attention_varlen(
            query, right, right, ends_q, ends_right, return_lse=True, backend=backend
        ),
    )
    all_keys = torch.cat([left[:2], right, left[2:]])
    whole = attention_reference(
        query, all_keys, all_keys, cu_seqlens_q=ends_q, cu_seqlens_k=torch.tensor([0, 5, 8, 8])
    )
    torch.testing.assert_close((out, lse), whole)
    assert (out[5] == 0).all() and (lse[:, 5] == -math.inf).all()


ROWS = torch.tensor([[[0.5, -math.inf, 1.5, -math.inf]], [[-0.3, 0.2, -math.inf, -math.inf]]])


def merge_inputs() -> list[Tensor]:
    """Rows alive on both sides, right, left, none; out is 0 where lse is -inf."""
    tensors = []
    for lse in ROWS.double().unsqueeze(1):
        out = torch.randn(1, 1, 4, 3, dtype=torch.float64)
        tensors += [out.masked_fill(lse[..., None] == -math.inf, 0.0), lse]
    return [tensor.requires_grad_() for tensor in tensors]


def test_rows_of_one_side_or_none() -> None:
    out1, lse1, out2, lse2 = merge_inputs()
    out, lse = merge_attention(out1, lse1, out2, lse2)
    torch.testing.assert_close(lse, torch.logaddexp(lse1, lse2))
    assert torch.equal(out[:, :, 1], out2[:, :, 1]) and torch.equal(out[:, :, 2], out1[:, :, 2])
    assert (out[:, :, 3] == 0).all() and lse[0, 0, 3] == -math.inf


def test_no_gradient_is_ever_nan() -> None:
    tensors = merge_inputs()
    out, lse = merge_attention(*tensors)
    alive = lse.masked_fill(lse == -math.inf, 0.0)
    first = torch.autograd.grad(scalar(out, alive), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    assert all(grad.isfinite().all() for grad in (*first, *second))


def test_far_apart_parts_do_not_overflow() -> None:
    out = torch.ones(1, 1, 2, 3)
    lse1, lse2 = torch.tensor([[[1e30, -200.0]]]), torch.tensor([[[-1e30, 200.0]]])
    merged, lse = merge_attention(out, lse1, -out, lse2)
    assert torch.equal(lse, torch.tensor([[[1e30, 200.0]]]))
    assert torch.equal(merged, torch.tensor([1.0, -1.0])[:, None].expand(2, 3)[None, None])


def test_commutes_and_associates() -> None:
    parts = [(torch.randn(2, 3, 5, 4).double(), torch.randn(2, 3, 5).double()) for _ in range(3)]
    a, b, c = parts
    torch.testing.assert_close(merge_attention(*a, *b), merge_attention(*b, *a))
    left = merge_attention(*merge_attention(*a, *b), *c)
    torch.testing.assert_close(left, merge_attention(*a, *merge_attention(*b, *c)))


def test_keeps_the_finer_dtype() -> None:
    """A ring keeps its running result in fp32 and merges bf16 parts into it."""
    out, lse = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2)
    assert merge_attention(out.bfloat16(), lse, out.bfloat16(), lse)[0].dtype == torch.bfloat16
    assert merge_attention(out, lse, out.bfloat16(), lse)[0].dtype == torch.float32


OUT, LSE = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5)

WRONG = {
    "out1: must be a torch.Tensor, got NoneType": (None, LSE, OUT, LSE),
    "lse2: must be floating point, got torch.int64": (OUT, LSE, OUT, LSE.long()),
    "out1: must be 4-D [B, H, L, D] or packed [T, H, D], got shape (3, 5)": (
        OUT[0, :, :, 0],
        LSE,
        OUT,
        LSE,
    ),
    "out2: must have out1's shape (2, 3, 5, 4), got (2, 3, 4, 4)": (OUT, LSE, OUT[:, :, 1:], LSE),
    "lse1: must have shape (2, 3, 5), one number per row of out1, got (2, 3, 5, 1)": (
        OUT,
        LSE[..., None],
        OUT,
        LSE,
    ),
    "lse2: must have shape (3, 2), one number per row of out1, got (2, 3)": (
        OUT[:, :, 0],
        LSE[..., 0].t(),
        OUT[:, :, 0],
        LSE[..., 0],
    ),
    "lse2: must be on out1's device cpu, got meta": (OUT, LSE, OUT, LSE.to("meta")),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        merge_attention(*WRONG[message])  # type: ignore[arg-type]
    assert str(caught.value) == message
