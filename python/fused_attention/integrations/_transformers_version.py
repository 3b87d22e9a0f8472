"""Says in one sentence what is wrong when transformers is missing or too old."""

from __future__ import annotations

import re

MINIMUM = (5, 4)  # the first whose mask functions take q_length and q_offset


def require_transformers() -> None:
    """Raise ImportError unless a transformers that calls our functions as they expect is there."""
    needs = f"fused_attention.integrations.transformers: needs transformers >= {_dotted(MINIMUM)}"
    hint = f"(pip install 'transformers>={_dotted(MINIMUM)}')"
    try:
        from transformers import __version__ as found
    except ModuleNotFoundError as error:
        if error.name != "transformers":  # it is there, and lacks something itself
            raise
        raise ImportError(f"{needs} {hint}, found none") from None
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < MINIMUM:
        raise ImportError(f"{needs} {hint}, found {found}")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
