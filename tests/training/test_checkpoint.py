"""Checkpoints and files: complete or not there, and nobody else's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file

from fused_attention.files import remove_partial, write_file, write_text
from fused_attention.training import checkpoint
from fused_attention.training.checkpoint import CheckpointError

TENSORS = {"model/a": torch.arange(6.0).view(2, 3), "optimizer/a/step": torch.tensor(4.0)}


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path, 12, TENSORS, {"scaler": {"scale": 0.1}})
    tensors, values = checkpoint.load(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert values == {"format": checkpoint.FORMAT, "step": 12, "scaler": {"scale": 0.1}}


def test_only_the_newest_stay(tmp_path):
    for step in (5, 100, 20, 123456789):
        checkpoint.save(tmp_path, step, TENSORS, {})
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [100, 123456789]


def test_other_files_are_no_checkpoints(tmp_path):
    for name in ("step-x.safetensors", ".step-00000009.safetensors.1.partial", "step-1.txt"):
        (tmp_path / name).touch()
    assert checkpoint.checkpoints(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_torn_file_is_refused(tmp_path, keep):
    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="checkpoint: cannot read .*step-00000001"):
        checkpoint.load(path)


def test_other_safetensors_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="must be one of a training run, got .*model"):
        checkpoint.load(tmp_path / "model.safetensors")


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_name_comes_after_the_content_is_on_the_disk(tmp_path, monkeypatch):
    from fused_attention import files

    events = []
    real_sync, real_replace = files._to_disk, files.os.replace
    monkeypatch.setattr(files, "_to_disk", lambda path: events.append(path) or real_sync(path))

    def replace(partial, path):
        events.append("replace")
        real_replace(partial, path)

    monkeypatch.setattr(files.os, "replace", replace)
    write_text(tmp_path / "file", "text")
    content, renamed, folder = events
    assert (renamed, folder) == ("replace", tmp_path)
    assert content.parent.name.endswith(files.PARTIAL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason=f"{sys.platform} cannot fork")
def test_what_a_killed_writer_leaves_is_removed(tmp_path):
    """Also the temporary files of libraries: safetensors has its own beside the one it is told."""

    def write(partial):
        partial.touch()
        (partial.parent / ".tmpA1b2C3").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "kept").touch()
    child = multiprocessing.get_context("fork").Process(
        target=write_file, args=(tmp_path / "x", write)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
