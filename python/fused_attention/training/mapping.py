"""Attention maps of a text: chosen layers' weights or a summary of each head, with the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import AttentionMaps
from fused_attention.models.bert import BERT
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.transformer import Transformer
from fused_attention.models.translation import translate
from fused_attention.nn.recorded_maps import Maps, attention_layers, record_attention_maps
from fused_attention.training.tokenization import Tokenizer, token_texts
from fused_attention.training.translating import source_ids

CROSS = ".cross_attention"


class LayerMap(NamedTuple):
    """Which token looks at which in one layer."""

    weights: Tensor  # fp32 [1, heads, queries, keys]
    queries: list[str]
    keys: list[str]


class HeadSummary(NamedTuple):
    """What one head does with a text; all but the entropy are shares of the queries or weights."""

    layer: str
    head: int
    entropy: float  # nats, mean over the queries
    first: float  # weight that the first key receives, mean over the queries
    itself: float  # queries whose highest weight is their own place
    previous: float  # queries whose highest weight is the place before theirs
    most_read: str  # the key that receives most from the queries that can see it
    most_weight: float  # their mean weight for it


class _Recording(NamedTuple):
    maps: Maps
    source: list[str]
    target: list[str]

    def tokens(self, layer: str) -> tuple[list[str], list[str]]:
        """Queries and keys: encoder layers look from source to source, others from target."""
        queries = self.source if layer.startswith("encoder") else self.target
        return queries, self.source if layer.endswith(CROSS) else queries


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
    recording = _record(model, tokenizer, text, layers, heads=heads)
    found = {}
    for name, (one, *_) in recording.maps.items():
        assert one.weights is not None
        weights = one.weights if one.weights.dim() == 4 else one.weights.unsqueeze(0)
        found[name] = LayerMap(weights, *recording.tokens(name))
    return found


def text_summary(
    model: PretrainedModel,
    tokenizer: Tokenizer,
    text: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[HeadSummary]:
    """What each head does, by layers and heads; memory grows with the length of the text alone.

    Arguments and errors are those of `text_maps`.
    """
    facts = {"entropy": True, "argmax": True, "column_mass": True, "column_mean": True}
    recording = _record(model, tokenizer, text, layers, heads=heads, weights=False, **facts)
    found = []
    for name, (one, *_) in recording.maps.items():
        _, keys = recording.tokens(name)
        assert one.entropy is not None
        for index in range(one.entropy.shape[-2]):
            head = index if heads is None else heads[index]
            own = AttentionMaps(*(None if x is None else x[..., index, :].flatten() for x in one))
            found.append(_summary(name, head, own, keys))
    return found


def _summary(layer: str, head: int, maps: AttentionMaps, keys: list[str]) -> HeadSummary:
    """Of the maps of one head."""
    entropy, argmax, mass, mean = maps.entropy, maps.argmax, maps.column_mass, maps.column_mean
    assert entropy is not None and argmax is not None and mass is not None and mean is not None
    place = torch.arange(len(argmax))
    most = int(mean.argmax())
    return HeadSummary(
        layer,
        head,
        entropy.mean().item(),
        mass[0].item() / len(argmax),
        (argmax == place).float().mean().item(),
        (argmax == place - 1)[1:].float().mean().item() if len(argmax) > 1 else 0.0,
        keys[most],
        mean[most].item(),
    )


@torch.no_grad()
def _record(
    model: PretrainedModel,
    tokenizer: Tokenizer,
    text: str,
    layers: Sequence[int] | None,
    **asked: Any,
) -> _Recording:
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
        with record_attention_maps(model, chosen, **asked) as maps:
            model(source, torch.tensor([target]))
    else:
        ids = target = tokenizer.encode(text, add_special_tokens=isinstance(model, BERT)).ids
        with record_attention_maps(model, chosen, **asked) as maps:
            model(torch.tensor([ids]))
    return _Recording(maps, token_texts(tokenizer, ids), token_texts(tokenizer, target))
