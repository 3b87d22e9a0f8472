"""One process or several: DDP and FSDP2 on what torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fused_attention.checks import wrong_value
from fused_attention.training.layers import layers_of

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is, and how they share a model.

    Attributes:
        device: where this process computes.
        strategy: "ddp": each holds the model, gradients are averaged (Li et al. 2020).
            "fsdp": parameters, gradients and the optimizer's state are sharded over the processes
            and each layer is gathered when it is needed (FSDP2; Zhao et al. 2023).
    """

    device: torch.device = torch.device("cpu")
    strategy: str = "ddp"
    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls, device: str | torch.device = "cpu", strategy: str = "ddp") -> Processes:
        """Join the process group that torchrun describes; without torchrun a single process.

        Raises:
            ValueError: strategy is unknown.
        """
        if strategy not in STRATEGIES:
            wrong_value("strategy", f"must be one of {', '.join(STRATEGIES)}", repr(strategy))
        device = torch.device(device)
        if "WORLD_SIZE" not in os.environ:
            return cls(device, strategy)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(device, strategy, dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the process group."""
        if self.together:
            dist.destroy_process_group()

    @property
    def together(self) -> bool:
        return dist.is_available() and dist.is_initialized()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, module: nn.Module) -> nn.Module:
        """The module over all processes; the parameters of the first one are those of all."""
        if not self.together:
            return module
        if self.strategy == "ddp":
            return DistributedDataParallel(module)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, 0)
        mesh = init_device_mesh(self.device.type, (self.count,))
        for layer in layers_of(module):
            fully_shard(layer, mesh=mesh)
        # By default the root stays gathered after a forward pass, for a backward pass that does not
        # come in evaluation.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)  # in place
        return module

    @contextlib.contextmanager
    def synchronising(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Average gradients over the processes in the last backward pass of a step only."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        else:
            yield

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.together:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.together:
            dist.barrier()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This process's part of `tensor`, if `pattern` is sharded; every process holds all of it."""
    if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
        return tensor.to(pattern.device)
    options: dict[str, Any] = {"src_data_rank": None}
    on_device = tensor.to(pattern.device)
    return distribute_tensor(on_device, pattern.device_mesh, pattern.placements, **options)
