"""The status page: true, escaped, for this machine only, the sum of all processes, and alive in a real Chromium."""

from __future__ import annotations

import doctest
import re

import httpx
import msgspec
import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST
from serving import status_samples
from serving.ingest_status import IngestView
from serving.metrics import Metrics
from serving.redis_client import RedisGuard
from serving.state import ServingState
from serving.status_charts import line_chart, share_chart, stretch_chart
from serving.status_history import StatusHistory
from serving.status_page import Facts, status_view
from serving.status_samples import EVERY_S, Sample, merged, quantile
from tests.chromium import chromium_page
from tests.running_api import RunningApi, open_shop, wait_until
from tests.test_rollout_page import EVIL, Elements

FACTS = Facts(
    project="shop", ready=True, problems=[], epoch=4,
    arms=[("stable", "3", "b" * 32, 90.0), ("canary", "4", "c" * 32, 10.0)],
    items=1234, item_table_age_s=0.4, feature_age_s=0.2, ingest_lag_s=0.1, updated_s=0.5, stream_entries=12_345,
    quarantine_waiting=7, processes=2, answering=1,
)  # fmt: skip


def a_sample(at: int = 100, **fields) -> Sample:
    values = {
        "at": at, "statuses": {"2xx": 198.0, "5xx": 2.0}, "levels": {"full": 180.0, "item_side": 18.0},
        "arms": {"stable": 178.0, "canary": 20.0}, "buckets": {"0.01": 150.0, "0.02": 48.0}, "events": 40.0,
        "folded": 21.0, "feature_age_s": 0.5, "ingest_lag_s": 0.1, "breakers": (False, True),
    }  # fmt: skip
    return Sample(**(values | fields))


def test_doctests() -> None:
    assert doctest.testmod(status_samples, raise_on_error=False).failed == 0


def test_the_view_says_what_an_operator_asks() -> None:
    view = status_view(FACTS, [a_sample(at) for at in range(100, 700, EVERY_S)])
    for words in (
        "ready", "version 3 answers", "canary 4 at 10 % of users", "plan epoch 4", "1 of 2 processes answer", "100.0",
        "1.0%", "9.1%", "12,345", "1,234 items", "7 refused rows", "item side", "Redis left alone",
    ):  # fmt: skip
        assert words in view, words
    assert view.count("<svg") == 7
    assert "class=alarm" in view


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"problems": [EVIL]}, ">degraded<"),
        ({"ready": False, "arms": [], "items": None, "updated_s": None}, ">not ready<"),
    ],
)
def test_it_shows_what_is_wrong_without_samples_too(facts: dict, word: str) -> None:
    assert word in status_view(msgspec.structs.replace(FACTS, **facts), [])


def test_no_text_of_anybody_becomes_markup() -> None:
    facts = msgspec.structs.replace(FACTS, project=EVIL, problems=[EVIL], arms=[(EVIL, EVIL, EVIL, 100.0)])
    found = Elements(status_view(facts, [a_sample()]))
    assert not {"script", "img", "iframe", "link", "a"} & set(found.elements)
    assert not {name for name in found.attributes if name.startswith("on")} | {"src", "href"} & found.attributes


def test_samples_of_processes_are_added_up() -> None:
    first = [a_sample(at) for at in (100, 102, 104)]
    second = [a_sample(at, feature_age_s=None, folded=30.0, breakers=(True, False)) for at in (100, 102)]
    both = merged([msgspec.json.encode(first), msgspec.json.encode(second)])
    assert [sample.at for sample in both] == [100, 102], "what one has not sampled yet is no dip"
    assert both[0].lists == 400
    assert both[0].buckets == {"0.01": 300.0, "0.02": 96.0}
    assert (both[0].feature_age_s, both[0].folded, both[0].breakers) == (0.5, 30.0, (True, True))


async def test_what_ingest_said_long_ago_says_nothing_of_now() -> None:
    state = ServingState(
        items=None, ingest=IngestView(rate=30.0, lag_ms=200.0, updated_ms=1_000_000, watermark_ms=999_000)
    )  # type: ignore[arg-type]
    guards = (RedisGuard(1.0), RedisGuard(1.0))
    history = StatusHistory(Metrics(), state, guards)
    for now_s in (1001, 1001.5, 1020):
        await history.take(int(now_s * 1e6))
    soon, late = msgspec.json.decode(history.encoded(), type=list[Sample])
    assert (soon.at, soon.folded, soon.ingest_lag_s, soon.feature_age_s) == (1000, 30.0, 0.2, 2.0)
    assert (late.at, late.folded, late.ingest_lag_s, late.feature_age_s) == (1020, None, None, 21.0)


def test_quantiles_are_those_of_prometheus() -> None:
    assert quantile({"0.01": 150.0, "0.02": 50.0}, 0.5) == pytest.approx(0.01 * 100 / 150)
    assert quantile({"0.01": 150.0, "0.02": 50.0}, 0.95) == pytest.approx(0.01 + 0.01 * 40 / 50)


def test_charts_take_gaps_and_lonely_values() -> None:
    chart = line_chart({"p95": [None, 5.0, None, 7.0, 8.0]}, " ms", limit=6.0)
    assert chart.count("<polyline") == 2
    assert "class=margin" in chart
    assert "10 ms" in chart
    assert "class=margin" not in line_chart({"p95": [1.0, 2.0]}, " ms", limit=100.0), "an objective far away hides all"
    shares = share_chart(
        {"full": [None, 3.0, 0.0, 1.0], "rest": [None, 1.0, 0.0, 1.0]}, {"full": "green", "rest": "red"}
    )
    assert shares.count("<polygon") == 4
    assert stretch_chart({"reads": [True, False, True, True]}).count("class=alarm") == 2
    assert "nan" not in line_chart({"nothing": []}, "")


def test_the_api_shows_it_to_this_machine_only(settings: Settings, redis_url: str) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        page = api.http.get("/status")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        assert not re.search(r"https?://|src=|url\(|@import", page.text)
        for n in range(30):
            api.recommend(f"u{n:05}", k=5)

        def rate() -> float:
            return float(re.search(r"lists a second</span><b>([\d.]+)", api.http.get("/status/view").text)[1])

        wait_until(lambda: rate() > 0)
        assert api.http.get("/status/view").headers["cache-control"] == "no-store"
        for path in ("/status", "/status/view"):
            other = httpx.get(f"{api.http.base_url}{path}", headers={"Host": "shop.example"})
            assert other.status_code == 403
            assert api.http.post(path).status_code == 405, "it reads only"


def test_it_lives_in_a_browser(settings: Settings, redis_url: str) -> None:
    with redis.Redis(HOST, settings.redis_port) as client, chromium_page() as page:
        open_shop(settings, client)
        with RunningApi(settings) as api:
            base = str(api.http.base_url)
            page.open(f"{base}/status")
            page.wait_until("document.querySelectorAll('svg').length === 7")
            for n in range(20):
                api.recommend(f"u{n:05}", k=5)
            tile = "document.querySelector('.tile b').textContent"
            page.wait_until(f"Number({tile}) > 0")
            assert page.value("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
            page.open(f"{base}/status", width=400)
            page.wait_until("document.querySelectorAll('svg').length === 7")
            assert page.value("document.documentElement.scrollWidth <= window.innerWidth"), "nor on a telephone"
            assert page.complaints == []
            assert {url for url in page.requests if not url.startswith(base)} == set()
            # The policy holds: a script that got into the page does not run, and nothing foreign is asked.
            page.value(
                "document.body.appendChild(Object.assign(document.createElement('script'), {text: 'window.evil = 1'}))"
            )
            assert page.value("window.evil") is None
            assert any("Content Security Policy" in complaint for complaint in page.complaints)
            page.open(f"{base}/admin/rollout")
            page.wait_until("document.getElementById('gone').textContent.includes('no rollout was ever started')")
            page.open(f"{base}/status")
            page.wait_until("document.querySelectorAll('svg').length === 7")
        page.wait_until("!document.getElementById('gone').hidden")
        assert "No answer for" in page.value("document.getElementById('gone').textContent")
