"""The page of a rollout and its report: true, escaped, for this machine only, and with nothing external."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser

import httpx
import msgspec
import pytest
import redis

from deployment.rollout.kept import status_of
from deployment.rollout.moves import Moves
from deployment.rollout.report import report_page, report_path, write_report
from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerEntry
from larder.rollout_screen import interval_text, screen, sparkline
from serving.rollout_page import rollout_view
from serving.rollout_status import (
    ArmStatus,
    Point,
    RolloutStatus,
    ShadowStatus,
    Transition,
    encode_status,
    rollout_status_key,
)
from serving.rollout_status import TestStatus as Asked
from serving.signature import signing_key
from tests.rollout_traffic import START, begin, first_champion, tiny_profile
from tests.running_api import RunningApi

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"&"


def a_status(text: str = "plain", state: str = "canary", **fields) -> RolloutStatus:
    """A rollout in the middle of it, with a text in every place a text can be."""
    tests = [
        Asked("error", "not worse", 0.001, -0.01, 0.012, 0.03, 1.2, 500.0, text),
        Asked("slow", "open", 0.0, -1.0, 1.0, 0.03, 0.5, 500.0, text),
        Asked("ctr", "worse", -0.1, -0.15, -0.05, 0.02, text=text),
        Asked(text, text, None),
    ]
    point = {"error": (0.0, -0.1, 0.1), text: (0.0, None, None)}
    values = {
        "rollout_id": text, "epoch": 4, "state": state, "step": 0, "steps": [1000, 5000], "weight": 1000,
        "paused": False, "candidate_version": text, "candidate_bundle": text, "stable_version": text,
        "stable_bundle": text, "started_at": text, "step_started_at": text, "updated_at": START.isoformat(),
        "decision": text, "reason": text,
        "arms": [
            ArmStatus("canary", text, text, 12_345, 678, {"error": 3, text: 4}, 5.0, 9.0, 7, 1, 0.01, 0.001),
            ArmStatus(text, text, text),
        ],
        "tests": tests,
        "shadow": ShadowStatus(100, 1, 0, 0.7, 0.5, 0.01, 20.0, 10.0, {f"category {text}": 0.2}),
        "history": [Transition(text, "shadow", -1, 0, text, text), Transition(text, text, 0, 1000, text, text)],
        "series": [Point(text, weight, {text: 5}, point) for weight in (1000, 1000, 5000)],
    }  # fmt: skip
    return RolloutStatus(**(values | fields))


class Elements(HTMLParser):
    """Names of all elements, and of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("state", ["shadow", "canary", "champion", "rolled_back", "rejected", "aborted", EVIL])
def test_no_text_of_anybody_becomes_markup(state):
    view = rollout_view(a_status(EVIL, state), START)
    found = Elements(view)
    assert not {"script", "img", "iframe", "link", "a"} & set(found.elements)
    assert not {name for name in found.attributes if name.startswith("on")} | {"src", "href"} & found.attributes
    assert "&lt;script&gt;" in view


def test_the_view_says_what_an_operator_asks():
    view = rollout_view(a_status(reason="waiting: 71 of 100 requests"), START + timedelta(seconds=90))
    for words in (
        "canary at 10 % of users", "waiting: 71 of 100 requests", "90 s ago", "12,345", "3 (0.02%)", "not worse",
        "+0.10", "1.2 of 500", "Segments that differ most", "20.0%", "Over time",
    ):  # fmt: skip
        assert words in view, words


def test_a_report_is_one_file_that_needs_nothing(settings):
    store = first_champion(settings)
    current = begin(settings, tiny_profile())
    evil = msgspec.structs.replace(current.rollout, reason=EVIL)
    entry = LedgerEntry(1, EVIL, EVIL, "abort", EVIL, 2, "", "", "", {}, "", "")
    page = report_page(msgspec.structs.replace(current.kept, rollout=evil), [entry], 2, START)
    found = Elements(page)
    assert not {"script", "img", "iframe", "link", "a"} & set(found.elements)
    assert not {"src", "href"} & found.attributes
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page
    assert "for tests" in page
    path = write_report(settings, current, store, None)
    assert path == report_path(settings, current.row.rollout_id)
    assert "rollout_start" in path.read_text("utf-8")


def test_the_api_shows_the_rollout_to_this_machine_only(settings, redis_url):
    with redis.Redis.from_url(redis_url) as client, RunningApi(settings) as api:
        assert api.http.get("/admin/rollout/status.json").status_code == 404
        page = api.http.get("/admin/rollout")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        assert not re.search(r"https?://|src=|url\(|@import", page.text)
        client.set(rollout_status_key(settings.project), encode_status(a_status(EVIL)))
        assert api.http.get("/admin/rollout/status.json").json()["reason"] == EVIL
        view = api.http.get("/admin/rollout/view")
        assert (view.status_code, view.headers["cache-control"]) == (200, "no-store")
        assert "&lt;script&gt;" in view.text
        for path in ("/admin/rollout", "/admin/rollout/view", "/admin/rollout/status.json"):
            other = httpx.get(f"{api.http.base_url}{path}", headers={"Host": "shop.example"})
            assert other.status_code == 403
        client.set(rollout_status_key(settings.project), b"{")
        assert api.http.get("/admin/rollout/view").status_code == 422
    assert "sha256-" in policy


def test_status_without_a_controller_comes_from_the_store(settings):
    first_champion(settings)
    begin(settings)
    moves = Moves(settings, ControlStore(settings, signing_key(settings)), signing_key(settings))
    current = moves.current()
    assert current is not None
    status = status_of(current.kept, 2, START)
    assert (status.state, status.weight, status.decision) == ("canary", 2000, "advance")
    assert "20 %" in rollout_view(status, START)


def test_the_terminal_shows_intervals_as_bars():
    error = Asked("error", "open", 0.005, -0.01, 0.02, 0.03)
    bar = interval_text(error)
    assert (bar.index("╺"), bar.index("●"), bar.index("╸"), bar.index("┊")) == (14, 17, 19, 21)
    assert interval_text(Asked("ctr", "open", -0.02, -0.05, 0.01, 0.03), low_is_bad=True).index("┊") == 11
    assert interval_text(Asked("ratio", "open")) == ""
    assert sparkline([1.0, 0.5, 0.25, 0.0]) == "█▅▃▁"
    assert sparkline([]) == ""


def test_the_terminal_takes_any_text(capsys):
    from rich.console import Console

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        Console(force_terminal=False, width=160).print(screen(a_status("[red]x[/red]")))
    said = capsys.readouterr().out
    assert "shadow → [10 %] → 50 % → champion" in said
    assert "[red]x[/red]" in said
