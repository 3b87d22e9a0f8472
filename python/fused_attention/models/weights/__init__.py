"""Weights in files and under other names: checkpoints of Hugging Face, and our own."""

from fused_attention.models.weights.conversions import (
    SAME,
    TRANSPOSED,
    Conversion,
    Stacked,
    Unstacked,
)
from fused_attention.models.weights.files import Checkpoint, read_settings, write_checkpoint
from fused_attention.models.weights.table import (
    Entry,
    Table,
    from_checkpoint,
    identity_table,
    module,
    to_checkpoint,
)

__all__ = [
    "SAME",
    "TRANSPOSED",
    "Checkpoint",
    "Conversion",
    "Entry",
    "Stacked",
    "Table",
    "Unstacked",
    "from_checkpoint",
    "identity_table",
    "module",
    "read_settings",
    "to_checkpoint",
    "write_checkpoint",
]
