"""Replays the microkernels: python -m ptxsim.conformance [--json FILE] [--emulator].

Exit status: 0 all agree, 1 some differ, 3 there is no GPU to compare with.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

from ..errors import SimulationError
from . import Case, all_cases, emulate
from .driver import Device, NoDeviceError

NO_DEVICE = 3


def compare(case: Case, device: Device | None) -> dict[str, Any]:
    """One line of the report: does the emulator, does the GPU give what the manual says."""
    line: dict[str, Any] = {"case": case.name, "arch": case.arch}
    try:
        emulated = emulate.run(case)
        line["emulator"] = "agrees" if case.matches(emulated) else "differs"
    except SimulationError as error:
        emulated = None
        line["emulator"] = f"error: {error}"
    if device is None:
        return line
    if not device.runs(case):
        line["device"] = "not for this GPU"
        return line
    measured = device.run(case)
    line["device"] = "agrees" if case.matches(measured) else "differs"
    if line["device"] == "differs":
        line["first_difference"] = _first_difference(case.expected, measured)
    if emulated is not None:
        line["same_bits"] = bool(np.array_equal(emulated.view(np.uint8), measured.view(np.uint8)))
    return line


def _first_difference(expected: np.ndarray, got: np.ndarray) -> dict[str, Any]:
    at = int(np.nonzero(expected.reshape(-1) != got.reshape(-1))[0][0])
    return {
        "index": at,
        "expected": expected.reshape(-1)[at].item(),
        "got": got.reshape(-1)[at].item(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ptxsim.conformance", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="where the results are stored")
    parser.add_argument("--emulator", action="store_true", help="without a GPU")
    options = parser.parse_args(arguments)
    device = None
    if not options.emulator:
        try:
            device = Device()
        except NoDeviceError as reason:
            print(f"nothing was compared: {reason}", file=sys.stderr)
            return NO_DEVICE
    lines = [compare(case, device) for case in all_cases()]
    report = {
        "device": device.name if device else None,
        "capability": device.capability if device else None,
        "cases": lines,
    }
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    accepted = ("agrees", "not for this GPU")
    bad = [x for x in lines if {x["emulator"], x.get("device", "agrees")} - set(accepted)]
    for line in bad:
        print(line)
    where = f" and on {device.name}" if device else ""
    print(f"{len(lines) - len(bad)} of {len(lines)} cases agree on the emulator{where}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
