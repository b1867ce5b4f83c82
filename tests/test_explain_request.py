"""`larder explain-request`: of answers a real API gave, what it says is what they were; and what it says of others."""

from __future__ import annotations

import doctest
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
import redis
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import monitoring.find_request as find
from feature_repo.errors import LarderError, NotFoundError
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from larder.cli import app
from larder.explaining import steps, words
from larder.explaining.account import account_of
from larder.explaining.page import account_page
from larder.explaining.steps import steps_of
from larder.services.ports import HOST
from larder.services.process import RunningService
from larder.session import Session
from monitoring.find_request import find_request
from serving.bundle import load_bundle
from serving.cascade.recommender import RankedItem
from serving.impressions import ImpressionRecord, SeenRecord, day_of
from tests.live_stack import active_users, live_service
from tests.running_api import wait_until

HOSTILE = "page <script>alert(1)</script> [bold] \u202e"


@dataclass(frozen=True)
class Served:
    """A shop, and lists it gave: of a known user, of the same with all candidates kept, of a stranger."""

    settings: Settings
    known: dict[str, Any]
    hostile: dict[str, Any]
    stranger: dict[str, Any]
    bought: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_server: RunningService) -> Iterator[Served]:
    settings = Settings(
        home=tmp_path_factory.mktemp("explained"), project="explained", redis_port=redis_server.port,
        redis_timeout_ms=1000, request_budget_ms=0, impression_all_candidates_share=0.0,
    )  # fmt: skip
    with redis.Redis(HOST, redis_server.port) as client:
        client.flushall()
    with live_service(settings) as api:
        (user,) = active_users(settings, 1)
        wait_until(lambda: api.ready()["feature_age_s"] is not None)
        known = api.recommend(user, k=8, explain=True)
        hostile = api.recommend(user, k=3, request_id=HOSTILE)
        stranger = api.recommend("nobody at all", k=4)
        bought = known["items"][1]["item_id"]
        event = {"user_id": user, "item_id": bought, "event_type": "purchase", "quantity": 1}
        named = {"request_id": known["request_id"], "rank": 2}
        events = [event | named | {"event_type": "view"}, event]
        assert api.http.post("/v1/events", json={"events": events}).json()["accepted"] == 2
        wait_until(lambda: len(explained(settings, known["request_id"])["outcome"]) == 2)
    yield Served(settings, known, hostile, stranger, bought)


def run(settings: Settings, *arguments: str) -> Result:
    options = ["--home", str(settings.home), "-p", settings.project]
    return CliRunner().invoke(app, [*options, "explain-request", *arguments], obj=Session())


def explained(settings: Settings, request_id: str, *arguments: str) -> dict[str, Any]:
    done = run(settings, request_id, "--json", *arguments)
    return {"outcome": []} if isinstance(done.exception, NotFoundError) else json.loads(done.stdout)


def test_it_says_what_was_answered_and_why(served: Served) -> None:
    account = explained(served.settings, served.known["request_id"])
    for name in ("request_id", "user_id", "arm", "level", "bundle_id", "model_version", "feature_age_s"):
        assert account[name] == served.known[name]
    lines = account["lines"]
    for name in ("item_id", "rank", "score", "source", "slot"):
        assert [line[name] for line in lines] == [item[name] for item in served.known["items"]]
    assert not any("fill" in step for step in account["steps"]), "a generator is called popular, too"
    assert account["reproduced"] is True, "the bundle gives the logged scores again, bit for bit"
    for line, item in zip(lines, served.known["items"], strict=True):
        if line["features"]:
            assert set(line["features"]) == set(feature_list("ranking_v1"))
            assert line["contributions"] == item["explanation"], "as the API itself explained it"
            assert line["summary"] == item["summary"]
            assert line["source"] in [one["generator"] for one in line["brought"]]
            assert line["rows"]["item_stats"]["state"] == "used"
    assert sum(bool(line["features"]) for line in lines) >= 5
    assert account["user_rows"]["user_stats"]["age_s"] > 0


def test_outcomes_are_told_with_and_without_the_request_s_name(served: Served) -> None:
    outcome = explained(served.settings, served.known["request_id"])["outcome"]
    assert [(one["event"], one["item_id"], one["named"]) for one in outcome] == [
        ("view", served.bought, True),
        ("purchase", served.bought, False),
    ]
    assert all(0 <= one["after_s"] < 60 for one in outcome)


def test_the_list_is_made_again_from_offline_features(served: Served) -> None:
    account = explained(served.settings, served.known["request_id"], "--replay")
    replayed = account["replayed"]
    assert replayed["same"] is True
    assert replayed["same_user_row"] is True
    assert replayed["shared"] == 8
    assert replayed["candidates"] == sum(one["candidates"] for one in replayed["retrieved"])
    assert all(place["replayed"] == place["served"] for place in replayed["places"])
    # The log has the same of each generator as the replay: rank 1 is somebody's first.
    assert {one["generator"] for one in replayed["retrieved"]} >= {line["source"] for line in account["lines"]} - {
        "popular"
    }


def test_a_page_and_a_terminal_take_any_id(served: Served, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    done = run(served.settings, HOSTILE, "--html", str(page), "--features")
    assert done.exit_code == 0, done.output
    html = page.read_text("utf-8")
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert "&lt;script&gt;" in html
    assert "\u202e" not in done.stdout
    assert "[bold]" in done.stdout, "no markup of an id is obeyed"
    for item in served.hostile["items"]:
        assert item["item_id"] in html
        assert item["item_id"] in done.stdout


def test_a_stranger_s_list_says_that_no_model_ranked_it(served: Served) -> None:
    account = explained(served.settings, served.stranger["request_id"])
    assert list(account["reasons"]) == ["unknown_user"]
    assert account["reproduced"] is None
    assert {line["source"] for line in account["lines"]} == {"popular"}
    assert account["user_rows"]["user_stats"]["state"] == "none"
    assert account["replayed"] is None


def test_without_its_bundle_the_log_still_speaks(served: Served, tmp_path: Path) -> None:
    found = find_request(served.settings, served.known["request_id"])
    gone = replace(found, record=msgspec.structs.replace(found.record, served_bundle="0" * 64))
    account, bundle = account_of(served.settings, gone)
    assert bundle is None
    assert any("not in the content store" in sentence for sentence in account.known)
    assert set(feature_list("ranking_v1")) <= set(account.lines[0].features)
    assert "come out" not in account_page(account)


def test_an_unknown_id_says_where_to_look(served: Served) -> None:
    settings, request_id = served.settings, served.known["request_id"]
    today = day_of(time.time_ns() // 1000)
    for asked, arguments, said in (
        ("nothing-like-it", (), "larder_impressions_dropped_total"),
        (request_id[:10], (), f"did you mean {request_id}"),
        (request_id, ("--date", "2020-01-01"), "are removed after 14 days"),
        (request_id, ("--date", "2999-01-01"), "leave --date out"),
    ):
        error = run(settings, asked, *arguments).exception
        assert isinstance(error, LarderError)
        assert said in str(error)
    assert run(settings, request_id, "--date", today, "--json").exit_code == 0
    other = run(replace(settings, project="elsewhere"), request_id).exception
    assert "has no log of answers" in str(other)
    (settings.home / "elsewhere" / "impressions" / today).mkdir(parents=True)
    other = run(replace(settings, project="elsewhere"), request_id).exception
    assert f"larder -p explained explain-request {request_id}" in str(other)
    assert "must be a day" in str(run(settings, request_id, "--date", "yesterday").exception)


def test_the_newest_of_answers_with_one_id_is_told_and_broken_lines_are_skipped(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project="shop")
    day = settings.impressions_dir / "2026-11-27"
    day.mkdir(parents=True)

    def line(request_id: str, time_us: int) -> bytes:
        items = [RankedItem('{"request_id":"inside"', 1, 0.5, "popular")]
        record = ImpressionRecord(
            request_id, time_us, "u", "stable", None, None, "popularity", 1, items, 0, 0, None, []
        )
        return msgspec.json.encode(record) + b"\n"

    (day / "1-1.jsonl").write_bytes(line("same", 1) + line("other", 2) + line("same", 5))
    (day / "2-2.jsonl").write_bytes(line("same", 3) + line("same", 9)[:60])
    (day / "3-3.jsonl").write_bytes(b"")
    found = find_request(settings, "same")
    assert (found.record.time_us, found.others) == (5, 2)
    assert (day / "1-1.jsonl").read_bytes()[found.offset :] == line("same", 5)
    with pytest.raises(NotFoundError):
        find_request(settings, "inside")


def test_steps_name_what_moved() -> None:
    listed = [RankedItem(f"i{n}", n, score, "popular") for n, score in enumerate((0.9, 0.2, 0.5, 0.1), start=1)]
    listed[0] = replace(listed[0], slot="new")
    seen = SeenRecord("s", "h", None, 3, 0, [], [], "")
    record = ImpressionRecord("r", 1, "u", "stable", "b", "1", "full", 4, listed, 0, 0, None, [], seen)
    said = " ".join(steps_of(record, None))
    assert "at ranks 3 would stand higher: diversity" in said
    assert "Rank 1 is kept for a new item: i1" in said
    assert "Popular items fill ranks 4 to 4" in said
    everything = msgspec.structs.replace(seen, candidates=["i1", "x", "i2", "i3", "y"], rows=5)
    said = " ".join(steps_of(msgspec.structs.replace(record, seen=everything), None))
    assert "5 candidates were scored; all are in the log." in said
    assert "2 candidates are not in the list." in said


def test_steps_of_a_list_that_no_model_made() -> None:
    items = [RankedItem("a", 1, 0.9, "als"), RankedItem("b", 2, 0.2, "als", "new"), RankedItem("c", 3, 0.5, "als")]
    record = ImpressionRecord("r", 1, "u", "stable", "b", "1", "full", 5, items, 0, 0, None, [])
    assert steps_of(record, None) == [
        "No candidates were ranked: the list is of the rung 'full'.",
        "5 items were asked for, 3 could be shown.",
    ]


@given(st.lists(st.sampled_from([b"ab", b"a", b"b", b"\n", b"abab"]), max_size=30).map(b"".join), st.integers(1, 9))
def test_a_search_block_by_block_finds_what_one_of_all_bytes_does(data: bytes, block: int) -> None:
    needle = b"abab"
    expected = [at for at in range(len(data)) if data[at : at + len(needle)] == needle]
    with patch.object(find, "_BLOCK", block):
        assert list(find._places(io.BytesIO(data), needle)) == expected


def test_features_ranks_and_scores_are_the_columns_the_ranker_got(served: Served) -> None:
    record = find_request(served.settings, served.known["request_id"]).record
    assert record.seen is not None
    columns = load_bundle(served.settings.bundles_dir / served.known["bundle_id"]).recommender.columns
    matrix = record.seen.unpack()[0]
    for line, row in zip(explained(served.settings, record.request_id)["lines"], matrix, strict=False):
        saw = dict(zip(columns, row.tolist(), strict=True))
        for name, value in line["features"].items():
            assert value == (None if np.isnan(saw[name]) else pytest.approx(saw[name], rel=1e-6))
        ranks = {name: rank for name, rank in saw.items() if name.endswith("_rank") and not np.isnan(rank)}
        assert ranks == {f"r_{one['generator']}_rank": one["rank"] for one in line["brought"]}
        for one in line["brought"]:
            assert one["score"] == pytest.approx(saw[f"r_{one['generator']}_score"], rel=1e-6)


@pytest.mark.parametrize("module", [words, steps])
def test_examples_in_the_docs_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).attempted
    assert doctest.testmod(module).failed == 0
