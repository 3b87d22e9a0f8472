"""The programs that run kernels, run on the CPU's: they find what they are made to find."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from gpu_run import calls, repeat

from fused_attention.backends import cpu


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CASES", calls.CASES[3:5])
    monkeypatch.setattr(repeat, "CASES", repeat.CASES[:1])


def run(module, path, *arguments: str):
    code = module.main(["--device", "cpu", "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


def test_calls_compare_forward_and_backward(tmp_path, few_calls):
    code, told = run(calls, tmp_path / "x.json")
    assert code == 0 and told["backends"] == calls.names_on("cpu")
    names = [line["name"] for line in told["lines"]]
    assert "cpu dropout bfloat16" in names and "cpu padded float16" in names
    assert all(any(backend in name for name in names) for backend in told["backends"])


def test_a_wrong_gradient_is_seen(tmp_path, few_calls, monkeypatch):
    right = cpu.backward

    def wrong(*arguments):
        gradients = right(*arguments)
        return gradients._replace(key=gradients.key * 1.5)

    monkeypatch.setattr(cpu, "backward", wrong)
    code, told = run(calls, tmp_path / "x.json")
    assert code == 1
    assert all("gradient of key" in line["message"] for line in told["lines"][:2])


def test_a_backend_that_is_not_there_is_no_success(tmp_path):
    code = calls.main(["--device", "cuda", "--json", str(tmp_path / "x.json")])
    assert code == (0 if torch.cuda.is_available() else 1)


def test_equal_repeats_and_one_that_differs(tmp_path, few_calls, monkeypatch):
    code, told = run(repeat, tmp_path / "x.json", "--repeats", "3")
    assert code == 0
    assert [(line["repeats"], line["differing"]) for line in told["lines"][:1]] == [(3, 0)]

    right, turn = cpu.attention, iter([0.0, 0.0, 1e-3, 0.0])

    def sometimes(*args, **options):
        out, lse = right(*args, **options)
        return out, lse.index_fill(2, torch.tensor([7]), next(turn))

    monkeypatch.setattr(cpu, "attention", sometimes)
    code, told = run(repeat, tmp_path / "x.json", "--repeats", "3")
    assert code == 1 and told["lines"][0]["differing"] == 1


def test_bits_and_not_values_are_compared():
    tensors = ([0.0, float("nan")], [-0.0, float("nan")])
    first, second = (repeat.bits([torch.tensor(x)]) for x in tensors)
    assert (first[0] != second[0]).tolist() == [True, False]


def test_repeats_stop_in_time_but_not_before_the_first():
    clock = SimpleNamespace(calls=0)

    def call() -> list[torch.Tensor]:
        clock.calls += 1
        return [torch.zeros(2)]

    counted = repeat.count_differing(call, 100, end=0.0, disturb=lambda: None)
    assert counted == {"repeats": 1, "differing": 0} and clock.calls == 2
