"""Initial values of the recurrent encoder-decoders, as their papers draw them."""

from __future__ import annotations

from torch import nn

from fused_attention.nn.bahdanau_attention import BahdanauAttention


def reset_uniform(model: nn.Module, bound: float) -> None:
    """All parameters uniform in +-bound (Sutskever et al. 2014, 3.4; Luong et al. 2015, 4.1)."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -bound, bound)


def reset_bahdanau(model: nn.Module) -> None:
    """Bahdanau et al. 2015, appendix B.1.

    Recurrent matrices are orthogonal, gate by gate; W_a and U_a have a standard deviation of
    0.001; v_a and biases are 0; all other weights have one of 0.01.
    """
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.data.split(parameter.shape[1]):
                nn.init.orthogonal_(gate)
        elif parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.01)
        else:
            nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, BahdanauAttention):
            nn.init.normal_(module.query_proj.weight, std=0.001)
            nn.init.normal_(module.key_proj.weight, std=0.001)
            if module.g is not None:
                # A normed v needs a direction, so it cannot begin at 0.
                nn.init.normal_(module.v, std=0.001)
                nn.init.constant_(module.g, module.dim**-0.5)
