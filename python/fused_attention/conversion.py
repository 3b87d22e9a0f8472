"""convert: a model's nn.MultiheadAttention modules become MultiHeadAttention, in place."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fused_attention.backends import reference
from fused_attention.checks import FLOATING_DTYPES, MAX_DROPOUT
from fused_attention.dispatch import explain
from fused_attention.nn import MultiHeadAttention
from fused_attention.problem import Problem

_ADDED = ("num_kv_heads", "band", "rotary")  # attributes that nn.MultiheadAttention lacks


@dataclass
class Conversion:
    """What `convert` did.

    Attributes:
        swapped: names of the modules that are MultiHeadAttention now.
        kept: for other attention modules the reason why they are as they were.
    """

    swapped: tuple[str, ...]
    kept: dict[str, str]
    _modules: list[nn.Module] = field(default_factory=list, repr=False)
    _encoders: list[nn.Module] = field(default_factory=list, repr=False)

    def revert(self) -> None:
        """Make the modules what they were; parameters keep the values that they have now."""
        for module in self._modules:
            module.__class__ = nn.MultiheadAttention
            for name in _ADDED:
                delattr(module, name)
        for encoder in self._encoders:
            vars(encoder)["use_nested_tensor"] = True
        self._modules, self._encoders = [], []

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}", *(f"  {name}" for name in self.swapped)]
        lines += [f"kept {len(self.kept)}"] if self.kept else []
        lines += [f"  {name}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def convert(model: nn.Module) -> Conversion:
    """Run the nn.MultiheadAttention modules of `model` on this package's kernels.

    The modules stay the objects that they are and only change their class: parameters, hooks,
    names, state_dict, optimizers and whoever else refers to them see no difference, and `model`
    itself may be one. Layers of nn.Transformer that hold them call them in inference too, instead
    of torch's fused layer. Convert again after adding modules.

    Returns:
        A Conversion: print it, or take `swapped` and `kept`; `revert()` undoes it.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be an nn.Module, got {type(model).__name__}")
    kept: dict[str, str] = {}
    swapped: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        name = path or "(the model itself)"
        if isinstance(module, nn.MultiheadAttention):
            reason = _why_not(module)
            if reason is None:
                swapped[name] = module
            else:
                kept[name] = reason
        elif _looks_like_attention(module):
            kept[name] = (
                f"{type(module).__name__} is no nn.MultiheadAttention; what it computes by "
                "F.scaled_dot_product_attention runs here within fused_attention.sdpa()"
            )
    for module in swapped.values():
        _swap(module)
    nested = [module for module in model.modules() if _passes_nested_tensors(module)]
    for encoder in nested:
        vars(encoder)["use_nested_tensor"] = False
    return Conversion(tuple(swapped), kept, list(swapped.values()), nested)


def _why_not(module: nn.MultiheadAttention) -> str | None:
    """Why this module had better stay as it is."""
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} is derived from nn.MultiheadAttention and may differ"
    if "forward" in vars(module):
        return "its forward was replaced"
    if not 0.0 <= module.dropout < MAX_DROPOUT:
        return f"dropout must be in [0, 1 - 2**-17), got {module.dropout}"
    weight = module.out_proj.weight
    if weight.dtype not in FLOATING_DTYPES:
        return f"no kernel takes {weight.dtype}"
    if weight.device.type == "meta":
        return None
    sizes = (1, module.num_heads, module.num_heads, 1, 1, module.head_dim, module.head_dim)
    explanation = explain(Problem(weight.dtype, weight.device.type, *sizes))
    if explanation.chosen != reference.NAME:
        return None
    return explanation.refusals()


def _looks_like_attention(module: nn.Module) -> bool:
    """Whether the class calls itself attention, and none of its parts does."""
    if type(module) is MultiHeadAttention or "attention" not in type(module).__name__.lower():
        return False
    parts = list(module.modules())[1:]
    return not any("attention" in type(part).__name__.lower() for part in parts)


def _swap(module: nn.Module) -> None:
    module.__class__ = MultiHeadAttention
    vars(module).update(num_kv_heads=module.num_heads, band=None, rotary=None)


def _passes_nested_tensors(module: nn.Module) -> bool:
    """Whether an encoder would hand its padded inputs on as nested tensors."""
    return (
        isinstance(module, nn.TransformerEncoder)
        and module.use_nested_tensor
        and any(type(part) is MultiHeadAttention for part in module.modules())
    )
