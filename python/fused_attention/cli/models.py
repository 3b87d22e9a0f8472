"""What the commands on models share: a MODEL that is a folder, a file or a fetched one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from fused_attention.cli.output import UsageError
from fused_attention.models.bert import BERT
from fused_attention.models.gguf import GGUFFile, gpt_from_gguf
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_families import FAMILIES
from fused_attention.models.pretrained import OWN, PretrainedModel
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.transformer import Transformer
from fused_attention.models.translation import EncoderDecoder
from fused_attention.training import recipe, tokenization
from fused_attention.training.corpora import simplify
from fused_attention.training.datasets import DATASETS, folder_of
from fused_attention.training.gguf_tokenizer import tokenizer_from_gguf
from fused_attention.training.tokenization import Tokenizer
from fused_attention.training.translating import Translator

MODEL_HELP = "a folder with config.json, a .gguf file, or a fetched model: minilm, smollm2"
# "model_type" in config.json, or our class where the checkpoint has our own names.
KINDS: dict[str, type[PretrainedModel]] = {
    **dict.fromkeys(FAMILIES, GPT),
    **dict.fromkeys(("bert", "modernbert"), BERT),
    **dict.fromkeys(("marian", "pegasus"), Transformer),
    **{kind.__name__: kind for kind in (GPT, BERT, Transformer, Seq2Seq)},
}


class Loaded(NamedTuple):
    model: PretrainedModel
    tokenizer: Tokenizer


def load(name: str, *kinds: type[PretrainedModel]) -> Loaded:
    """A model of one of these kinds, with its tokenizer.

    Raises:
        UsageError: there is none of that name, or it is of another kind.
    """
    try:
        path = _path(name)
        if path.suffix == ".gguf":
            file = GGUFFile(path)
            _check_kind(name, GPT, kinds)
            return Loaded(gpt_from_gguf(path), tokenizer_from_gguf(file))
        kind = _kind(name, path)
        _check_kind(name, kind, kinds)
        return Loaded(kind.from_pretrained(path), tokenization.load(path))
    except (ValueError, OSError) as error:
        raise UsageError(f"argument MODEL: {error}") from None


def load_translator(name: str, *kinds: type[PretrainedModel]) -> tuple[EncoderDecoder, Translator]:
    """An encoder-decoder of one of these kinds, with its tokenizers.

    Raises:
        UsageError: there is none of that name, or it is of another kind.
    """
    model, tokenizer = load(name, *kinds)
    assert isinstance(model, EncoderDecoder)
    folder, other = Path(name), None
    try:
        if (folder / tokenization.TARGET_NAME).exists():
            other = tokenization.load(folder, tokenization.TARGET_NAME)
    except ValueError as error:
        raise UsageError(f"argument MODEL: {error}") from None
    return model, Translator(tokenizer, other)


def _path(name: str) -> Path:
    path = Path(name)
    if name in DATASETS and not path.exists():
        path = folder_of(name)
    if not path.exists():
        raise UsageError(f"argument MODEL: must be {MODEL_HELP}, {name!r} does not exist")
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return found[0]
    return path


def _kind(name: str, path: Path) -> type[PretrainedModel]:
    file = path / "config.json"
    if not file.is_file():
        raise UsageError(f"argument MODEL: must hold config.json, {name!r} does not")
    settings: Any = json.loads(file.read_text(encoding="utf-8"))
    type_ = settings.get("model_type") if isinstance(settings, dict) else None
    type_ = settings.get("model_class") if type_ == OWN else type_
    if type_ not in KINDS:
        raise UsageError(f"argument MODEL: must be of {', '.join(KINDS)}, got {type_!r}")
    return KINDS[type_]


def _check_kind(
    name: str, kind: type[PretrainedModel], kinds: tuple[type[PretrainedModel], ...]
) -> None:
    if kind not in kinds:
        wanted = " or a ".join(one.__name__ for one in kinds)
        raise UsageError(f"argument MODEL: must be a {wanted}, {name!r} is a {kind.__name__}")


def encode(tokenizer: Tokenizer, text: str, *, frame: bool = False) -> list[int]:
    """A text's ids; `frame` lets the tokenizer put its special tokens around them.

    Raises:
        UsageError: the tokenizer does not know a symbol of the text.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=frame).ids
    if not frame and not ids and text:
        raise UsageError(f"the model's tokenizer knows nothing of {text!r}")
    return ids


def as_trained(model: str, sentences: list[str]) -> list[str]:
    """Sentences as the model was shown them: runs of ours may know lower case alone."""
    path = Path(model)
    try:
        if (path / recipe.NAME).is_file() and recipe.Run.load(path)[0].recipe.lower_case:
            return [simplify(sentence) for sentence in sentences]
    except recipe.RunError as error:
        raise UsageError(f"argument MODEL: {error}") from None
    return sentences


def read_sentences(given: list[str], file: Path | None) -> list[str]:
    """Sentences of the command line, then the lines of a file.

    Raises:
        UsageError: there are none, or the file cannot be read.
    """
    lines: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UsageError(f"argument --file: cannot read {file} ({reason})") from None
    sentences = [*given, *(line for line in lines if line.strip())]
    if not sentences:
        raise UsageError("give sentences, or a file of them with --file")
    return sentences
