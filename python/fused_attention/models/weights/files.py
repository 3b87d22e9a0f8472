"""Checkpoints on disk: safetensors in one file or in shards, with a JSON file of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_attention.files import write_file, write_text

SETTINGS = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a folder or a file, mapped into memory: what is not asked for is not read.

    Args:
        path: a .safetensors file, or a folder that holds model.safetensors or its shards and their
            index.
        allow_pickle: also take pytorch_model.bin, which pickle reads; only weights are unpickled,
            but a file that nobody vouches for is better converted elsewhere.

    Raises:
        FileNotFoundError: there is no checkpoint, or a shard of it is missing.
        ValueError: it is pickled and allow_pickle is False, or file and index disagree.
        ModuleNotFoundError: safetensors is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_pickle: bool = False) -> None:
        self.path = Path(path)
        files = _files(self.path, allow_pickle)
        self._read: dict[str, Callable[[], Tensor]] = {}
        for file, listed in files.items():
            readers = _readers(file)
            if listed is not None and listed != set(readers):
                names = sorted(listed ^ set(readers))
                raise ValueError(f"{file.name}: must hold what its index lists, got {names[:5]}")
            self._read |= readers

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:  # Mapping's own one would read the tensor
        return name in self._read

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating-point dtype of the tensors; fp32 where there is none."""
        found = {tensor.dtype for tensor in self.values() if tensor.is_floating_point()}
        return max(found, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32)


def read_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings beside a checkpoint.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it does not hold a JSON object.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"folder: must hold a {SETTINGS}, got {folder}")
    return _read_json(path)


def write_checkpoint(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Write settings and tensors; several files and an index where one would be too large.

    Each file is replaced as a whole, and what an earlier checkpoint left beside it is removed.

    Raises:
        ValueError: max_shard_bytes is below 1.
        ModuleNotFoundError: safetensors is not installed.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: must be at least 1, got {max_shard_bytes}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, partial(_write_shard, shard))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_bytes, tensors.values()))},
            "weight_map": {k: n for n, shard in zip(names, shards, strict=True) for k in shard},
        }
        _write_json(folder / INDEX, index)
    _write_json(folder / SETTINGS, settings)
    _remove_older(folder, {*names, INDEX} if len(shards) > 1 else set(names))


def _write_shard(tensors: Mapping[str, Tensor], path: Path) -> None:
    # "pt" tells other readers which framework's layout this is.
    _safetensors("safetensors.torch").save_file(tensors, path, {"format": "pt"})


def _safetensors(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        rule = "safetensors: must be installed to read or write checkpoints"
        message = f"{rule} (pip install safetensors)"
        raise ModuleNotFoundError(message, name="safetensors") from error


def _files(path: Path, allow_pickle: bool) -> dict[Path, set[str] | None]:
    """The files of a checkpoint and what its index, if there is one, says is in each."""
    if path.is_file():
        _check_pickle(path, allow_pickle)
        return {path: None}
    pairs = ((WEIGHTS, INDEX), PICKLED)
    for single, index in pairs:
        if (path / single).is_file():
            _check_pickle(path / single, allow_pickle)
            return {path / single: None}
        if (path / index).is_file():
            _check_pickle(path / single, allow_pickle)
            return _indexed(path / index)
    raise FileNotFoundError(f"checkpoint: must hold {WEIGHTS} or {INDEX}, got {path}")


def _check_pickle(path: Path, allow_pickle: bool) -> None:
    if path.suffix != ".safetensors" and not allow_pickle:
        rule = "must be safetensors unless allow_pickle=True"
        raise ValueError(f"checkpoint: {rule}, got {path}")


def _indexed(index: Path) -> dict[Path, set[str] | None]:
    files: dict[Path, set[str] | None] = {}
    shards: dict[str, set[str]] = {}
    for name, file in _read_json(index).get("weight_map", {}).items():
        shards.setdefault(str(file), set()).add(name)
    for file, names in shards.items():
        if Path(file).name != file:  # a checkpoint must not reach for files elsewhere
            raise ValueError(f"{index.name}: must list files of its own folder, got {file}")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"checkpoint: must have all its shards, got none at {file}")
        files[index.parent / file] = names
    return files


def _readers(file: Path) -> dict[str, Callable[[], Tensor]]:
    if file.suffix != ".safetensors":
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {name: partial(tensors.__getitem__, name) for name in tensors}
    mapped = _safetensors("safetensors").safe_open(file, framework="pt")
    names: list[str] = mapped.keys()
    return {name: partial(mapped.get_tensor, name) for name in names}


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _bytes(tensor)
    return shards


def _shard_names(count: int) -> list[str]:
    stem = WEIGHTS.removesuffix(".safetensors")
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _remove_older(folder: Path, written: set[str]) -> None:
    """A reader must not find the shards of one checkpoint and the file of another."""
    for path in (folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in written:
            path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: must be JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: must hold a JSON object, got {type(found).__name__}")
    return found


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
