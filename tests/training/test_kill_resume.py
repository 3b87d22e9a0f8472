"""kill -9 at random moments: nothing is torn, and the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import sys

import pytest
from training import kill_resume


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason=f"{sys.platform} cannot fork")
@pytest.mark.parametrize("model, kills", [("attention", 4), ("recurrent", 3)])
def test_a_killed_run_ends_like_an_undisturbed_one(model, kills):
    report = kill_resume.compare(kills, model=model)
    assert kill_resume.passed(report, kills), report
    reached = report["checkpoints at the kills"]
    assert reached == sorted(reached)
    assert reached[-1] < report["steps"]
