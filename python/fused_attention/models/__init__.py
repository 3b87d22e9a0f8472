"""Models on the fused kernels: they load public checkpoints and give the same outputs."""

from fused_attention.models.beam_search import Hypothesis, beam_search
from fused_attention.models.bert import BERT
from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.generation import generate, stream
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.sampling import Sampling
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.models.seq2seq_steps import Alignment, align
from fused_attention.models.transformer import Transformer
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.translation import translate

__all__ = [
    "BERT",
    "GPT",
    "Alignment",
    "BERTConfig",
    "GPTConfig",
    "Hypothesis",
    "Sampling",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Transformer",
    "TransformerConfig",
    "align",
    "beam_search",
    "generate",
    "stream",
    "translate",
]
