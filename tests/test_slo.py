"""The verdict on a load test: what Locust says, held against the objectives."""

from __future__ import annotations

from typing import Any

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
