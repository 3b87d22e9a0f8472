"""fused-attention explain asks exactly what the Python function asks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fused_attention import explain


def test_text_is_that_of_the_python_function(command: Any) -> None:
    outcome = command(
        *("explain", "--shape", "2,8,16,32", "--kv-heads", "2", "--len-k", "64"),
        *("--value-dim", "48", "--dtype", "bf16", "--causal", "--softcap", "20"),
    )
    query = torch.empty(2, 8, 16, 32, dtype=torch.bfloat16)
    key = torch.empty(2, 2, 64, 32, dtype=torch.bfloat16)
    value = torch.empty(2, 2, 64, 48, dtype=torch.bfloat16)
    assert outcome.code == 0
    assert outcome.out == f"{explain(query, key, value, causal=True, softcap=20.0)}\n"


@pytest.mark.parametrize(
    "option, field, expected",
    [
        (["--window", "7,none"], "band", {"left": 7, "right": 1 << 30, "offset": None}),
        (["--bias"], "bias_shape", [2, 4, 8, 8]),
        (["--bias", "1,4,1,8"], "bias_shape", [1, 4, 1, 8]),
        (["--alibi"], "has_alibi", True),
        (["--sinks"], "has_sinks", True),
        (["--dropout", "0.5"], "dropout_p", 0.5),
        (["--scale", "0.25"], "scale", 0.25),
        (["--kv-lengths"], "has_kv_lengths", True),
        (["--packed"], "packed", True),
        (["--packed", "--len-k", "9"], "len_k", 9),
        (["--backward"], "needs_grad", True),
        (["--backward", "--bias"], "bias_needs_grad", True),
        (["--deterministic"], "deterministic", True),
        (["--device", "cuda"], "device_type", "cuda"),
    ],
    ids=lambda x: "".join(x) if isinstance(x, list) and x and isinstance(x[0], str) else "",
)
def test_option_reaches_the_problem(
    command: Any, option: list[str], field: str, expected: object
) -> None:
    outcome = command("explain", "--shape", "2,4,8,16", *option, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["problem"][field] == expected


def test_reasons_and_forced_backend(command: Any) -> None:
    told = json.loads(command("explain", "--shape", "1,1,8,1024", "--json").out)
    assert told["chosen"] == "reference"
    assert any("512" in reason for reason in told["reasons"]["cpu"])
    forced = command("explain", "--shape", "1,1,8,1024", "--backend", "cpu", "--json")
    assert forced.code == 0
    assert json.loads(forced.out)["chosen"] is None


def test_huge_problem_needs_no_memory(command: Any) -> None:
    assert command("explain", "--shape", "64,128,1000000,128").code == 0
