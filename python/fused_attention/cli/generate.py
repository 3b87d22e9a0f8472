"""fused-attention generate: a GPT goes on after a prompt."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator

from fused_attention import arguments as types
from fused_attention.cli.models import MODEL_HELP, encode, load
from fused_attention.cli.output import Output, UsageError
from fused_attention.models.generation import CACHES, CacheName, stream
from fused_attention.models.gpt import GPT
from fused_attention.models.sampling import Sampling
from fused_attention.training.tokenization import Tokenizer


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "generate",
        "let a GPT go on after a prompt",
        "fused-attention generate runs/gpt --prompt ROMEO: --tokens 300 --temperature 0.8",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--prompt", default="\n", help="default: an empty line")
    number = types.positive_int
    parser.add_argument("--tokens", type=number, default=200, help="at most; default: 200")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy; default: 0.8")
    parser.add_argument("--top-k", type=number, metavar="N", help="of the N likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="of the likeliest, up to P")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; default: 0")
    parser.add_argument("--cache", choices=CACHES, default=CACHES[0], help="of keys and values")


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    try:
        sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    except ValueError as error:
        raise UsageError(f"argument --{str(error).replace('_', '-', 1)}") from None
    model, tokenizer = load(arguments.model, GPT)
    assert isinstance(model, GPT)
    prompt = encode(tokenizer, arguments.prompt)
    if not prompt:
        raise UsageError("argument --prompt: must not be empty")
    begin = time.perf_counter()
    tokens: list[int] = []
    shown = _Shown(output, tokenizer, prompt)
    try:
        for token in go_on(model, prompt, arguments.tokens, sampling, arguments.cache):
            tokens.append(token)
            shown.add(token)
    except ValueError as error:
        raise UsageError(str(error)) from None
    seconds = time.perf_counter() - begin
    output.line("")
    text = tokenizer.decode(prompt + tokens)
    output.json({"text": text, "prompt": prompt, "tokens": tokens, "seconds": round(seconds, 3)})
    return 0


def go_on(
    model: GPT, prompt: list[int], count: int, sampling: Sampling, cache: CacheName
) -> Iterator[int]:
    """Up to `count` tokens. Where learned positions end, the last half of the text is the prompt
    of the next part."""
    limited = model.config.positions == "learned"
    limit = model.config.max_length if limited else len(prompt) + count
    text = list(prompt)
    part = 0
    while count > 0:
        seen = text[-max(1, limit // 2) :] if len(text) >= limit else text
        room = min(count, limit - len(seen))
        chosen = dataclasses.replace(sampling, seed=sampling.seed + part)
        made = 0
        for (token,) in stream(model, [seen], max_new_tokens=room, sampling=chosen, cache=cache):
            if token is None:
                return
            yield token
            text.append(token)
            made += 1
        if made < room:
            return
        count -= room
        part += 1


class _Shown:
    """Writes the text as it comes; a symbol of several tokens waits for its last one."""

    def __init__(self, output: Output, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self.quiet, self.tokenizer, self.ids = output.quiet, tokenizer, list(prompt)
        self.written = ""
        self._write()

    def add(self, token: int) -> None:
        self.ids.append(token)
        self._write()

    def _write(self) -> None:
        text = self.tokenizer.decode(self.ids)
        if self.quiet or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return
        sys.stdout.write(text[len(self.written) :])
        sys.stdout.flush()
        self.written = text
