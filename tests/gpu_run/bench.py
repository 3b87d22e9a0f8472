"""The step `benchmark`: the set cuda-quick against torch's attention kernels, in limited time."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from fused_attention.benchmarks.headlines import headlines
from fused_attention.benchmarks.run import Report, Settings, judged_right, run
from fused_attention.benchmarks.table import time_table
from fused_attention.text import table

CASE_SECONDS = 1.2
# What the gate and the limits take beside the timing of the last case that is begun.
LAST_CASE_S = 12.0


def summary(report: Report) -> str:
    """A few words: how many results, the ratio to the best of torch's kernels."""
    results = report["results"]
    bad = [r["name"] for r in results if r["contenders"]["ours"]["status"] != "ok"]
    # The smallest speed-up is the one against the fastest peer.
    ratios = [min(r["speedup"].values()) for r in results if r["speedup"]]
    words = [f"{len(results)} results"]
    if ratios:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        words.append(f"{middle:.2f}x the speed of torch's best ({low:.2f} to {high:.2f})")
    if report["dropped"]:
        words.append(f"{len(report['dropped'])} cases not begun in time")
    if bad:
        words.append(f"ours is not right on {', '.join(bad)}")
    return "; ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the set, prints its table; 0 if something was measured and our kernels were right."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90.0, help="for all of it")
    parser.add_argument("--set", default="cuda-quick")
    options = parser.parse_args(arguments)
    settings = Settings(
        options.set,
        seconds=CASE_SECONDS,
        memory=False,
        limit_s=options.seconds - LAST_CASE_S,
    )
    report = run(settings, lambda step, weight: print(step, flush=True))
    told = {"summary": summary(report), **report}
    options.json.write_text(json.dumps(told, indent=1) + "\n")
    for threads in {result["threads"] for result in report["results"]}:
        heading, headers, rows = time_table(report, threads)
        print(f"\n{heading}\n{table([headers, *rows])}")
    print("\n".join(headlines(report)))
    return 0 if report["results"] and judged_right(report) else 1


if __name__ == "__main__":
    sys.exit(main())
