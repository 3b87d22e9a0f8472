from __future__ import annotations


class MatrixQueue:
    def __init__(self, wave):
        self.wave = wave
