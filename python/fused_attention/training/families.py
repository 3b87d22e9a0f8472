"""From a recipe to a model, its batches and its tokenizers: one function for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fused_attention.models.bert import BERT
from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.training import tokenization
from fused_attention.training.corpora import DataError, paragraphs, read_text
from fused_attention.training.masked import MaskedSentences
from fused_attention.training.next_sentence import NextSentences, next_sentence_accuracy
from fused_attention.training.prepared import Prepared, built, fingerprint, tokenizer_for
from fused_attention.training.recipe import Run
from fused_attention.training.seeds import seed_of
from fused_attention.training.tokenization import Tokenizer, encode_text
from fused_attention.training.translators import prepare_seq2seq, prepare_transformer
from fused_attention.training.windows import TokenWindows, even_windows

VALIDATION_BATCHES = 40


def prepare(run: Run, folder: Path) -> Prepared:
    """Read the data and build the model; a tokenizer that is in the folder already is used.

    Raises:
        MissingDataError, DataError: the data are not there, or too few.
        ValueError: the model cannot be built.
    """
    return FAMILIES[run.recipe.family](run, folder)


def prepare_gpt(run: Run, folder: Path) -> Prepared:
    recipe, seed = run.recipe, run.settings.seed
    text = read_text(recipe.data)
    tokenizer = _tokenizer(run, folder, text)
    training, held_out = _split(text, recipe.held_out)
    config = GPTConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=recipe.dim,
        layers=recipe.layers,
        heads=recipe.heads,
        max_length=recipe.context,
        dropout=recipe.dropout,
        embedding_dropout=recipe.dropout,
        attention_dropout=recipe.dropout,
    )
    count = max(1, recipe.batch_tokens // recipe.context)
    parts = [encode_text(tokenizer, part) for part in (training, held_out)]
    return Prepared(
        built(lambda: GPT(config), seed),
        TokenWindows(parts[0], recipe.context, count, seed),
        even_windows(parts[1], recipe.context, count, VALIDATION_BATCHES),
        tokenizer,
        fingerprint([text]),
    )


def prepare_bert(run: Run, folder: Path) -> Prepared:
    recipe, seed = run.recipe, run.settings.seed
    text = read_text(recipe.data)
    tokenizer = _tokenizer(run, folder, text, frame=True)
    config = BERTConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=recipe.dim,
        layers=recipe.layers,
        heads=recipe.heads,
        hidden_dim=4 * recipe.dim,
        max_length=recipe.context,
        dropout=recipe.dropout,
        embedding_dropout=recipe.dropout,
        attention_dropout=recipe.dropout,
        pooler=recipe.next_sentence,
        nsp_head=recipe.next_sentence,
    )
    special = {symbol: tokenizer.token_to_id(symbol) for symbol in tokenization.SPECIAL}

    def batches(part: str, seed: int) -> MaskedSentences | NextSentences:
        options: dict[str, int] = {
            "pad_id": special[tokenization.PAD],
            "mask_id": special[tokenization.MASK],
            "first_id": len(special),
            "vocab_size": config.vocab_size,
            "seed": seed,
        }
        if not recipe.next_sentence:
            passages = _passages(tokenizer, part, recipe.context)
            return MaskedSentences(passages, recipe.batch_tokens, **options)
        lines = tokenization.encode_sentences(tokenizer, paragraphs(part))
        frame = special[tokenization.BEGIN], special[tokenization.END]
        sizes = recipe.context, recipe.batch_tokens
        return NextSentences(lines, *sizes, frame=frame, **options)

    def judge(model: PretrainedModel) -> dict[str, float]:
        assert isinstance(model, BERT)
        return {"next_sentence_accuracy": next_sentence_accuracy(model, unseen)}

    training, held_out = _split(text, recipe.held_out)
    validation = batches(held_out, seed_of("validation"))
    unseen = [validation[n] for n in range(VALIDATION_BATCHES)]
    return Prepared(
        built(lambda: BERT(config), seed),
        batches(training, seed),
        unseen,
        tokenizer,
        fingerprint([text]),
        judge if recipe.next_sentence else None,
    )


FAMILIES: dict[str, Callable[[Run, Path], Prepared]] = {
    "gpt": prepare_gpt,
    "bert": prepare_bert,
    "transformer": prepare_transformer,
    "seq2seq": prepare_seq2seq,
}


def _tokenizer(run: Run, folder: Path, text: str, frame: bool = False) -> Tokenizer:
    recipe = run.recipe
    return tokenizer_for(recipe.tokenizer, recipe.vocab_size, [text], folder, frame=frame)


def _split(text: str, percent: int) -> tuple[str, str]:
    """The text without its last so many percent, and these."""
    if not 0 < percent < 100:
        raise DataError(f"held_out: must be in [1, 99] percent, got {percent}")
    middle = len(text) * (100 - percent) // 100
    return text[:middle], text[middle:]


def _passages(tokenizer: Tokenizer, text: str, limit: int) -> list[list[int]]:
    """Whole lines, as many as fit, between begin and end; a longer line is cut."""
    begin, end = (tokenizer.token_to_id(s) for s in (tokenization.BEGIN, tokenization.END))
    room, passages, current = limit - 2, list[list[int]](), list[int]()
    for line in tokenization.encode_sentences(tokenizer, paragraphs(text)):
        for first in range(0, len(line), room):
            piece = line[first : first + room]
            if len(current) + len(piece) > room:
                passages.append([begin, *current, end])
                current = []
            current += piece
    passages += [[begin, *current, end]] if current else []
    if not passages:
        raise DataError("data: must hold text in each of its parts, got none")
    return passages
