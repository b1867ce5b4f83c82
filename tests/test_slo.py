"""The verdict on a load test: what Locust says, held against the objectives."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from load_tests.slo import Objectives, judge

DEMANDED = Objectives()


def stats(**changed: Any) -> list[dict[str, Any]]:
    """A thousand lists in twenty seconds, all well."""
    lists = {
        "name": "recommend",
        "num_requests": 1000,
        "num_failures": 0,
        "response_times": {"10": 940, "40": 55, "90": 5},
    }
    return [lists | changed, {"name": "send", "num_requests": 100, "num_failures": 0, "response_times": {"900": 100}}]


def test_what_is_well_misses_nothing() -> None:
    found = judge(stats(), 50.0, 20.0, DEMANDED)
    assert found["missed"] == []
    assert found["figures"] | {"rate_share": 1.0, "p50_ms": 10.0, "p95_ms": 40.0, "p99_ms": 40.0} == found["figures"]


@pytest.mark.parametrize(
    ("missed", "changed", "more"),
    [
        ("rate_share", {"num_requests": 900}, []),
        ("error_share", {"num_failures": 5}, []),
        ("p95_ms", {"response_times": {"10": 900, "60": 100}}, []),
        ("p99_ms", {"response_times": {"10": 980, "300": 20}}, []),
        (
            "degraded_share",
            {},
            [{"name": "degraded", "num_requests": 20, "num_failures": 0, "response_times": {"0": 20}}],
        ),
    ],
)
def test_each_objective_is_missed_alone(missed: str, changed: dict[str, Any], more: list[dict[str, Any]]) -> None:
    assert judge([*stats(**changed), *more], 50.0, 20.0, DEMANDED)["missed"] == [missed]


def test_no_list_at_all_misses_what_is_about_lists() -> None:
    missed = judge([], 50.0, 20.0, DEMANDED)["missed"]
    assert {"rate_share", "p95_ms", "p99_ms"} <= set(missed)


def test_people_come_one_by_one_and_keep_the_rate() -> None:
    """Locust lets all begin at once: at a constant pace they asked in salvos. It patches sockets: hence a process."""
    program = """
import json, random, time
from load_tests.shopper import Shopper
time.monotonic = lambda: 100.0
came = []
for number in range(200):
    person = Shopper.__new__(Shopper)
    person.came, person.visits, person.random = 100.0, 0, random.Random(number)
    came.append([person.wait_time() for _ in range(5)])
print(json.dumps(came))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    moments = np.array(json.loads(done.stdout))
    assert (np.floor(moments) == np.arange(5)).all(), "one visit of everybody in each second"
    assert np.histogram(moments, 100, (0.0, 5.0))[0].max() < 30, "of 1,000 visits, in 50 ms"
    assert np.ptp(np.diff(moments, axis=1)) > 1.0, "not in the same order every second"
