"""What the arguments of one attention call must be; every message is "argument: rule, got value".

Shape, dtype, device and layout are checked on metadata alone, so torch.compile traces them and
fake tensors pass. `check_values` needs the numbers and runs inside the operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from fused_attention.masks import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fused_attention.backends.call import Call

FLOATING_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGER_DTYPES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
MAX_BATCH_HEADS = 1 << 31  # batch * heads is one signed 32-bit word of the dropout counter
MAX_DROPOUT = 1 - 2.0**-17  # from here on the 16-bit threshold rounds to 65536: all is dropped
_INFINITY = float("inf")
_NAMES = ("query", "key", "value")  # what the caller calls them
_LAYOUTS = {3: "packed [total, heads, dim]", 4: "[batch, heads, length, dim]"}


def wrong_value(argument: str, rule: str, got: object) -> NoReturn:
    raise ValueError(f"{argument}: {rule}, got {got}")


def wrong_type(argument: str, rule: str, got: object) -> NoReturn:
    raise TypeError(f"{argument}: {rule}, got {got}")


def check_tensor(argument: str, tensor: Any) -> None:
    """Refuse what is no strided tensor: arrays, nested, sparse and quantised tensors."""
    if not isinstance(tensor, Tensor):
        wrong_type(argument, "must be a torch.Tensor", type(tensor).__name__)
    if tensor.is_nested:
        rule = "must not be nested (attention_varlen takes packed batches)"
        wrong_type(argument, rule, "a nested tensor")
    if tensor.layout is not torch.strided:
        wrong_type(argument, "must be a strided tensor", f"layout {tensor.layout}")


def check_operands(
    query: Any,
    key: Any,
    value: Any,
    rank: int,
    names: Sequence[str] = _NAMES,
    layouts: Mapping[int, str] = _LAYOUTS,
) -> None:
    """Type, rank, dtype, device and last stride of query, key and value."""
    query_name, key_name, value_name = names
    check_tensor(query_name, query)
    check_tensor(key_name, key)
    check_tensor(value_name, value)
    dtype, device = query.dtype, query.device
    if dtype not in FLOATING_DTYPES:
        wrong_type(query_name, "must be float64, float32, bfloat16 or float16", dtype)
    for name, tensor in ((key_name, key), (value_name, value)):
        if tensor.dtype != dtype:
            wrong_type(name, f"must have {query_name}'s dtype {dtype}", tensor.dtype)
        if tensor.device != device:
            wrong_value(name, f"must be on {query_name}'s device {device}", tensor.device)
    for argument, tensor in zip(names, (query, key, value), strict=True):
        if tensor.dim() != rank:
            rule = f"must be {rank}-D {layouts[rank]}"
            wrong_value(argument, rule, f"shape {shape_of(tensor)}")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel():
            got = f"stride {tensor.stride(-1)}"
            wrong_value(argument, "must be contiguous in its last dimension", got)


def check_heads(
    batch: int, heads_q: int, heads_k: int, heads_v: int, names: Sequence[str] = _NAMES
) -> None:
    """Grouped heads: key and value alike, dividing the query's."""
    if heads_v != heads_k:
        wrong_value(names[2], f"must have {names[1]}'s {heads_k} heads", heads_v)
    if heads_q < 1:
        wrong_value(names[0], "must have at least 1 head", heads_q)
    if heads_k < 1 or heads_q % heads_k != 0:
        wrong_value(names[1], f"its number of heads must divide {names[0]}'s {heads_q}", heads_k)
    if batch * heads_q >= MAX_BATCH_HEADS:
        wrong_value(names[0], "batch * heads must be below 2**31", batch * heads_q)


def check_dims(
    len_q: int,
    len_k: int,
    len_v: int,
    dim_q: int,
    dim_k: int,
    dim_v: int,
    names: Sequence[str] = _NAMES,
) -> None:
    """Lengths (packed: totals) and head dimensions."""
    query, key, value = names
    if len_v != len_k:
        wrong_value(value, f"must have {key}'s length {len_k}", len_v)
    if dim_k != dim_q:
        wrong_value(key, f"must have {query}'s head_dim {dim_q}", dim_k)
    if dim_q < 1:
        wrong_value(query, "head_dim must be at least 1", dim_q)
    if dim_v < 1:
        wrong_value(value, "head_dim must be at least 1", dim_v)
    if len_q >= UNBOUNDED:
        wrong_value(query, "length must be below 2**30", len_q)
    if len_k >= UNBOUNDED:
        wrong_value(key, "length must be below 2**30", len_k)


def check_number(argument: str, value: Any) -> float:
    """`value` as a float; a bool, a string or a tensor is no number here."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        wrong_type(argument, "must be a number", f"{type(value).__name__} {value!r}")
    return float(value)


def check_scalars(scale: Any, softcap: Any, dropout_p: Any) -> tuple[float, float, float]:
    """Ranges of the three numbers; NaN fails every comparison."""
    if type(scale) is not float:
        scale = check_number("scale", scale)
    if type(softcap) is not float:
        softcap = check_number("softcap", softcap)
    if type(dropout_p) is not float:
        dropout_p = check_number("dropout_p", dropout_p)
    if not -_INFINITY < scale < _INFINITY:
        wrong_value("scale", "must be finite", scale)
    if not 0.0 <= softcap < _INFINITY:
        wrong_value("softcap", "must be finite and at least 0 (0 is none)", softcap)
    if not 0.0 <= dropout_p < MAX_DROPOUT:
        wrong_value("dropout_p", "must be in [0, 1 - 2**-17)", dropout_p)
    return scale, softcap, dropout_p


def check_bias(
    bias: Any, device: torch.device, batch: int, heads: int, len_q: int, len_k: int
) -> None:
    """Additive bias [batch|1, heads|1, len_q|1, len_k|1], any floating dtype and strides."""
    check_tensor("bias", bias)
    if bias.dtype not in FLOATING_DTYPES:
        rule = "must be floating point (masks are a Band, kv_lengths or -inf in the bias)"
        wrong_type("bias", rule, bias.dtype)
    if bias.device != device:
        wrong_value("bias", f"must be on query's device {device}", bias.device)
    full = (batch, heads, len_q, len_k)
    if bias.dim() != 4 or any(
        got != 1 and got != want for got, want in zip(bias.shape, full, strict=True)
    ):
        rule = f"must be 4-D and broadcast to [batch, heads, len_q, len_k] = {list(full)}"
        wrong_value("bias", rule, f"shape {shape_of(bias)}")


def check_alibi(slopes: Any, device: torch.device, batch: int, heads: int) -> None:
    """Slopes [heads] or [batch, heads]; they are constants of a model."""
    check_tensor("alibi_slopes", slopes)
    if slopes.dtype not in FLOATING_DTYPES:
        wrong_type("alibi_slopes", "must be floating point", slopes.dtype)
    if slopes.device != device:
        wrong_value("alibi_slopes", f"must be on query's device {device}", slopes.device)
    shape = shape_of(slopes)
    if shape != (heads,) and shape != (batch, heads):
        rule = f"must have shape [heads] = [{heads}] or [batch, heads] = [{batch}, {heads}]"
        wrong_value("alibi_slopes", rule, f"shape {shape}")
    if slopes.requires_grad:
        rule = "must not require grad (no gradient is computed; a learned slope is a bias)"
        wrong_value("alibi_slopes", rule, "requires_grad=True")


def check_sinks(sinks: Any, device: torch.device, heads: int) -> None:
    """One logit per query head that takes part in the softmax's denominator only."""
    check_tensor("sinks", sinks)
    if sinks.dtype not in FLOATING_DTYPES:
        wrong_type("sinks", "must be floating point", sinks.dtype)
    if sinks.device != device:
        wrong_value("sinks", f"must be on query's device {device}", sinks.device)
    if shape_of(sinks) != (heads,):
        wrong_value("sinks", f"must have shape [heads] = [{heads}]", f"shape {shape_of(sinks)}")


def check_integers(argument: str, tensor: Any, device: torch.device, size: int | None) -> None:
    """A 1-D integer tensor of `size` numbers (None: at least one)."""
    check_tensor(argument, tensor)
    if tensor.dtype not in INTEGER_DTYPES:
        wrong_type(argument, "must be an integer tensor", tensor.dtype)
    if tensor.device != device:
        wrong_value(argument, f"must be on query's device {device}", tensor.device)
    if tensor.dim() != 1:
        wrong_value(argument, "must be 1-D", f"shape {shape_of(tensor)}")
    if size is None and tensor.shape[0] < 1:
        wrong_value(argument, "must have batch + 1 entries, the first of them 0", "none")
    if size is not None and tensor.shape[0] != size:
        wrong_value(argument, f"must have {size} entries", tensor.shape[0])


def check_unsigned(argument: str, value: Any, bits: int) -> None:
    """An int of so many bits; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        wrong_type(argument, "must be an int", f"{type(value).__name__} {value!r}")
    if not 0 <= value < 1 << bits:
        wrong_value(argument, f"must be in [0, 2**{bits})", value)


def check_dropout_state(seed: Any, offset: Any, device: torch.device) -> None:
    """Seed and offset as two ints, as one int64 tensor [2], or none of them."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or shape_of(seed) != (2,):
            got = f"{seed.dtype} {shape_of(seed)}"
            wrong_value("dropout_seed", "as a tensor must be int64 [2] (seed, offset)", got)
        if seed.device != device:
            wrong_value("dropout_seed", f"must be on query's device {device}", seed.device)
    elif seed is not None:
        check_unsigned("dropout_seed", seed, 63)
        check_unsigned("dropout_offset", offset, 32)
    if (seed is None or isinstance(seed, Tensor)) and offset != 0:
        wrong_value("dropout_offset", "needs a dropout_seed that is an int", offset)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_values(call: Call) -> None:
    """Check the numbers in the integer tensors of a call on the CPU.

    On an accelerator reading them would stall the stream, so there they are trusted.

    Raises:
        ValueError: kv_lengths, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            band_offsets or the dropout offset is out of range.
    """
    if call.query.device.type != "cpu":
        return
    if call.kv_lengths is not None:
        len_k = call.key.shape[-2]
        rule = f"must be in [0, {len_k}] ({len_k} is key's length)"
        check_range("kv_lengths", call.kv_lengths, 0, len_k, rule)
    if call.cu_seqlens_q is not None:
        _check_cu_seqlens("q", call.cu_seqlens_q, call.query.shape[0], call.max_seqlen_q)
    if call.cu_seqlens_k is not None:
        _check_cu_seqlens("k", call.cu_seqlens_k, call.key.shape[0], call.max_seqlen_k)
    if call.band_offsets is not None:
        rule = "must be in [-2**30, 2**30]"
        check_range("band_offsets", call.band_offsets, -UNBOUNDED, UNBOUNDED, rule)
    if call.rng_state is not None:
        offset = int(call.rng_state[1])
        if not 0 <= offset < 1 << 32:
            wrong_value("dropout_offset", "must be in [0, 2**32)", offset)


def check_range(argument: str, tensor: Tensor, low: int, high: int, rule: str) -> None:
    """Numbers of an int32 tensor in [low, high]; reads them."""
    for index, number in enumerate(tensor.tolist()):
        if not low <= number <= high:
            # int64 was cut to just beyond this bound, see prepare.py.
            got = number if -UNBOUNDED <= number <= UNBOUNDED else "beyond 2**30"
            wrong_value(argument, rule, f"{got} at index {index}")


def _check_cu_seqlens(side: str, cu_seqlens: Tensor, total: int, max_seqlen: int) -> None:
    argument = f"cu_seqlens_{side}"
    ends = cu_seqlens.tolist()
    if ends[0] != 0:
        wrong_value(argument, "must start at 0", ends[0])
    for index, (begin, end) in enumerate(zip(ends, ends[1:], strict=False)):
        if end < begin:
            wrong_value(argument, "must never decrease", f"{end} after {begin} at {index + 1}")
        if end - begin > max_seqlen:
            rule = f"must be at least the longest sequence, {end - begin} (sequence {index})"
            wrong_value(f"max_seqlen_{side}", rule, max_seqlen)
    if ends[-1] > total:
        got = ends[-1] if ends[-1] <= UNBOUNDED else "beyond 2**30"
        wrong_value(argument, f"must end within the {total} rows of the tensor", got)
