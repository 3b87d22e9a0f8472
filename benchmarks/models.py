"""Whole models against the same models on torch's scaled_dot_product_attention.

    python -m fused_attention.benchmarks.models --json benchmarks/results/models/cpu.json

Decoding: tokens per second of one step for a batch whose caches hold 4096 tokens; contenders take
turns, on the same weights and the same caches, and are checked against fp64 before. Training: peak
memory of one step on 8192 tokens in layers that see 512, each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_attention import Band
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.nn import Cache, attention_layers
from fused_attention.text import table

from .accuracy import error_ratio
from .cases import DTYPES
from .contenders import OURS
from .machine import machine_info
from .memory import MIB, peak_bytes
from .options import parse, parser_of, store
from .sdpa_models import with_sdpa, with_sdpa_caches
from .timing import LoadMonitor, speedup, time_interleaved

SCHEMA = 1
SDPA_STATIC, SDPA_VIEWS = "SDPA, static cache", "SDPA, views of the cache"
BATCH, CACHED = 8, 4096
GATE_TOKENS = 48  # cached in the comparison with fp64
SMOLLM2 = GPTConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    }
)


@dataclass(frozen=True)
class DecodeCase:
    """One step of decoding: each row of the batch gets its next token."""

    name: str
    config: GPTConfig
    dtype: str


DECODING = (
    DecodeCase("GPT-2 small", GPTConfig(max_length=2 * CACHED), "fp32"),
    DecodeCase("GPT-2 small", GPTConfig(max_length=2 * CACHED), "bf16"),
    DecodeCase("SmolLM2-135M", SMOLLM2, "fp32"),
    DecodeCase("SmolLM2-135M", SMOLLM2, "bf16"),
)
# nanoGPT's Shakespeare model, with a window.
TRAINED = GPTConfig(
    vocab_size=96, dim=384, layers=6, heads=6, max_length=8192, windows=(512,), bias=False
)
# What SDPA is told about the window.
MASKS: dict[str, torch.dtype | None] = {
    OURS: None,
    "SDPA, bool mask": torch.bool,
    "SDPA, fp32 mask": torch.float32,
}


def filled_caches(model: GPT, batch: int, cached: int, drawn: torch.dtype) -> list[Cache]:
    """Caches with random keys and values, the same in every layer, and a little room."""
    caches = model.new_caches(batch, cached + 16)
    sizes = next(iter(attention_layers(model).values()))
    shape = (2, batch, sizes.kv_heads, cached, sizes.head_dim)
    key, value = torch.randn(shape, dtype=drawn).to(next(model.parameters()).dtype)
    for cache in caches:
        cache.append(key, value)
    return caches


def decode_steps(model: GPT, batch: int, cached: int) -> dict[str, Callable[[], Tensor]]:
    """One step of each contender, which leaves the caches as they were: logits [batch, vocab]."""
    caches = filled_caches(model, batch, cached, next(model.parameters()).dtype)
    tokens = torch.randint(model.config.vocab_size, (batch, 1))
    peers = {
        OURS: caches,
        SDPA_STATIC: with_sdpa_caches(caches, whole=True),
        SDPA_VIEWS: with_sdpa_caches(caches, whole=False),
    }

    def step(own: list[Cache]) -> Tensor:
        logits: Tensor = model(tokens, caches=own)[:, -1]
        for cache in own:
            cache.crop(cached)
        return logits

    return {name: partial(step, own) for name, own in peers.items()}


def gate(model: GPT, seed: int = 0) -> dict[str, float]:
    """Error over allowed error of each contender's logits, against the model in fp64."""
    torch.manual_seed(seed)
    steps = decode_steps(model, 2, GATE_TOKENS)
    found = {name: step() for name, step in steps.items()}
    exact = copy.deepcopy(model).double()
    torch.manual_seed(seed)
    reference = _same_numbers(exact, next(model.parameters()).dtype)
    naive = found[SDPA_VIEWS]
    return {name: error_ratio(logits, naive, reference) for name, logits in found.items()}


def _same_numbers(exact: GPT, dtype: torch.dtype) -> Tensor:
    """The step of an fp64 model on caches drawn in `dtype`."""
    caches = filled_caches(exact, 2, GATE_TOKENS, dtype)
    tokens = torch.randint(exact.config.vocab_size, (2, 1))
    logits: Tensor = exact(tokens, caches=with_sdpa_caches(caches, whole=False))[:, -1]
    return logits


@torch.no_grad()
def decoding(case: DecodeCase, seconds: float, cached: int) -> dict[str, Any]:
    """Gate and time one case."""
    torch.manual_seed(0)
    model = GPT(case.config).to(DTYPES[case.dtype]).eval()
    ratios = gate(model)
    right = [name for name, ratio in ratios.items() if ratio <= 1.0]
    steps = decode_steps(model, BATCH, cached)
    monitor = LoadMonitor().start()
    timings = time_interleaved({name: steps[name] for name in right}, budget_s=seconds)
    contenders: dict[str, Any] = {}
    for name, ratio in ratios.items():
        contenders[name] = {"status": "ok" if name in timings else "WRONG", "accuracy": ratio}
        if name in timings:
            timing = timings[name]
            contenders[name] |= {
                "tokens_per_s": BATCH / timing.median_s,
                "median_s": timing.median_s,
                "spread": timing.spread,
                "rounds": len(timing.samples),
            }
    peers = [name for name in timings if name != OURS and OURS in timings]
    return {
        "name": case.name,
        "dtype": case.dtype,
        "batch": BATCH,
        "cached": cached,
        "threads": torch.get_num_threads(),
        "contenders": contenders,
        "speedup": {name: speedup(timings[OURS], timings[name]) for name in peers},
        "load": monitor.report(),
    }


def training_peak(name: str, config: GPTConfig = TRAINED) -> tuple[int | None, str | None]:
    """Peak memory of one training step in this process, above the model; with the mask."""
    torch.manual_seed(0)
    model, kind = GPT(config), MASKS[name]
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(config.vocab_size, (1, config.max_length))

    def step() -> None:
        trained: Any = model if kind is None else with_sdpa(model, window_mask(config, kind))
        trained.loss(tokens, tokens).backward()
        optimizer.step()

    return peak_bytes(step)


def window_mask(config: GPTConfig, dtype: torch.dtype) -> Tensor:
    """The first layer's window for scaled_dot_product_attention, [max_length, max_length]."""
    window = config.window(0)
    assert window is not None
    visible = Band.sliding(window).mask(config.max_length, config.max_length)
    if dtype == torch.bool:
        return visible
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)


def training_memory(threads: int) -> dict[str, Any]:
    """The peaks of all contenders, each measured in a process of its own."""
    peaks: dict[str, Any] = {}
    for name in MASKS:
        module = f"{__package__}.models"
        command = [sys.executable, "-m", module, "--peak-of", name, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            peaks[name] = {"peak_bytes": None, "reason": reason}
        else:
            peaks[name] = json.loads(done.stdout)
    ours = peaks[OURS]["peak_bytes"]
    known = {name: peak["peak_bytes"] for name, peak in peaks.items() if peak["peak_bytes"]}
    return {
        "length": TRAINED.max_length,
        "window": TRAINED.window(0),
        "contenders": peaks,
        "share": {name: ours / peak for name, peak in known.items() if ours and name != OURS},
    }


def as_text(report: dict[str, Any]) -> str:
    """The report as tables."""
    rows = [("one token for each row", "contender", "tokens/s", "ours is faster by")]
    for result in report["decoding"]:
        title = f"{result['name']} {result['dtype']}, batch {result['batch']}"
        for name, entry in result["contenders"].items():
            rate = f"{entry['tokens_per_s']:.1f}" if entry["status"] == "ok" else entry["status"]
            ratio = result["speedup"].get(name)
            rows.append((title, name, rate, "" if ratio is None else f"{ratio:.2f}x"))
    memory = report["training_memory"]
    if memory is None:
        return table(rows)
    title = f"a step on {memory['length']} tokens"
    more = [(title, "contender", "peak, MiB", "ours needs")]
    for name, entry in memory["contenders"].items():
        peak = entry["peak_bytes"]
        share = memory["share"].get(name)
        text = entry["reason"] if peak is None else f"{peak / MIB:.0f}"
        more.append((title, name, text, "" if share is None else f"{share:.2f} of it"))
    return f"{table(rows)}\n\n{table(more)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a contender of ours is wrong."""
    summary = "Time and weigh models against the same on scaled_dot_product_attention."
    parser = parser_of("models", summary, 6.0, "per case")
    parts = ("decoding", "memory")
    parser.add_argument("--part", choices=parts, help="measure it anew; default both")
    parser.add_argument("--peak-of", choices=tuple(MASKS), help=argparse.SUPPRESS)
    options = parse(parser, arguments)
    if options.peak_of is not None:
        peak, reason = training_peak(options.peak_of)
        print(json.dumps({"peak_bytes": peak, "reason": reason}))
        return 0
    report: dict[str, Any] = {"schema": SCHEMA, "decoding": [], "training_memory": None}
    if options.json is not None and options.json.exists():
        report = json.loads(options.json.read_text())  # keeps the other part
    report["machine"] = machine_info()
    if options.part != "memory":
        report["decoding"] = [decoding(case, options.seconds, CACHED) for case in DECODING]
    if options.part != "decoding":
        report["training_memory"] = training_memory(options.threads)
    print(as_text(report))
    store(report, options.json)
    wrong = [r["name"] for r in report["decoding"] if r["contenders"][OURS]["status"] != "ok"]
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
