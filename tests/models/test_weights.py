"""Mapping tables: both directions, every kind of difference loud, and checkpoints on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.weights import (
    TRANSPOSED,
    Checkpoint,
    Entry,
    Stacked,
    Table,
    Unstacked,
    from_checkpoint,
    module,
    read_settings,
    to_checkpoint,
    write_checkpoint,
)

HEADS = ("q", "k", "v")
TABLE = Table(
    (
        *module("embedding", "net.wte", bias=False),
        *module("mix", [f"net.{name}" for name in HEADS], Stacked((4, 2, 2))),
        *module("out", "net.conv", TRANSPOSED),
        Entry(("gate.weight", "up.weight"), ("net.fused.weight",), Unstacked((3, 5))),
        *module("norm", "net.LayerNorm"),
    ),
    copies={"head.weight": "net.wte.weight"},
    older=((r"^(?!net\.|head\.)", "net."), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ignored=(r"net\.position_ids$",),
)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = {
        "embedding": nn.Embedding(7, 4),
        "mix": nn.Linear(4, 8),
        "out": nn.Linear(4, 6),
        "gate": nn.Linear(4, 3, bias=False),
        "up": nn.Linear(4, 5, bias=False),
        "norm": nn.LayerNorm(4),
    }
    return {
        f"{layer}.{name}": torch.randn_like(parameter)
        for layer, one in layers.items()
        for name, parameter in one.named_parameters()
    }


def blank(like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_both_directions_are_inverse() -> None:
    ours = weights()
    theirs = to_checkpoint(TABLE, ours)
    assert theirs["net.q.weight"].shape == (4, 4)
    assert torch.equal(theirs["net.k.bias"], ours["mix.bias"][4:6])
    assert torch.equal(theirs["net.conv.weight"], ours["out.weight"].mT)
    assert torch.equal(theirs["net.conv.bias"], ours["out.bias"])
    assert torch.equal(theirs["net.fused.weight"][:3], ours["gate.weight"])
    assert all(tensor.is_contiguous() for tensor in theirs.values())
    loaded = blank(ours)
    from_checkpoint(TABLE, theirs, loaded)
    assert_equal(loaded, ours)


def test_older_names_copies_and_buffers() -> None:
    ours = weights()
    theirs = to_checkpoint(TABLE, ours)
    old = {
        name.removeprefix("net.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in theirs.items()
    }
    old |= {"head.weight": theirs["net.wte.weight"].clone(), "position_ids": torch.arange(3)}
    assert "LayerNorm.gamma" in old
    loaded = blank(ours)
    from_checkpoint(TABLE, old, loaded)
    assert_equal(loaded, ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net.k.bias": None}, "but it lacks net.k.bias"),
        ({"net.x": torch.ones(1)}, "but it has unknown net.x"),
        (
            {"net.v.weight": torch.ones(3, 4)},
            r"another shape for net.v.weight \(\[3, 4\] instead of \[2, 4\]\)",
        ),
        ({"net.conv.weight": torch.ones(6, 4)}, r"\[6, 4\] instead of \[4, 6\]"),
        ({"head.weight": torch.ones(7, 4)}, r"copy in head.weight \(of net.wte.weight\)"),
        ({"LayerNorm.weight": torch.ones(4)}, "names one weight twice, got net.LayerNorm.weight"),
        ({"net.k.bias": None, "net.x": torch.ones(1)}, "lacks net.k.bias; has unknown net.x"),
    ],
)
def test_every_difference_is_named_and_nothing_written(
    change: dict[str, Tensor | None], message: str
) -> None:
    ours = weights()
    theirs = {**to_checkpoint(TABLE, ours), **change}
    loaded = blank(ours)
    with pytest.raises(ValueError, match=message):
        from_checkpoint(TABLE, {k: t for k, t in theirs.items() if t is not None}, loaded)
    assert all(tensor.isnan().all() for tensor in loaded.values())


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match="net.q.bias and 7 more"):
        from_checkpoint(TABLE, {}, weights())


def test_a_table_must_name_the_whole_model() -> None:
    ours = weights() | {"extra": torch.ones(1)}
    with pytest.raises(ValueError, match=r"table: must name each weight .* got \['extra'\]"):
        to_checkpoint(TABLE, ours)
    with pytest.raises(ValueError, match="table: must name each weight"):
        from_checkpoint(TABLE, to_checkpoint(TABLE, weights()), ours)


def tensors() -> dict[str, Tensor]:
    return {f"t{n}": torch.randn(n + 1, 3) for n in range(5)}


@pytest.mark.parametrize("limit", [1, 60, 100, 1 << 20])
def test_files_and_shards(limit: int, tmp_path: Path) -> None:
    stored = tensors()
    write_checkpoint(tmp_path, {"a": [1, None]}, stored, max_shard_bytes=limit)
    assert read_settings(tmp_path) == {"a": [1, None]}
    checkpoint = Checkpoint(tmp_path)
    assert_equal(dict(checkpoint), stored)
    assert "t0" in checkpoint and "t9" not in checkpoint and len(checkpoint) == 5
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == {1: 5, 60: 4, 100: 3, 1 << 20: 1}[limit]
    largest = max(t.numel() * t.element_size() for t in stored.values())
    assert all(
        sum(4 * t.numel() for t in Checkpoint(f).values()) <= max(limit, largest) for f in files
    )
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit < 1 << 20)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("first", "second"), [(1, 1 << 20), (1 << 20, 1), (1, 100)])
def test_a_second_checkpoint_replaces_the_first(first: int, second: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, tensors(), max_shard_bytes=first)
    stored = tensors()
    write_checkpoint(tmp_path, {}, stored, max_shard_bytes=second)
    assert_equal(dict(Checkpoint(tmp_path)), stored)
    fresh = tmp_path / "fresh"
    write_checkpoint(fresh, {}, stored, max_shard_bytes=second)
    assert {p.name for p in tmp_path.glob("*model*")} == {p.name for p in fresh.glob("*model*")}


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tensors()
    write_checkpoint(tmp_path, {"old": True}, stored)

    def fail(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, {}, tensors())
    assert_equal(dict(Checkpoint(tmp_path)), stored)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_shards_must_be_what_the_index_says(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, tensors(), max_shard_bytes=1)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())

    def rewrite(name: str, file: str) -> None:
        changed = {**index, "weight_map": {**index["weight_map"], name: file}}
        path.write_text(json.dumps(changed))

    rewrite("t9", "model-00001-of-00005.safetensors")
    with pytest.raises(ValueError, match=r"must hold what its index lists, got \['t9'\]"):
        Checkpoint(tmp_path)
    rewrite("t1", "../model.safetensors")
    with pytest.raises(ValueError, match="files of its own folder, got ../model.safetensors"):
        Checkpoint(tmp_path)
    rewrite("t1", "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="must have all its shards, got none at gone"):
        Checkpoint(tmp_path)


def test_pickle_only_when_asked_for(tmp_path: Path) -> None:
    stored = tensors()
    torch.save(stored, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="must be safetensors unless allow_pickle=True"):
            Checkpoint(path)
        assert_equal(dict(Checkpoint(path, allow_pickle=True)), stored)
    torch.save({"code": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        Checkpoint(tmp_path, allow_pickle=True)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold model.safetensors or"):
        Checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold a config.json"):
        read_settings(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_settings(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        read_settings(tmp_path)
    with pytest.raises(ValueError, match="max_shard_bytes: must be at least 1, got 0"):
        write_checkpoint(tmp_path, {}, {}, max_shard_bytes=0)


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 3
    pattern: tuple[int, ...] = (1, 2)
    own: bool = False

    @classmethod
    def from_hf(cls, settings: dict[str, int]) -> Settings:
        return cls(width=settings["hidden_size"])

    def to_hf(self) -> dict[str, int | str]:
        if self.own:
            raise ValueError("own: is not known there, got True")
        return {"model_type": "toy", "hidden_size": self.width}


class Toy(PretrainedModel):
    config_class = Settings

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.width, 2)
        self.tied = self.layer

    @classmethod
    def table(cls, config: Settings) -> Table:
        return Table(tuple(module("layer", "toy.dense")))


@pytest.mark.parametrize("own", [False, True])
def test_models_come_back_from_disk(own: bool, tmp_path: Path) -> None:
    model = Toy(Settings(width=5, own=own)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    settings = read_settings(tmp_path)
    assert settings["model_type"] == ("fused_attention" if own else "toy")
    assert settings["dtype"] == "bfloat16"
    assert ("layer.weight" if own else "toy.dense.weight") in Checkpoint(tmp_path)
    loaded = Toy.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config == model.config
    assert_equal(loaded.weights(), model.weights())
    assert Toy.from_pretrained(tmp_path, dtype=torch.float64).layer.weight.dtype == torch.float64


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    class Other(Toy):
        pass

    Other(Settings(own=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be of a Toy, got Other"):
        Toy.from_pretrained(tmp_path)


def test_weights_may_be_ignored_by_name(tmp_path: Path) -> None:
    model = Toy(Settings())
    extra = {"classifier.weight": torch.ones(2), **model.hf_state_dict()}
    write_checkpoint(tmp_path, {"hidden_size": 3}, extra)
    with pytest.raises(ValueError, match="unknown classifier.weight"):
        Toy.from_pretrained(tmp_path)
    loaded = Toy.from_pretrained(tmp_path, ignore=["classifier"])
    assert_equal(loaded.weights(), model.weights())
