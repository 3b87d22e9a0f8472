"""fused-attention demo: this machine, its accuracy and its speed in two minutes, with pictures."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fused_attention import arguments as types
from fused_attention.benchmarks.run import Settings, judged_right
from fused_attention.benchmarks.run import run as run_set
from fused_attention.cli import bench, check, info
from fused_attention.cli.output import Output, UsageError, require

DEFAULT_FOLDER = Path("fused-attention-demo")
DTYPES = ("fp32", "bf16")
SECONDS_PER_CASE = 1.0
PICTURES_WEIGHT = 3.0


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "demo",
        "show this machine, check the backends, run a small benchmark and draw pictures",
        "fused-attention demo --out somewhere",
        run,
    )
    parser.add_argument(
        "--out",
        type=types.output_folder,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help=f"for pictures and JSON (default: ./{DEFAULT_FOLDER})",
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    for module in ("rich", "matplotlib"):
        require(module)
    begin_s = time.monotonic()
    machine = info.gather()
    info.show(output, machine)
    settings = Settings(seconds=SECONDS_PER_CASE)
    names = check.available_backends()
    weight = check.weight(names, DTYPES) + settings.weight + PICTURES_WEIGHT
    with output.progress(weight) as begin:
        results = list(check.check(names, DTYPES, 0, begin))
        report = run_set(settings, begin)
        begin("pictures", PICTURES_WEIGHT)
        accuracy = check.as_json(results)
        files = bench.write(report, arguments.out)
        files += _write_json(arguments.out, {"info": machine, "check": accuracy})
    check.show(output, results)
    bench.show(output, report)
    output.heading(f"Written in {time.monotonic() - begin_s:.0f} seconds")
    for path in sorted(files):
        output.line(str(path))
    documents = {"info": machine, "check": accuracy, "bench": report}
    output.json({**documents, "files": [str(path) for path in files]})
    return 0 if check.passed(results) and judged_right(report) else 1


def _write_json(folder: Path, documents: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{name}.json" for name in documents]
    try:
        for path, values in zip(paths, documents.values(), strict=True):
            path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"argument --out: cannot write {folder}: {error.strerror}") from None
    return paths
