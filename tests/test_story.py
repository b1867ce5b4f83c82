"""The story of `make demo` as a test: everything real, small data, from events to a changed list."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from larder.services.ports import any_free_port
from tests.command_line import larder


@pytest.fixture(scope="module")
def ports() -> tuple[int, int, int]:
    return any_free_port(), any_free_port(), any_free_port()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("story")


@pytest.fixture(scope="module")
def told(home: Path, ports: tuple[int, int, int]) -> subprocess.CompletedProcess[str]:
    """Every generator of the default line-up, on few users and with few trees (training/sample.py).

    Rollouts are told end to end in test_faults_end_to_end.py.
    """
    return larder(home, "demo", "--events", "80000", "--sample", "--no-rollout", ports=ports)


def test_the_demo_tells_the_whole_story(told: subprocess.CompletedProcess[str], home: Path) -> None:
    """Import, train, gate, serve, click: the list and the features changed, within a second, for a newcomer too."""
    assert told.returncode == 0, told.stderr[-3000:]
    figures = json.loads((home / "results" / "demo-simulator.json").read_text())["figures"]
    assert figures["items_changed_by_clicks"] >= 1
    assert figures["features_changed"] >= 5
    assert figures["new_user_items_changed"] >= 1
    assert figures["overlap_of_users"] < 0.9
    assert figures["visible_after_s"] < 5
    assert figures["warm.two_stage.ndcg_at_10"] > figures["warm.popularity_7d.ndcg_at_10"]
    assert figures["auc"] > 0.85
    assert figures["skew_values"] > 100_000
    assert (figures["skew_wrong"], figures["skew_missing"]) == (0, 0), told.stdout[-6000:]
    for said in ("verdict", "PASS", "is the champion", "/docs", "p95"):
        assert said in told.stdout


def test_it_cleans_up_after_itself(told: subprocess.CompletedProcess[str], home: Path) -> None:
    """Without a terminal nothing is left running."""
    assert told.returncode == 0
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []


def test_a_second_run_reuses_what_is_there(
    told: subprocess.CompletedProcess[str], home: Path, ports: tuple[int, int, int]
) -> None:
    """Data, features and champion of the first run serve the second, which does not train."""
    assert told.returncode == 0
    again = larder(home, "demo", "--once", ports=ports)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "There is a champion already" in again.stdout
    history = larder(home, "models", "history", ports=ports)
    assert history.stdout.count("promote") == 1
