"""The families that learn from pairs of sequences: Transformer and recurrent encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.models.transformer import Transformer
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.translation import EncoderDecoder
from fused_attention.training import tokenization
from fused_attention.training.corpora import Held, hold_out, read_pairs, short_pairs
from fused_attention.training.metrics import bleu, exact_match
from fused_attention.training.prepared import Prepared, built, fingerprint, tokenizer_for
from fused_attention.training.recipe import Recipe, Run
from fused_attention.training.seeds import seed_of
from fused_attention.training.tokenization import Tokenizer
from fused_attention.training.translating import Translator, source_ids
from fused_attention.training.translation import SentencePairs

MORE_WORDS = 2  # that a translation may have


def prepare_transformer(run: Run, folder: Path) -> Prepared:
    recipe, data = run.recipe, _read(run, folder)
    config = TransformerConfig(
        vocab_size=data.tokenizer.get_vocab_size(),
        dim=recipe.dim,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        heads=recipe.heads,
        hidden_dim=4 * recipe.dim,
        norm_first=True,
        dropout=recipe.dropout,
        max_length=recipe.context,
        **data.special,
    )
    return _prepared(run, data, lambda: Transformer(config), packed=True)


def prepare_seq2seq(run: Run, folder: Path) -> Prepared:
    recipe, data = run.recipe, _read(run, folder)
    other = data.target_tokenizer
    config = Seq2SeqConfig(
        vocab_size=data.tokenizer.get_vocab_size(),
        target_vocab_size=None if other is None else other.get_vocab_size(),
        embedding_dim=recipe.embedding_dim or recipe.dim,
        cell=recipe.cell,
        dim=recipe.dim,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        bidirectional=recipe.directions == 2,
        reverse_source=recipe.reverse_source,
        attention=recipe.attention,
        width=recipe.width,
        input_feeding=recipe.input_feeding,
        dropout=recipe.dropout,
        label_smoothing=recipe.label_smoothing,
        **data.special,
    )
    return _prepared(run, data, lambda: Seq2Seq(config))


class _Data(NamedTuple):
    """Pairs, those that are held out, and the tokenizers for both sides."""

    held: Held
    tokenizer: Tokenizer
    target_tokenizer: Tokenizer | None  # None: the same
    fingerprint: str

    @property
    def special(self) -> dict[str, Any]:
        """The special tokens' ids under their names in the models' configurations."""
        target = self.target_tokenizer or self.tokenizer
        names = {"pad": tokenization.PAD, "start": tokenization.BEGIN, "end": tokenization.END}
        return {f"{name}_token": target.token_to_id(symbol) for name, symbol in names.items()}


def pairs_of(recipe: Recipe) -> list[tuple[str, str]]:
    """The pairs of a recipe's data, as its models see them.

    Raises:
        MissingDataError, DataError: they are not there.
    """
    pairs = read_pairs(recipe.data)
    if recipe.words:
        pairs = short_pairs(pairs, recipe.words, recipe.words + MORE_WORDS)
    return pairs


def _read(run: Run, folder: Path) -> _Data:
    recipe = run.recipe
    pairs = pairs_of(recipe)
    held = hold_out(pairs, recipe.held_out, run.settings.seed)
    sources, targets = map(list, zip(*held.training, strict=True))

    def tokenizer(kind: str, texts: list[str], name: str) -> Tokenizer:
        return tokenizer_for(kind, recipe.vocab_size, texts, folder, frame=True, name=name)

    other = None
    if recipe.target_tokenizer:
        other = tokenizer(recipe.target_tokenizer, targets, tokenization.TARGET_NAME)
    shared = sources if other is not None else sources + targets
    own = tokenizer(recipe.tokenizer, shared, tokenization.NAME)
    return _Data(held, own, other, fingerprint(text for pair in pairs for text in pair))


def _prepared(
    run: Run, data: _Data, build: Callable[[], EncoderDecoder], *, packed: bool = False
) -> Prepared:
    recipe, held = run.recipe, data.held
    unseen = zip(held.sources, held.references, strict=True)
    held_pairs = [(source, target) for source, own in unseen for target in own]
    validation = _batches(recipe, data, held_pairs, seed_of("validation"), packed)
    translator = Translator(data.tokenizer, data.target_tokenizer)

    def judge(model: object) -> dict[str, float]:
        assert isinstance(model, Transformer | Seq2Seq)
        translations = translator.translate(model, held.sources)
        return {
            "bleu": bleu(translations, held.references),
            "exact_match": exact_match(translations, held.references),
            "held_out": len(held.sources),
        }

    return Prepared(
        built(build, run.settings.seed),
        _batches(recipe, data, held.training, run.settings.seed, packed),
        [validation[n] for n in range(validation.buckets.batches_in_epoch())],
        data.tokenizer,
        data.fingerprint,
        judge,
        data.target_tokenizer,
    )


def _batches(
    recipe: Recipe, data: _Data, pairs: Sequence[tuple[str, str]], seed: int, packed: bool
) -> SentencePairs:
    sources, targets = zip(*pairs, strict=True)
    special = data.special
    start, end = special["start_token"], special["end_token"]
    ids = [
        (source, [start, *target, end])
        for source, target in zip(
            source_ids(data.tokenizer, sources, end),
            tokenization.encode_sentences(data.target_tokenizer or data.tokenizer, targets),
            strict=True,
        )
        if len(source) <= recipe.context and len(target) + 2 <= recipe.context
    ]
    return SentencePairs(ids, recipe.batch_tokens, special["pad_token"], seed, packed=packed)
