"""Attention maps of a text: the weights of chosen layers, and the tokens that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.models.bert import BERT
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.transformer import Transformer
from fused_attention.models.translation import translate
from fused_attention.nn.attention_maps import Maps, attention_layers, attention_maps
from fused_attention.training.tokenization import Tokenizer, token_texts
from fused_attention.training.translating import source_ids

CROSS = ".cross_attention"


class LayerMap(NamedTuple):
    """Which token looks at which in one layer."""

    weights: Tensor  # fp32 [1, heads, queries, keys]
    queries: list[str]
    keys: list[str]


@torch.no_grad()
def text_maps(
    model: PretrainedModel,
    tokenizer: Tokenizer,
    text: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> dict[str, LayerMap]:
    """The maps of a text by the names of the layers.

    A Transformer first translates the text (greedily); its decoder is shown that translation.

    Args:
        layers: numbers in the order of the model's layers; default all, of a Transformer those in
            which the decoder looks at the source.
        heads: numbers of heads; default all.

    Raises:
        ValueError: a layer or head does not exist, or the text does not fit the model.
    """
    names = list(attention_layers(model))
    for number in layers or ():
        if number >= len(names):
            raise ValueError(f"layers: must be below {len(names)}, got {number}")
    translates = isinstance(model, Transformer)
    chosen = [names[n] for n in layers or range(len(names))]
    if layers is None and translates:
        chosen = [name for name in names if name.endswith(CROSS)]
    if isinstance(model, Transformer):
        (ids,) = source_ids(tokenizer, [text], model.config.end_token)
        source = torch.tensor([ids])
        target = [model.config.start_token, *translate(model, source, beams=1)[0][0].tokens]
        with attention_maps(model, chosen, heads) as maps:
            model(source, torch.tensor([target]))
    else:
        ids = target = tokenizer.encode(text, add_special_tokens=isinstance(model, BERT)).ids
        with attention_maps(model, chosen, heads) as maps:
            model(torch.tensor([ids]))
    return _labelled(maps, token_texts(tokenizer, ids), token_texts(tokenizer, target))


def _labelled(maps: Maps, source: list[str], target: list[str]) -> dict[str, LayerMap]:
    """Encoder layers look from source to source, the decoder's own from target to target."""
    found = {}
    for name, (weights, *_) in maps.items():
        whole = weights if weights.dim() == 4 else weights.unsqueeze(0)
        queries = source if name.startswith("encoder") else target
        keys = source if name.endswith(CROSS) else queries
        found[name] = LayerMap(whole, queries, keys)
    return found
