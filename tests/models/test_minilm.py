"""Real weights: all-MiniLM-L6-v2 gives what transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fused_attention.models.bert import BERT
from fused_attention.models.weights import Checkpoint
from fused_attention.training.datasets import folder_of, is_fetched

pytestmark = pytest.mark.skipif(
    not is_fetched("minilm"), reason="needs the weights: fused-attention fetch minilm"
)
SENTENCES = [
    "The cat sits outside",
    "A man is playing guitar",
    "The new movie is awesome, and everybody in our street has seen it twice already.",
    "The movie is great",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return folder_of("minilm")


def tokens(folder: Path) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.pad_token = "[PAD]"
    return tokenizer(SENTENCES, padding=True, return_tensors="pt")


@torch.no_grad()
def test_hidden_states_and_embeddings(folder: Path) -> None:
    one = BERT.from_pretrained(folder)
    assert one.pooler is not None and one.mlm_head is None and one.config.heads == 12
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = tokens(folder)
    real = batch["attention_mask"].bool()
    expected, actual = theirs(**batch), one(**batch)
    assert (actual.hidden - expected.last_hidden_state)[real].abs().max() <= 5e-6
    assert (actual.pooled - expected.pooler_output).abs().max() <= 1e-6
    vectors = one.embed(**batch)
    similar = vectors @ vectors.T
    assert similar[0, 1].item() == pytest.approx(0.0363, abs=1e-4)
    assert similar[2, 3] > similar[:2, 2:].max() + 0.3  # the two about the film


def test_saved_again_it_is_the_same_checkpoint(folder: Path, tmp_path: Path) -> None:
    BERT.from_pretrained(folder).save_pretrained(tmp_path)
    before, after = Checkpoint(folder), Checkpoint(tmp_path)
    buffers = {name for name in before if name.endswith("position_ids")}
    assert set(after) == set(before) - buffers
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
