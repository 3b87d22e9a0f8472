"""What the models share: settings in a dataclass, and weights that come from and go to disk."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fused_attention.models.weights import (
    Checkpoint,
    Table,
    from_checkpoint,
    identity_table,
    read_settings,
    to_checkpoint,
    write_checkpoint,
)

OWN = "fused_attention"  # "model_type" in the settings of a checkpoint that uses our own names
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """A model whose checkpoints are folders of config.json and model.safetensors.

    A subclass has a frozen dataclass of settings with `from_hf(dict)` and `to_hf()`, both of which
    raise a ValueError for what the other side cannot express, and a `table`.
    """

    config_class: ClassVar[Any]
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def table(cls, config: Any) -> Table:
        """How the Hugging Face family of this configuration names the weights."""
        raise NotImplementedError

    @classmethod
    def adapted(cls, config: Any, names: Collection[str]) -> Any:
        """The configuration with what only the names in a checkpoint tell, such as its heads."""
        return config

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        ignore: Iterable[str] = (),
        allow_pickle: bool = False,
        **changes: Any,
    ) -> Model:
        """The model of a folder, in evaluation mode; Hugging Face's and our own checkpoints.

        Args:
            folder: with config.json and model.safetensors or its shards.
            dtype: of the weights; default the checkpoint's.
            device: of the weights.
            ignore: patterns of names, from their beginning on, of weights to leave out, such as
                the head of another task.
            allow_pickle: also take pytorch_model.bin.
            changes: fields of the configuration to replace, such as mlm_head=False.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the settings are beyond this model, or the weights are not exactly its own.
        """
        settings = read_settings(folder)
        checkpoint = Checkpoint(folder, allow_pickle=allow_pickle)
        own = settings.get("model_type") == OWN
        if own:
            stored = cls._own_config(settings)
        else:
            stored = cls.adapted(cls.config_class.from_hf(settings), checkpoint.keys())
        config = dataclasses.replace(stored, **changes)
        with _WithoutInitialValues():
            model = cls(config)
        model = model.to(device=device, dtype=dtype or checkpoint.dtype)
        if own:
            table = identity_table(list(model.weights()))
            left_out: set[str] = set()
        else:
            table = cls.table(config)
            # What the caller's changes take away, such as a head, is no surprise.
            left_out = {table.todays_name(name) for name in cls.table(stored).names()}
        exactly = (f"{re.escape(name)}$" for name in left_out - table.names())
        table = dataclasses.replace(table, ignored=(*table.ignored, *exactly, *ignore))
        from_checkpoint(table, checkpoint, model.weights())
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_bytes: int = 5 << 30
    ) -> None:
        """Write the model so that Hugging Face's library, too, can load it.

        Where no family there has these settings, the checkpoint uses our own names.

        Raises:
            ValueError: max_shard_bytes is below 1.
        """
        try:
            settings = self.config.to_hf()
        except ValueError:
            settings = {"model_type": OWN, "model_class": type(self).__name__}
            settings |= dataclasses.asdict(self.config)
            tensors = to_checkpoint(identity_table(list(self.weights())), self.weights())
        else:
            tensors = self.hf_state_dict()
        dtype = next(iter(tensors.values())).dtype
        settings["dtype"] = str(dtype).removeprefix("torch.")
        write_checkpoint(folder, settings, tensors, max_shard_bytes=max_shard_bytes)

    def load_hf_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a state_dict with Hugging Face's names.

        Raises:
            ValueError: they are not exactly this model's; nothing is changed then.
        """
        from_checkpoint(self.table(self.config), state, self.weights())

    def hf_state_dict(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's names; tied weights once."""
        return to_checkpoint(self.table(self.config), self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Parameters by their names, each once also where modules share it."""
        return dict(self.named_parameters())

    @classmethod
    def _own_config(cls, settings: Mapping[str, Any]) -> Any:
        if settings.get("model_class") != cls.__name__:
            rule = f"must be of a {cls.__name__}"
            raise ValueError(f"checkpoint: {rule}, got {settings.get('model_class')}")
        known = {field.name for field in dataclasses.fields(cls.config_class)}
        given = {name: _tuples(value) for name, value in settings.items() if name in known}
        return cls.config_class(**given)


class _WithoutInitialValues(TorchFunctionMode):
    """Random numbers are zeros, because drawing them would take most of the time of loading."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            tensor = args[0] if args else kwargs["tensor"]  # torch.nn.init's functions name it
            with torch.no_grad():
                return tensor.zero_()
        return function(*args, **(kwargs or {}))


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that frozen settings hold."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
