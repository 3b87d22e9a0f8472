"""Models on SDPA are the same models, and the report of a race says who was right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fused_attention.benchmarks import models
from fused_attention.benchmarks.models import (
    SDPA_STATIC,
    SDPA_VIEWS,
    DecodeCase,
    decode_steps,
    decoding,
    window_mask,
)
from fused_attention.benchmarks.sdpa_models import with_sdpa
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.nn import attention_layers

OURS = models.OURS
CONFIG = GPTConfig(vocab_size=31, dim=32, layers=2, heads=4, kv_heads=2, max_length=64)


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_model_on_sdpa_is_the_same_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = GPTConfig(**(vars(CONFIG) | {"windows": (5,)}))
    ours = GPT(config).eval()
    peer = with_sdpa(ours, window_mask(config, dtype))
    tokens = torch.randint(31, (2, 64))
    torch.testing.assert_close(peer(tokens), ours(tokens))
    assert list(map(id, peer.parameters())) == list(map(id, ours.parameters()))
    kinds = {type(layer).__name__ for layer in attention_layers(ours).values()}
    assert kinds == {"Attention"}
    causal = with_sdpa(model())
    torch.testing.assert_close(causal(tokens), model()(tokens))


@torch.no_grad()
def test_a_step_leaves_the_caches_as_they_were() -> None:
    steps = decode_steps(model(), 3, 20)
    assert list(steps) == [OURS, SDPA_STATIC, SDPA_VIEWS]
    first = steps[OURS]()
    assert first.shape == (3, 31)
    for step in steps.values():
        torch.testing.assert_close(step(), first)
    assert torch.equal(steps[OURS](), first)


def test_decoding_reports_every_contender() -> None:
    result = decoding(DecodeCase("tiny", CONFIG, "fp32"), 0.05, cached=40)
    assert result["cached"] == 40 and set(result["speedup"]) == {SDPA_STATIC, SDPA_VIEWS}
    for entry in result["contenders"].values():
        assert entry["status"] == "ok" and entry["accuracy"] <= 1.0
        assert entry["tokens_per_s"] == pytest.approx(8 / entry["median_s"])


def test_a_wrong_model_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "gate", lambda model: {OURS: 7.0, SDPA_STATIC: 0.5})
    result = decoding(DecodeCase("tiny", CONFIG, "fp32"), 0.05, cached=40)
    assert result["contenders"][OURS] == {"status": "WRONG", "accuracy": 7.0}
    assert result["speedup"] == {}


def test_parts_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {OURS: 5 << 20, "SDPA, bool mask": 20 << 20, "SDPA, fp32 mask": None}

    def peak_in_process(command: list[str], **_: object) -> object:
        name = command[command.index("--peak-of") + 1]
        entry = {"peak_bytes": peaks[name], "reason": None if peaks[name] else "no room"}
        return type("Done", (), {"returncode": 0, "stdout": json.dumps(entry)})

    monkeypatch.setattr(models, "machine_info", lambda: {"cpu": "some"})
    monkeypatch.setattr(models.subprocess, "run", peak_in_process)
    monkeypatch.setattr(models, "DECODING", (DecodeCase("tiny", CONFIG, "fp32"),))
    monkeypatch.setattr(models, "CACHED", 40)
    path = tmp_path / "r.json"
    threads = ["--threads", str(torch.get_num_threads()), "--json", str(path)]
    assert models.main(["--part", "memory", *threads]) == 0
    assert models.main(["--part", "decoding", "--seconds", "0.05", *threads]) == 0
    report = json.loads(path.read_text())
    assert report["training_memory"]["share"] == {"SDPA, bool mask": 0.25}
    assert [result["name"] for result in report["decoding"]] == ["tiny"]
    text = capsys.readouterr().out
    assert "0.25 of it" in text and "no room" in text and "tiny fp32, batch 8" in text
