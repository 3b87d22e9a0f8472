"""Tests that need a GPU are collected only where there is one."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_gpu_*.py"]
