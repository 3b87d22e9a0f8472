"""The reference where rows are short: padding, rows that see no key, packed batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_inputs import AttentionInputs
from budget import assert_same
from shapes import CASES, AttentionCase
from torch import Tensor

from fused_attention.masks import Band
from fused_attention.reference import attention_reference

PADDED = [case for case in CASES if case.kv_lengths is not None]
PACKED = [case for case in CASES if case.packed]


def exact_inputs(name: str) -> AttentionInputs:
    return next(c for c in CASES if c.name == name).with_dtype(torch.float64).make()


class TestPadding:
    @pytest.mark.parametrize("case", PADDED, ids=str)
    def test_what_lies_beyond_a_length_never_leaks(self, case: AttentionCase) -> None:
        inputs = case.with_dtype(torch.float64).make()
        assert inputs.key.isnan().any()
        leaves = inputs.require_gradients()
        out, lse = inputs.reference()
        clean = replace(inputs, key=inputs.key.nan_to_num(3.0), value=inputs.value.nan_to_num(3.0))
        assert torch.equal(out, clean.reference()[0]) and torch.equal(lse, clean.reference()[1])
        assert out.isfinite().all()
        for gradient in torch.autograd.grad(out.sum(), list(leaves.values())):
            assert gradient.isfinite().all()

    def test_kv_lengths_equal_shorter_tensors(self) -> None:
        inputs = replace(exact_inputs("kv_lengths"), alibi_slopes=torch.tensor([0.5, 0.1]))
        out, lse = inputs.reference(band=Band.window(20, 7, offset=3))
        assert inputs.kv_lengths is not None
        for b, length in enumerate(inputs.kv_lengths.tolist()):
            query, key, value = (x[b : b + 1] for x in (inputs.query, inputs.key, inputs.value))
            own = attention_reference(
                query, key[:, :, :length], value[:, :, :length],
                band=Band.window(20, 7, offset=3), alibi_slopes=inputs.alibi_slopes,
            )  # fmt: skip
            assert_same((out[b : b + 1], lse[b : b + 1]), own)


class TestDeadRows:
    @pytest.mark.parametrize("name", ["band_above_all", "kv_lengths_all_zero", "bias_hides_all"])
    def test_give_zero_and_minus_infinity(self, name: str) -> None:
        out, lse = exact_inputs(name).reference()
        assert out.eq(0).all() and lse.eq(-torch.inf).all()

    @pytest.mark.parametrize("name", ["band_above_all", "kv_lengths_all_zero", "no_keys"])
    def test_give_their_sink(self, name: str) -> None:
        sinks = torch.tensor([0.5, -torch.inf], dtype=torch.float64)
        out, lse = exact_inputs(name).reference(sinks=sinks)
        assert out.eq(0).all()
        assert torch.equal(lse, sinks[:, None].expand_as(lse))


class TestPacked:
    @pytest.mark.parametrize("case", PACKED, ids=str)
    def test_equals_a_padded_dense_batch(self, case: AttentionCase) -> None:
        """The same sequences, padded to one length, the diagonals set by hand."""
        inputs = case.with_dtype(torch.float64).make()
        assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
        lens_q, lens_k = inputs.cu_seqlens_q.diff(), inputs.cu_seqlens_k.diff()
        offsets = inputs.band_offsets
        if offsets is None and case.band.offset is None:
            offsets = lens_k - lens_q
        options = inputs.reference_options
        del options["cu_seqlens_q"], options["cu_seqlens_k"]
        options |= {"kv_lengths": lens_k, "band_offsets": offsets}
        dense, dense_lse = attention_reference(
            padded(inputs.query, lens_q),
            padded(inputs.key, lens_k),
            padded(inputs.value, lens_k),
            **options,
        )
        out, lse = inputs.reference()
        for b, (end, length) in enumerate(zip(inputs.cu_seqlens_q[1:], lens_q, strict=True)):
            rows = slice(int(end - length), int(end))
            assert_same(out[rows].transpose(0, 1), dense[b, :, :length])
            assert_same(lse[:, rows], dense_lse[b, :, :length])

    @pytest.mark.parametrize("case", PACKED, ids=str)
    def test_writes_the_rows_beyond_the_last_sequence(self, case: AttentionCase) -> None:
        inputs = case.make()
        out, lse = inputs.reference()
        used = sum(case.seq_lens_q or ())
        assert (len(out), len(out) - used) == (len(inputs.query), case.trailing)
        assert out[used:].eq(0).all() and lse[:, used:].eq(-torch.inf).all()

    def test_cu_seqlens_k_defaults_to_cu_seqlens_q(self) -> None:
        inputs = exact_inputs("packed")
        out, _ = inputs.reference(cu_seqlens_k=None, band=Band.causal())
        assert torch.equal(out, inputs.reference(band=Band.causal())[0])


def padded(packed: Tensor, lens: Tensor) -> Tensor:
    """[T, H, D] as [B, H, max length, D]; ones fill up, which must not matter."""
    sequences = torch.split(packed[: int(lens.sum())], lens.tolist())
    dense = packed.new_ones(len(lens), int(max([*lens, 0])), *packed.shape[1:])
    for row, sequence in zip(dense, sequences, strict=True):
        row[: len(sequence)] = sequence
    return dense.transpose(1, 2)
