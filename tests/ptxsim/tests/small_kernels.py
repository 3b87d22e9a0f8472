"""PTX of a few lines on the emulator."""

from __future__ import annotations

import numpy as np

from ptxsim import Report, launch
from ptxsim.conformance.probe import probe


def run(
    body: str,
    *,
    threads: int = 32,
    blocks: int = 1,
    words: int = 64,
    shared: int = 256,
    arch: str = "80",
    seed: int | None = None,
    count_banks: bool = False,
    resident: int = 16,
    input: np.ndarray | None = None,
) -> tuple[np.ndarray, Report]:
    """Output of `words` words, all ones where nothing was written; names are those of probe().

    The input counts 0, 1, ... Shared memory is uninitialised, `tile` at %t1, `shared` bytes.
    """
    given = np.arange(256, dtype=np.uint32) if input is None else input
    case = probe("small", arch, body, input=given, expected=np.zeros(words, np.uint32),
                 threads=threads, shared=shared, stores=0)  # fmt: skip
    output = case.output()
    report = launch(
        case.ptx, None, (blocks,), (threads,), [given, output],
        seed=seed, count_banks=count_banks, resident=resident, step_limit=20000,
    )  # fmt: skip
    return output, report
