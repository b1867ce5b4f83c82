"""`larder search` to a verdict by command, as a user goes: search, train the winner, materialise, gate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from larder.services.ports import any_free_port
from tests.command_line import larder

#: Several trainings, each in a process of its own.
pytestmark = pytest.mark.faults
PROJECT = ("-p", "searched")


def test_the_winner_of_a_search_is_judged_by_the_gate(tmp_path: Path) -> None:
    ports = (any_free_port(), any_free_port(), any_free_port())
    best = tmp_path / "best.yaml"

    def run(*arguments: str) -> str:
        done = larder(tmp_path, *arguments, ports=ports, seed="2")
        assert done.returncode == 0, f"larder {' '.join(arguments)}: {done.stderr[-3000:]}"
        return done.stdout

    try:
        run("services", "up")
        run(*PROJECT, "data", "import", "--dataset", "simulator", "--events", "6000")
        budget = ("--trials", "2", "--cuts", "1", "--windows", "1", "--users", "60")
        said = run(*PROJECT, "search", *budget, "--out", str(best))
        assert "the best is number" in said
        assert str(best) in said
        assert "registered larder-searched version 1" in run(*PROJECT, "train", "--sample", "--settings", str(best))
        run(*PROJECT, "features", "materialize")
        judged = run(*PROJECT, "models", "gate")
        assert re.search(r"verdict for larder-searched version 1 \(bundle \w+\): (NO )?PASS", judged), judged
        for check in ("auc ", "ndcg_over_own_history", "calibration_error", "latency_p95"):
            assert check in judged, "it was measured, not only looked at"
    finally:
        larder(tmp_path, "services", "down", ports=ports)
    (manifest,) = (tmp_path / "searched" / "bundles").glob("*/manifest.json")
    made: dict[str, Any] = json.loads(manifest.read_text("utf-8"))["config"]
    wanted: dict[str, Any] = yaml.safe_load(best.read_text("utf-8"))
    generators = {name: settings for name, settings in wanted.pop("generators").items() if settings is not False}
    left_out = {"history_30d", "popular_1d", "als_60d"} - set(generators)
    trained = {one.get("name") or one["generator"]["name"]: one.get("generator", one) for one in made["line_up"]}
    for name, settings in generators.items():
        assert settings.items() <= trained[name].items(), name
    assert not left_out & set(trained)
    assert wanted.pop("fusion") == made["fusion"]
    for section, settings in wanted.items():
        assert settings.items() <= made[section].items(), section
