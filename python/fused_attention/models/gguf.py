"""Models from GGUF files, llama.cpp's format of quantised weights; read by the `gguf` library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_attention.checks import wrong_value
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.tables.gguf import llama
from fused_attention.models.weights import from_checkpoint

# What llama.cpp calls a setting of Hugging Face's; the names have the architecture before them.
SETTINGS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta", "vocab_size")
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


class GGUFFile(Mapping[str, Tensor]):
    """The tensors of a GGUF file, each unpacked to fp32 when it is asked for, and its fields.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the gguf library is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"path: must be a GGUF file, got {path}")
        try:
            self._library: Any = import_module("gguf")
        except ModuleNotFoundError as error:
            rule = "must be installed to read GGUF files (pip install gguf)"
            raise ModuleNotFoundError(f"gguf: {rule}") from error
        reader = self._library.GGUFReader(str(path))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = reader.fields

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        numbers = self._library.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(numbers.copy()).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:  # Mapping's own one would unpack the tensor
        return name in self._tensors

    def field(self, name: str, default: Any = None) -> Any:
        """What the file says under `name`."""
        return self._fields[name].contents() if name in self._fields else default


def config_from_gguf(file: GGUFFile) -> GPTConfig:
    """The configuration of a model in a GGUF file.

    Raises:
        ValueError: it is no Llama, or a setting is missing or beyond this model.
    """
    architecture = file.field("general.architecture")
    if architecture != "llama":
        wrong_value("architecture", "must be llama", architecture)
    settings: dict[str, Any] = {"model_type": "llama"}
    for theirs, name in SETTINGS.items():
        value = file.field(f"{architecture}.{name}")
        if value is None and theirs not in OPTIONAL:
            wrong_value(f"{architecture}.{name}", "must be in the file", None)
        if value is not None:
            settings[theirs] = value
    settings.setdefault("vocab_size", file.field("tokenizer.ggml.tokens", [None]).__len__())
    scaling = file.field(f"{architecture}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = file.field(f"{architecture}.rope.scaling.factor")
        settings["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        wrong_value(f"{architecture}.rope.scaling.type", "must be none or linear", scaling)
    settings["tie_word_embeddings"] = HEAD not in file
    settings["eos_token_id"] = file.field("tokenizer.ggml.eos_token_id")
    return GPTConfig.from_hf(settings)


def gpt_from_gguf(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> GPT:
    """The Llama, Mistral or similar of a GGUF file, in evaluation mode; unpacked to `dtype`.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as GGUFFile.
        ValueError: the model is of another kind, or its weights are not exactly the file's.
    """
    file = GGUFFile(path)
    model = GPT(config_from_gguf(file), device=device, dtype=dtype)
    from_checkpoint(llama(model.config), file, model.weights())
    return model.eval()
