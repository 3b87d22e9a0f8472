from __future__ import annotations


class BulkEngine:
    def __init__(self, wave):
        self.wave = wave
        self.queue = []

    def step(self):
        return False

    def drain(self):
        pass
