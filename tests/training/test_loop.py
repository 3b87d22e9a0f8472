"""The loop: learning, exact resuming, accumulation, precision, recomputation, compilation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from training.small_model import LENGTH, Joined, SmallModel, Uneven, tokens, windows

from fused_attention.training import Batch, Settings, Trainer
from fused_attention.training.checkpoint import CheckpointError, checkpoints
from fused_attention.training.history import read_log
from fused_attention.training.precision import settled
from fused_attention.training.windows import even_windows

SETTINGS = Settings(
    steps=8, learning_rate=1e-2, warmup=2, log_every=1, checkpoint_every=4, clip_norm=1.0
)
PLAIN = dataclasses.replace(SETTINGS, steps=1, clip_norm=0.0)


def losses(history):
    return [entry["loss"] for entry in history.entries]


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def gradients_of_step(trainer):
    """The gradients of a step, taken just before the optimizer uses them."""
    taken = []

    def take(*_):
        taken.extend(parameter.grad.clone() for parameter in trainer.model.parameters())

    trainer.optimizer.register_step_pre_hook(take)
    trainer.train_step()
    return taken


def test_the_loss_falls():
    settings = dataclasses.replace(SETTINGS, steps=150, log_every=50)
    validation = even_windows(tokens(), LENGTH, 4, 3)
    trainer = Trainer(SmallModel(0.0), windows(8), settings, validation=validation)
    before = trainer.evaluate()
    entries = trainer.run().entries
    assert [entry["step"] for entry in entries] == [50, 100, 150]
    assert before > 0.9 * math.log(11)
    assert entries[-1]["validation_loss"] < 0.6 * before
    assert "validation_loss" not in entries[0]
    assert entries[-1]["learning_rate"] < entries[0]["learning_rate"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("extra", [{}, {"accumulate": 2, "checkpoint_layers": True}], ids=str)
def test_resuming_is_exact(tmp_path, precision, extra):
    settings = dataclasses.replace(SETTINGS, precision=precision, **extra)
    whole = Trainer(SmallModel(), windows(), settings)
    wanted = losses(whole.run())

    class StopError(Exception):
        pass

    def stop(step, entry):
        if step == 6:
            raise StopError

    first = Trainer(SmallModel(), windows(), settings, folder=tmp_path)
    with pytest.raises(StopError):
        first.run(stop)
    torch.manual_seed(99)  # where the process's generator stands does not matter
    second = Trainer(SmallModel(seed=5), windows(), settings, folder=tmp_path)
    assert second.resume() == 4
    assert losses(second.run()) == wanted
    assert [entry["loss"] for entry in read_log(tmp_path / "log.jsonl")] == wanted
    assert all(map(torch.equal, weights(whole.model), weights(second.model)))
    assert second.model.seen == whole.model.seen == 8 * settings.accumulate
    assert second.scaler.state_dict() == whole.scaler.state_dict()


def test_resuming_without_a_checkpoint_starts_anew(tmp_path):
    trainer = Trainer(SmallModel(), windows(), SETTINGS, folder=tmp_path)
    assert trainer.resume() == 0
    (tmp_path / "log.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"st')
    assert trainer.resume() == 0
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_resuming_another_model_is_refused(tmp_path):
    Trainer(SmallModel(), windows(), SETTINGS, folder=tmp_path).run()
    other = SmallModel(layers=1)
    before = weights(other)
    with pytest.raises(CheckpointError, match="must be of the same model, got others in layers.1"):
        Trainer(other, windows(), SETTINGS, folder=tmp_path).resume()
    assert all(map(torch.equal, before, weights(other)))


def test_two_checkpoints_are_kept_and_exported(tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_every=2)
    exported = []
    trainer = Trainer(
        SmallModel(), windows(), settings, folder=tmp_path, on_checkpoint=exported.append
    )
    trainer.run()
    assert [step for step, _ in checkpoints(tmp_path)] == [6, 8]
    assert len(exported) == 4
    assert exported[-1].keys() <= trainer.model.state_dict().keys()
    assert torch.equal(exported[-1]["embedding.weight"], trainer.model.embedding.weight)


def test_accumulated_batches_are_one_large_batch():
    batches = Uneven(windows())
    settings = dataclasses.replace(PLAIN, accumulate=4)
    parts = Trainer(SmallModel(0.0), batches, settings)
    whole = Trainer(SmallModel(0.0), Joined(batches, 4), PLAIN)
    for part, wanted in zip(gradients_of_step(parts), gradients_of_step(whole), strict=True):
        torch.testing.assert_close(part, wanted)


def test_recomputed_layers_give_the_same_gradients():
    plain = Trainer(SmallModel(), windows(), PLAIN)
    again = Trainer(SmallModel(), windows(), dataclasses.replace(PLAIN, checkpoint_layers=True))
    calls = []
    for trainer in (plain, again):
        trainer.model.layers[0].attention_norm.register_forward_hook(
            lambda *_, t=trainer: calls.append(t)
        )
    assert all(map(torch.equal, gradients_of_step(plain), gradients_of_step(again)))
    assert (calls.count(plain), calls.count(again)) == (1, 2)


def test_low_precision_computes_in_it_and_keeps_fp32_weights():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        trainer = Trainer(SmallModel(), windows(), dataclasses.replace(PLAIN, precision=precision))
        seen = []
        trainer.model.layers[0].feed_forward.register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(out.dtype)
        )
        trainer.train_step()
        assert seen == [dtype]
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "flag, wanted", [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("", "fp32")]
)
def test_automatic_precision_is_that_of_the_machine(monkeypatch, flag, wanted):
    known = {"avx512_bf16": False, "avx2": True, flag: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    trainer = Trainer(SmallModel(), windows(), dataclasses.replace(PLAIN, precision="auto"))
    assert trainer.settings.precision == wanted
    plain = Trainer(SmallModel(), windows(), dataclasses.replace(PLAIN, precision=wanted))
    assert all(map(torch.equal, gradients_of_step(trainer), gradients_of_step(plain)))
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.11
    assert settled(dataclasses.replace(PLAIN, precision="auto"), torch.device("cpu")) == PLAIN


@pytest.mark.slow
def test_compiled_model_trains_alike():
    settings = dataclasses.replace(SETTINGS, steps=3)
    plain = Trainer(SmallModel(0.0), windows(), settings)
    compiled = Trainer(SmallModel(0.0), windows(), dataclasses.replace(settings, compile=True))
    torch._dynamo.utils.counters.clear()
    assert losses(compiled.run()) == pytest.approx(losses(plain.run()), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_gradients_are_clipped():
    limit = 1e-3
    clipped = Trainer(SmallModel(), windows(), dataclasses.replace(PLAIN, clip_norm=limit))
    gradients = gradients_of_step(clipped)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm.item() == pytest.approx(limit, rel=1e-3)


def test_biases_and_norms_do_not_decay():
    trainer = Trainer(SmallModel(), windows(), SETTINGS)
    groups = {group["weight_decay"]: group["params"] for group in trainer.optimizer.param_groups}
    assert {parameter.dim() for parameter in groups[0.1]} == {2}
    assert {parameter.dim() for parameter in groups[0.0]} == {1}


def test_validation_is_the_mean_over_tokens():
    uneven = Uneven(windows())
    trainer = Trainer(SmallModel(), windows(), PLAIN, validation=[uneven[n] for n in range(4)])
    with torch.no_grad():
        wanted = trainer.model.eval().loss(**Joined(uneven, 4)[0].inputs)
    assert trainer.evaluate() == pytest.approx(wanted.item(), rel=1e-6)
    assert trainer.model.training


def test_a_loss_that_is_not_finite_ends_the_run():
    class Broken(SmallModel):
        def loss(self, input_ids, labels):
            return super().loss(input_ids, labels) * torch.inf

    with pytest.raises(FloatingPointError, match="loss: must be finite, got inf in step 1"):
        Trainer(Broken(), windows(), SETTINGS).run()


def test_the_same_index_is_the_same_batch():
    for batches in (windows(), Uneven(windows())):
        first, again = batches[5], batches[5]
        assert all(torch.equal(first.inputs[name], again.inputs[name]) for name in first.inputs)
    assert not torch.equal(windows()[5].inputs["input_ids"], windows()[6].inputs["input_ids"])
    assert isinstance(windows()[0], Batch)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps: must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate: must be above 0, got nan"),
        ({"beta2": 1.0}, r"beta2: must be in \[0, 1\), got 1.0"),
        ({"final_ratio": 2.0}, r"final_ratio: must be in \[0, 1\], got 2.0"),
        ({"schedule": "step"}, "schedule: must be one of constant, cosine, inverse_sqrt, got"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, fp16, auto, got 'fp8'"),
        ({"clip_norm": -1.0}, "clip_norm: must be at least 0, got -1.0"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **wrong)


def test_only_layers_can_be_recomputed():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="checkpoint_layers: needs a model with layers"):
        Trainer(model, windows(), dataclasses.replace(SETTINGS, checkpoint_layers=True))
