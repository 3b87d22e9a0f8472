"""Checkpoints: one safetensors file each, named after its step, complete or not there.

It holds the parameters, the persistent buffers and the optimizer's state under their names, and a
few plain values. Batches and random numbers are functions of the step, so nothing else is needed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fused_attention.files import write_file
from fused_attention.training.processes import sharded_like, whole

KEPT = 2  # the newest ones; older ones are removed
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


class CheckpointError(ValueError):
    """A file is no checkpoint, or not one of this model; the message is one sentence."""


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of the checkpoints in a folder, oldest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def save(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the checkpoint of a step, then remove those that are too old."""
    from safetensors.torch import save_file

    path = folder / f"step-{step:08d}.safetensors"
    text = {"training": json.dumps({"format": FORMAT, "step": step, **values})}
    write_file(path, lambda partial: save_file(tensors, partial, text))
    for _, old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values of a checkpoint.

    Raises:
        CheckpointError: the file is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {}).get("training", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: cannot read {path} ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint: must be one of a training run, got {path}")
    return tensors, values


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once; tied parameters by their first name."""
    parameters = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in tied}
    return {f"model/{name}": value for name, value in {**parameters, **buffers}.items()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter, as optimizer/<parameter>/<name of the state>."""
    names: dict[Tensor, str] = {value: name for name, value in model.named_parameters()}
    return {
        f"optimizer/{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in full on the CPU; with several processes each of them has to call this."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the model what `model_tensors` gave.

    Raises:
        CheckpointError: names or shapes differ; nothing is changed then.
    """
    own = model_tensors(model)
    given = {name: value for name, value in tensors.items() if name.startswith("model/")}
    wrong = own.keys() ^ given.keys()
    wrong |= {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    if wrong:
        names = ", ".join(sorted(name.removeprefix("model/") for name in wrong)[:3])
        raise CheckpointError(f"checkpoint: must be of the same model, got others in {names}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(sharded_like(given[name], tensor))


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Give the optimizer what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    states: dict[Tensor, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            parameter = parameters[name.split("/", 1)[1].rpartition("/")[0]]
            state = states.setdefault(parameter, {})
            state[name.rpartition("/")[2]] = sharded_like(tensor, parameter).clone()
    groups = optimizer.state_dict()["param_groups"]
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {n: states[parameter] for n, parameter in enumerate(order) if parameter in states}
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})
