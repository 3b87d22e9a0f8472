"""The largest tensor that operations make: whether memory grows with the square of a length."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """While it is on; a view that repeats what it shows counts as what it shows."""

    elements = 0
    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                stored = tensor.untyped_storage().nbytes()
                self.bytes = max(self.bytes, stored)
                self.elements = max(self.elements, stored // tensor.element_size())
        return results
