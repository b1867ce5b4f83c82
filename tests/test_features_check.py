"""The proof of sameness on the real stack while events stream in, and what it finds when something is not the same."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import Result
from typer.testing import CliRunner

from feature_repo import fold, request_features
from feature_repo.online_keys import row_key
from feature_repo.packed_row import pack_rows, unpack_rows
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.views import FOLD_VIEWS, USER_STATS
from larder.cli import app
from larder.services.ports import HOST
from larder.services.process import RunningService
from larder.session import Session
from larder.skew_result import figures
from monitoring.outcomes import Comparison, SkewReport
from monitoring.skew_check import Extent, check_features
from monitoring.skew_page import skew_page
from tests.live_stack import Sender, active_users, live_service, popular_items

VIEWS = [*(view.name for view in FOLD_VIEWS), "user_recent_items", "item_catalog", "ranking_features"]
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Checked:
    """A shop that has served while events streamed in, and what the command said meanwhile."""

    settings: Settings
    done: subprocess.CompletedProcess[str]
    events_during_the_check: int

    def run(self, **extent: Any) -> SkewReport:
        return check_features(self.settings, Extent(**{"sample": 300, **extent}), lambda *_: None)


def command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LARDER_")}
    environment |= {"LARDER_REDIS_PORT": str(settings.redis_port), "LARDER_REDIS_TIMEOUT_MS": "1000"}
    options = ["--home", str(settings.home), "-p", settings.project, "features", "check", *arguments]
    run = [sys.executable, "-m", "larder.cli", *options]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300, check=False)


def in_process(settings: Settings, *arguments: str) -> Result:
    """Run the command without waiting for its imports once more."""
    session = Session()
    session.settings = settings
    return CliRunner().invoke(app, ["features", "check", *arguments], obj=session)


@pytest.fixture(scope="module")
def checked(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    settings = Settings(
        home=tmp_path_factory.mktemp("check"), project="skewshop", redis_port=redis_server.port,
        redis_timeout_ms=1000, mlflow_tracking_uri="http://127.0.0.1:9", impression_all_candidates_share=0.05,
    )  # fmt: skip
    with live_service(settings) as api:
        users, items = active_users(settings, 30), popular_items(settings, 40)
        with Sender(str(api.http.base_url), users, items) as sender:
            for n in range(150):
                api.recommend(users[n % len(users)], k=10)
            time.sleep(0.7)  # the log of what was served is written twice a second
            before = sender.sent
            done = command(settings, "--sample", "200")
            during = sender.sent - before
    yield Checked(settings, done, during)


def impressions(settings: Settings) -> tuple[Path, Lines]:
    path = next(settings.impressions_dir.glob("*/*.jsonl"))
    return path, [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def served(checked: Checked) -> Iterator[Callable[[Callable[[Lines], Any]], Any]]:
    """Change the log of what was served; it is as it was afterwards."""
    path, _ = impressions(checked.settings)
    original = path.read_bytes()

    def change(edit: Callable[[Lines], Any]) -> Any:
        lines = impressions(checked.settings)[1]
        result = edit(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return result

    yield change
    path.write_bytes(original)


def counts(report: SkewReport, check: str = "served") -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, value in figures(report).items():
        kind, _, rest = name.partition(".")
        subject, _, outcome = rest.rpartition(".")
        if kind == check and outcome in ("match", "wrong", "late", "missing"):
            found.setdefault(subject, {})[outcome] = int(value)
    return found


def wrong(report: SkewReport, check: str = "served") -> set[str]:
    return {name for name, outcomes in counts(report, check).items() if outcomes["wrong"]}


def test_nothing_is_wrong_while_events_stream_in(checked: Checked) -> None:
    """The command passes, having compared every view and every feature; what is late is counted, not wrong."""
    assert checked.done.returncode == 0, checked.done.stdout + checked.done.stderr
    assert checked.events_during_the_check > 50
    results = json.loads((checked.settings.results_dir / "features-check.json").read_text())
    found = results["figures"]
    assert results["missed"] == []
    assert (found["wrong"], found["missing"]) == (0, 0)
    assert found["match"] > 0.8 * found["values"] > 50_000
    assert all(found[f"stores.{view}.match"] > 0.5 * found[f"stores.{view}.late"] for view in VIEWS)
    assert all(found[f"served.{name}.match"] > 0 for name in feature_list("ranking_v1"))
    assert found["late"] > 0  # the item table looks for changes now and then
    assert 0 < found["late_p95_ms"] < 10_000
    assert "0 wrong" in checked.done.stdout
    page = (checked.settings.results_dir / "features-check.html").read_text("utf-8")
    assert "The same" in page
    assert "http" not in page.replace("http-equiv", "")  # it needs nothing else


def test_everything_can_be_compared_and_is_the_same(checked: Checked) -> None:
    """At rest, without a sample: every entity of the log, every answer, and nothing late between the stores."""
    report = checked.run(sample=None)
    assert report.passed
    assert sum(outcomes["late"] for outcomes in counts(report, "stores").values()) == 0
    assert sum(counts(report)["f_user_orders"].values()) >= 10 * len(impressions(checked.settings)[1])


def test_rows_changed_and_lost_in_redis_are_found_and_named(checked: Checked) -> None:
    changed, lost = active_users(checked.settings, 2)
    keys = [row_key(checked.settings.project, USER_STATS.name, user) for user in (changed, lost)]
    with redis.Redis(HOST, checked.settings.redis_port) as client:
        originals = [client.get(key) for key in keys]
        row = unpack_rows(USER_STATS, originals[:1])
        ints = row.ints.copy()
        ints[0, USER_STATS.ints.index("user_views")] += 1
        client.set(keys[0], pack_rows(USER_STATS, ints, row.floats)[0])
        client.delete(keys[1])
        try:
            report = checked.run(only="stores", sample=None)
        finally:
            client.mset(dict(zip(keys, originals, strict=True)))
    assert not report.passed
    found = counts(report, "stores")["user_stats"]
    assert (found["wrong"], found["missing"]) == (1, len(USER_STATS.columns))
    examples = {e.outcome: e for e in report.comparisons[0].examples if e.name == "user_stats"}
    wrong_one = examples["wrong"]
    assert (wrong_one.where["feature"], wrong_one.where["user_id"]) == ("user_views", changed)
    assert int(wrong_one.here) == int(wrong_one.there) + 1
    assert examples["missing"].where["user_id"] == lost


def test_a_changed_feature_in_the_log_is_found_and_named(checked: Checked, served: Any) -> None:
    name = "f_item_price"

    def edit(lines: Lines) -> str:
        line = next(one for one in lines if one["seen"] is not None)
        seen = line["seen"]
        data = bytearray(zlib.decompress(base64.b64decode(seen["packed"])))
        place = 4 * seen["rows"] * feature_list("ranking_v1").index(name)
        value = np.frombuffer(data, "<f4", 1, place)[0]
        data[place : place + 4] = np.nextafter(value, np.float32(np.inf)).tobytes()
        seen["packed"] = base64.b64encode(zlib.compress(bytes(data))).decode()
        return line["request_id"]

    request = served(edit)
    report = checked.run(only="served")
    assert wrong(report) == {name}
    assert counts(report)[name]["wrong"] == 1
    example = next(e for e in report.comparisons[0].examples if e.outcome == "wrong")
    assert (example.name, example.where["request"]) == (name, request)
    done = in_process(checked.settings, "--only", "served", "--sample", "300")
    assert done.exit_code == 1, done.output
    assert f"WRONG {name} (request {request}" in done.output


def test_another_time_of_the_request_is_found(checked: Checked, served: Any) -> None:
    """By a second: features that depend on now differ, states do not."""

    def edit(lines: Lines) -> None:
        line = next(one for one in lines if one["seen"] is not None and one["user_seq"] > 0)
        line["time_us"] -= 1_000_000

    served(edit)
    found = wrong(checked.run(only="served"))
    assert {"f_user_days_known", "f_item_purchases_1d"} <= found
    assert not {"f_user_orders", "f_item_buyers", "f_user_mean_price"} & found


def test_an_event_that_the_log_lost_is_found(checked: Checked) -> None:
    """Rows that were used cannot be made again without it."""
    used = {line["user_seq"] for line in impressions(checked.settings)[1]}
    for path in sorted(checked.settings.events_dir.glob("day=*/live-*.parquet")):
        table = pq.read_table(path)
        if lost := sorted(used & set(table["seq"].to_pylist())):
            break
    original = path.read_bytes()
    pq.write_table(table.filter(pc.not_equal(table["seq"], lost[0])), path)
    try:
        report = checked.run(only="served")
    finally:
        path.write_bytes(original)
    assert counts(report)["f_user_orders"]["missing"] > 0
    assert not report.passed
    assert any("no event with this seq" in example.why for example in report.comparisons[0].examples)


def test_another_half_life_is_found(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the state, and of the decay from the row's time to now."""
    column = [c.name for c in USER_STATS.columns if c.kind == "float64"].index("user_views_1d")
    half_lives = fold._HALF_LIVES[0].copy()
    half_lives[column] *= 1.1
    monkeypatch.setattr(fold, "_HALF_LIVES", (half_lives, *fold._HALF_LIVES[1:]))
    assert wrong(checked.run(only="served")) == {"f_user_views_1d"}
    monkeypatch.undo()
    text, _ = request_features.FEATURES["f_item_views_7d"]
    other = (text, request_features._decayed("item_views_1d"))
    monkeypatch.setitem(request_features.FEATURES, "f_item_views_7d", other)
    assert wrong(checked.run(only="served")) == {"f_item_views_7d"}


def test_nothing_checked_is_no_pass(checked: Checked) -> None:
    """Without answers in the log the command says so and fails, though both stores agree."""
    away = checked.settings.impressions_dir.rename(checked.settings.root / "away")
    try:
        done = in_process(checked.settings, "--sample", "20")
    finally:
        away.rename(checked.settings.impressions_dir)
    assert done.exit_code == 2, done.output
    assert "nothing could be compared" in done.output
    assert "0 wrong" in done.output


def test_answers_of_other_definitions_are_left_out(checked: Checked, served: Any) -> None:
    def edit(lines: Lines) -> None:
        for line in lines[:5]:
            if line["seen"] is not None:
                line["seen"]["service_hash"] = "another"
        lines[6]["seen"]["packed"] = "AAAA"

    served(edit)
    report = checked.run(only="served")
    assert report.passed
    assert report.comparisons[0].left_out["answers of other feature definitions than today's"] == 5
    assert report.comparisons[0].left_out["damaged records"] == 1


def test_ids_are_text_on_the_page(checked: Checked) -> None:
    """Ids come from users: none of them becomes markup."""
    from monitoring.outcomes import Example

    one = Comparison("served", "<b>", "online", "offline")
    one.count("<i>view</i>", np.array([1], np.int8))
    hostile = "</script><script>alert(1)</script>"
    one.examples.append(Example(hostile, "wrong", {hostile: hostile}, hostile, hostile, hostile))
    page = skew_page(SkewReport(hostile, "now", 0.1, (one,)))
    assert "<script" not in page
    assert "<i>view" not in page
    assert page.count("&lt;script&gt;") == 8
