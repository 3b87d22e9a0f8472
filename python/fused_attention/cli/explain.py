"""fused-attention explain: which backend a call would use, and why not the others."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from fused_attention import arguments as types
from fused_attention import dispatch
from fused_attention import explain as explain_call
from fused_attention.cli.output import Output, UsageError
from fused_attention.dispatch import Explanation

BIAS_HELP = "with an additive bias; SHAPE like B,H,Lq,Lk, 1 where it broadcasts (default: in full)"


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "explain",
        "tell which backend a call would use, and why not the others",
        "fused-attention explain --shape 2,32,1,128 --kv-heads 8 --len-k 4096 --dtype bf16",
        run,
    )
    problem = parser.add_argument_group("the call")
    problem.add_argument(
        "--shape", type=types.shape, required=True, metavar="B,Hq,Lq,D", help="shape of the query"
    )
    number = types.positive_int
    problem.add_argument("--kv-heads", type=number, help="key and value heads (default: Hq)")
    problem.add_argument("--len-k", type=number, help="keys (default: Lq)")
    problem.add_argument("--value-dim", type=number, help="width of the values (default: D)")
    problem.add_argument("--dtype", choices=types.DTYPES, default="fp32", help="default: fp32")
    problem.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    problem.add_argument("--causal", action="store_true", help="no query sees a later key")
    problem.add_argument(
        "--window", type=types.window, metavar="L,R", help='keys seen before and after, or "none"'
    )
    problem.add_argument("--scale", type=float, help="default: 1 / sqrt(D)")
    problem.add_argument("--softcap", type=float, default=0.0, help="cap * tanh(score / cap)")
    problem.add_argument("--bias", nargs="?", const="full", metavar="SHAPE", help=BIAS_HELP)
    problem.add_argument("--alibi", action="store_true", help="with ALiBi slopes")
    problem.add_argument("--sinks", action="store_true", help="with attention sinks")
    problem.add_argument("--dropout", type=float, default=0.0, metavar="P", help="default: 0")
    problem.add_argument("--kv-lengths", action="store_true", help="padded keys")
    problem.add_argument("--packed", action="store_true", help="B sequences packed one by one")
    problem.add_argument("--backward", action="store_true", help="gradients are needed as well")
    problem.add_argument("--deterministic", action="store_true", help="refuse what varies")
    problem.add_argument("--backend", metavar="NAME", help="ask for this backend alone")


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    try:
        explanation = explain_arguments(arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    output.line(str(explanation))
    output.json(explanation.as_dict())
    return 0


def explain_arguments(arguments: argparse.Namespace) -> Explanation:
    """Describe the call with tensors that have no memory, then ask about the real device."""
    batch, heads_q, len_q, head_dim = arguments.shape
    heads_kv = arguments.kv_heads or heads_q
    len_k = arguments.len_k or len_q

    def tensor(heads: int, length: int, dim: int) -> Tensor:
        packed = (batch * length, heads, dim)
        return _empty(arguments, packed if arguments.packed else (batch, heads, length, dim))

    explanation = explain_call(
        tensor(heads_q, len_q, head_dim),
        tensor(heads_kv, len_k, head_dim),
        tensor(heads_kv, len_k, arguments.value_dim or head_dim),
        **_options(arguments, (batch, heads_q, len_q, len_k)),
    )
    problem = explanation.problem._replace(device_type=arguments.device)
    return dispatch.explain(problem, arguments.backend)


def _options(arguments: argparse.Namespace, scores: tuple[int, int, int, int]) -> dict[str, Any]:
    """The keyword arguments of the call; `scores` is [B, Hq, Lq, Lk]."""
    batch, heads_q, len_q, len_k = scores
    options: dict[str, Any] = {
        "causal": arguments.causal,
        "window": arguments.window,
        "scale": arguments.scale,
        "softcap": arguments.softcap,
        "dropout_p": arguments.dropout,
        "deterministic": arguments.deterministic,
        "backend": arguments.backend,
    }
    if arguments.bias is not None:
        options["bias"] = _empty(arguments, _bias_shape(arguments.bias, scores))
    if arguments.alibi:
        options["alibi_slopes"] = torch.empty(heads_q, device="meta")
    if arguments.sinks:
        options["sinks"] = _empty(arguments, (heads_q,))
    if arguments.kv_lengths:
        options["kv_lengths"] = _integers(batch)
    if arguments.packed:
        options["cu_seqlens_q"], options["cu_seqlens_k"] = (
            _integers(batch + 1),
            _integers(batch + 1),
        )
        options["max_seqlen_q"], options["max_seqlen_k"] = len_q, len_k
    return options


def _bias_shape(text: str, full: tuple[int, int, int, int]) -> tuple[int, ...]:
    if text == "full":
        return full
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 0:
        raise UsageError(f"argument --bias: must be four numbers B,H,Lq,Lk, got {text!r}")
    return shape


def _empty(arguments: argparse.Namespace, shape: tuple[int, ...]) -> Tensor:
    dtype = types.DTYPES[arguments.dtype]
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=arguments.backward)


def _integers(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int32, device="meta")
