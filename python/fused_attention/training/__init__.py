"""Training: data, tokenizers, batches, the loop and its checkpoints; any model with a loss.

A model is an nn.Module with `loss(**batch) -> scalar`, the mean over the batch's predicted tokens.
Step n is a function of the state before it and of n alone: batches and random numbers are made
from the seed and n, so a run that was killed goes on from its last checkpoint bit for bit.
"""

from fused_attention.training.batch import Batch, Batches
from fused_attention.training.loop import Trainer
from fused_attention.training.settings import Settings

__all__ = ["Batch", "Batches", "Settings", "Trainer"]
