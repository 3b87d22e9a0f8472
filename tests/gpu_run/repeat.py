"""The same call many times: forward, backward and decoding must give the same bits every time.

A race that a test does not see in one run shows here. Other kernels run beside and between the
calls, so that thread blocks start at other times and in other places.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attention_case import AttentionCase
from torch import Tensor

from fused_attention import Band, attention, attention_varlen
from gpu_run.calls import names_on, runs
from gpu_run.decoding import decodes, decoding_inputs

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
CASES = (
    AttentionCase("causal", 2, 16, 4, 1000, head_dim=128, band=Band.causal()),
    AttentionCase("window", 2, 8, 8, 2000, head_dim=64, band=Band.sliding(300)),
    AttentionCase("packed", heads_q=8, seq_lens_q=(900, 3, 0, 500), head_dim=64, trailing=5),
    AttentionCase("dropout", 2, 8, 8, 500, head_dim=96, dropout_p=0.2, sinks=True),
    AttentionCase("wide", 1, 8, 2, 600, head_dim=256, band=Band.causal()),
)
SMALLER = 8  # on a CPU the lengths are divided by this


def attention_call(case: AttentionCase, backend: str, device: str) -> Callable[[], list[Tensor]]:
    """A call of forward and backward on tensors that stay the same."""
    inputs = case.make(0, device)
    leaves = list(inputs.require_gradients().values())
    function = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    upstream = inputs.random_output_gradients()

    def call() -> list[Tensor]:
        results = function(
            *operands, return_lse=True, backend=backend, deterministic=True, **inputs.options
        )
        return [*(r.detach() for r in results), *torch.autograd.grad(results, leaves, upstream)]

    return call


def decoding_call(backend: str, device: str, length: int) -> Callable[[], list[Tensor]]:
    """A call of one step of decoding that writes the same key each time."""
    from fused_attention.decoding import attention_with_kv_cache

    lengths = (length - 1, 1, length // 2, 77)
    inputs = decoding_inputs(device, lengths, heads=(32, 8), capacity=length, dim=128)

    def call() -> list[Tensor]:
        out = attention_with_kv_cache(**inputs, backend=backend)
        return [out, inputs["key_cache"], inputs["value_cache"]]

    return call


def calls(device: str) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Everything to repeat, by name."""
    for backend in names_on(device):
        for case in CASES:
            wanted = replace(case, dtype=torch.bfloat16)
            if device == "cpu":
                lens = tuple(n // SMALLER for n in case.seq_lens_q or ()) or None
                wanted = replace(wanted, len_q=case.len_q // SMALLER, seq_lens_q=lens)
            if runs(backend, wanted, device):
                yield f"{backend} {case}", attention_call(wanted, backend, device)
        if decodes(backend, device):
            length = 4096 // (SMALLER if device == "cpu" else 1)
            yield f"{backend} decoding", decoding_call(backend, device, length)


def bits(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The results as integers: NaN equals itself, and 0 is not -0."""
    return [t.contiguous().view(BITS[t.element_size()]).clone() for t in tensors]


class Disturbance:
    """Products of random size on a stream of their own, now and then."""

    def __init__(self, device: str) -> None:
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.matrix = torch.randn(512, 512, device=device)
        self.turn = 0

    def __call__(self) -> None:
        self.turn += 1
        size = 64 + self.turn * 37 % 449
        if self.stream is None:
            return
        with torch.cuda.stream(self.stream):
            for _ in range(self.turn % 5):
                torch.mm(self.matrix[:, :size], self.matrix[:size])


def count_differing(
    call: Callable[[], list[Tensor]], repeats: int, end: float, disturb: Callable[[], None]
) -> dict[str, int]:
    """How many of the repeats were done until `end`, and how many differed from the first call."""
    first = bits(call())
    differs = torch.zeros((), dtype=torch.int64, device=first[0].device)
    done = 0
    while done < repeats and (done == 0 or time.monotonic() < end):
        disturb()
        again = bits(call())
        wrong = torch.stack([(a != b).any() for a, b in zip(again, first, strict=True)]).any()
        differs += wrong
        done += 1
        if done % 16 == 0:
            differs.item()  # lets the clock see what the GPU has done
    return {"repeats": done, "differing": int(differs.item())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeats everything; 0 if all repeats were equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    todo = list(calls(options.device))
    begin, disturb = time.monotonic(), Disturbance(options.device)
    lines: list[dict[str, Any]] = []
    options.json.write_text(json.dumps({"lines": lines}))
    for number, (name, call) in enumerate(todo, 1):
        end = begin + options.seconds * number / len(todo)
        lines.append({"name": name, **count_differing(call, options.repeats, end, disturb)})
        print(lines[-1], flush=True)
        options.json.write_text(json.dumps({"lines": lines}))
    return 0 if lines and not any(line["differing"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
