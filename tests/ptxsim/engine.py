"""Asynchronous engines: what has been issued, and when it has happened."""

from __future__ import annotations

from .bulk import BulkEngine
from .cp_async import AsyncCopies
from .matrix_queue import MatrixQueue

__all__ = ["AsyncCopies", "BulkEngine", "MatrixQueue"]
