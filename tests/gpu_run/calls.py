"""Every backend on the GPU once: forward, backward and a step of decoding, small and compared.

The reference is computed on the CPU, so that a sanitizer around this process looks at our kernels
and little else. Needs no pytest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_case import AttentionCase

from fused_attention import Band, _ext, attention, attention_varlen, backends, explain
from fused_attention.backends import ORDER, get
from fused_attention.support import devices_of
from gpu_run.decoding import HALF, decodes, decoding_step

CASES = (
    AttentionCase("causal", heads_q=4, heads_kv=2, len_q=150, head_dim=64, band=Band.causal()),
    AttentionCase("window", len_q=100, len_k=180, head_dim=128, band=Band.sliding(37)),
    AttentionCase("packed", seq_lens_q=(5, 0, 90), seq_lens_k=(70, 3, 90), head_dim=96, trailing=2),
    AttentionCase("dropout", len_q=70, head_dim=32, dropout_p=0.2, softcap=3.0, alibi="h"),
    AttentionCase("padded", batch=3, len_q=40, kv_lengths=(40, 0, 13), sinks=True, head_dim=64),
    AttentionCase("dim_80", len_q=65, head_dim=80, band=Band.causal(), layout="swapped"),
    AttentionCase("dim_256", batch=1, len_q=70, head_dim=256),
)


def names_on(device: str) -> list[str]:
    """The fused backends that run here on this kind of device."""
    return [b.NAME for b in ORDER if b.NAME != "reference" and device in devices_of(b)]


def runs(backend: str, case: AttentionCase, device: str) -> bool:
    """Whether the backend takes the case, forward and backward."""
    inputs = case.make(0)
    inputs.require_gradients()
    problem = explain(inputs.query, inputs.key, inputs.value, **inputs.options).problem
    return not get(backend).why_not(problem._replace(device_type=device))


def forward_and_backward(case: AttentionCase, backend: str, device: str) -> None:
    """Raises AssertionError where a result is not within its budget."""
    on_device, on_cpu = case.make(0, device), case.make(0)
    leaves = on_device.require_gradients()
    function = attention_varlen if case.packed else attention
    operands = (on_device.query, on_device.key, on_device.value)
    results = function(*operands, return_lse=True, backend=backend, **on_device.options)
    upstream = on_device.random_output_gradients()
    grads = torch.autograd.grad(results, list(leaves.values()), upstream)
    found = {name: grad.cpu() for name, grad in zip(leaves, grads, strict=True)}
    on_cpu.assert_forward(*(result.detach().cpu() for result in results))
    ordered = [found.get(name) for name in ("query", "key", "value", "bias", "sinks")]
    on_cpu.assert_gradients(ordered, *on_cpu.random_output_gradients())


def calls(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything to call, by name."""
    for backend in names_on(device):
        for case in CASES:
            for dtype in (HALF, torch.float16):
                wanted = replace(case, dtype=dtype)
                if runs(backend, wanted, device):
                    name = f"{backend} {case} {str(dtype).removeprefix('torch.')}"
                    yield name, partial(forward_and_backward, wanted, backend, device)
        for paged in (False, True):
            if decodes(backend, device, paged=paged):
                name = f"{backend} decoding{' from pages' if paged else ''}"
                yield name, partial(decoding_step, backend, device, paged)


def main(arguments: Sequence[str] | None = None) -> int:
    """Calls everything; 0 if all is right. The report is complete up to the call that crashed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "backends": names_on(options.device),
        "reasons": {info.name: info.reason for info in backends() if not info.available},
        "load_errors": [error for name in ("cpu", "cuda") if (error := _ext.load_error(name))],
        "lines": [],
    }
    options.json.write_text(json.dumps(report))
    for name, call in calls(options.device):
        message = ""
        try:
            call()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        print(f"{name}: {message or 'right'}", flush=True)
        report["lines"].append({"name": name, "ok": not message, "message": message})
        options.json.write_text(json.dumps(report))
    right = bool(report["lines"]) and all(line["ok"] for line in report["lines"])
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
