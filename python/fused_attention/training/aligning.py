"""Where a recurrent encoder-decoder looks in a sentence while it translates it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_steps import align
from fused_attention.models.translation import translate
from fused_attention.training.tokenization import encode_sentences, token_texts
from fused_attention.training.translating import Translator, source_ids


class TextAlignment(NamedTuple):
    """The weights of each step of a translation, in the order of the sentence."""

    source: list[str]  # tokens, the end among them
    target: list[str]  # what the steps say, the end last
    weights: Tensor  # fp32 [steps, source tokens]
    places: list[float] | None  # p of local-m and local-p by step, 0 is the first source token
    windows: list[tuple[int, int]] | None  # first and last token in sight; last < first: none


def align_text(
    model: Seq2Seq,
    translator: Translator,
    text: str,
    target: str | None = None,
    *,
    beams: int = 4,
) -> TextAlignment:
    """How a text is aligned with its translation.

    Args:
        model: in evaluation mode, with an attention.
        text: as the model was trained on, such as in lower case.
        target: the translation; default the best that beam search finds.

    Raises:
        RuntimeError: the model has no attention.
        ValueError: beams is below 1.
    """
    (ids,) = source_ids(translator.tokenizer, [text], model.config.end_token)
    device = next(model.parameters()).device
    source = torch.tensor([ids], device=device)
    own = translator.target_tokenizer or translator.tokenizer
    if target is None:
        found = translate(model, source, beams=beams)[0]
        said = found[0].tokens if found else []
    else:
        (said,) = encode_sentences(own, [target])
    whole = [model.config.start_token, *said, model.config.end_token]
    weights, places, first, last = align(model, source, torch.tensor([whole], device=device))
    windows = None
    if first is not None and last is not None:
        windows = list(zip(first[0].tolist(), last[0].tolist(), strict=True))
    return TextAlignment(
        token_texts(translator.tokenizer, ids),
        token_texts(own, whole[1:]),
        weights[0].float().cpu(),
        None if places is None else places[0].tolist(),
        windows,
    )
