"""Shared-memory wavefronts: how often the banks have to be read for one access of a warp."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from .registers import Gang

if TYPE_CHECKING:
    from .wave import Wave

_BANKS = 32


class BankConflicts:
    """Per instruction: phases (a phase moves at most 128 bytes) and wavefronts they took."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = defaultdict(int)
        self.wavefronts: dict[str, int] = defaultdict(int)

    def count(self, wave: Wave, gang: Gang, address: np.ndarray, size: int) -> None:
        """Accesses of `size` bytes a lane; lanes go in groups that together move 128 bytes."""
        lanes = min(32, max(1, 128 // max(size, 4)))
        words = gang.spread(address)[..., None] // 4 + np.arange(max(1, size // 4))
        valid = np.broadcast_to(gang.full_mask[..., None], words.shape)
        words = np.where(valid, words, -1).reshape(-1, lanes * words.shape[-1])
        self._add(wave, words)

    def count_rows(self, wave: Wave, address: np.ndarray) -> None:
        """ldmatrix and stmatrix: eight rows of 16 bytes a phase."""
        words = address[..., None] // 4 + np.arange(4)
        self._add(wave, words.reshape(-1, 32))

    def _add(self, wave: Wave, words: np.ndarray) -> None:
        """words: [phases, words that are wanted], -1 for none."""
        step = wave.program.kernel.instructions[wave.at].text
        words = np.sort(words, 1)
        first = np.ones(words.shape, bool)
        first[:, 1:] = words[:, 1:] != words[:, :-1]
        first &= words >= 0
        phase = np.broadcast_to(np.arange(len(words))[:, None], words.shape)
        counts = np.bincount(
            (phase * _BANKS + words % _BANKS)[first], minlength=len(words) * _BANKS
        ).reshape(-1, _BANKS)
        used = counts.max(1)
        self.phases[step] += int((used > 0).sum())
        self.wavefronts[step] += int(used.sum())

    def per_phase(self, opcode: str = "") -> float:
        """Wavefronts a phase over all instructions that begin with `opcode`; 1 is the best."""
        names = [name for name in self.phases if name.startswith(opcode)]
        phases = sum(self.phases[name] for name in names)
        return sum(self.wavefronts[name] for name in names) / phases if phases else 1.0
