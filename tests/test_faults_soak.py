"""A minute of load with Redis killed, stopped and cut off at random moments: nothing fails, nothing piles up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.soak import soak

pytestmark = pytest.mark.faults

SECONDS = 60.0
SEED = int(os.environ.get("LARDER_FAULTS_SEED", "7"))


def test_a_short_soak(tmp_path: Path) -> None:
    done = soak(tmp_path, SECONDS, SEED)
    print(f"seed {SEED}: { ({name: round(value, 2) for name, value in done.figures.items()}) }, {done.faults}")
    figures = done.figures
    assert figures["answers"] > 0.8 * 50 * SECONDS
    assert figures["server_errors"] == figures["unanswered"] == figures["restarts"] == 0
    assert figures["marked_share"] > 0.05, "the faults did not reach it"
    assert figures["shed_share"] < 0.2
    assert figures["recovery_s"] < 10.0
    assert figures["threads_growth"] <= 4
    assert figures["descriptors_growth"] <= 16
    # Of forty seconds a slope says little: 200 MB per 10 minutes would be 13 MB.
    assert figures["memory_slope_mb_per_10min"] < 200.0
