"""Why an item is in a list: the words, and the answer of a running API with `explain`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from feature_repo.request_features import OUTPUTS
from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from larder_client.client import AsyncLarderClient, LarderClient
from serving import explainer as explaining
from serving.bundle import load_bundle
from serving.cascade.explanation import TOP, describe, explain_below, explain_row, explain_unscored
from serving.cascade.recommender import Recommender, Slate
from serving.explainer import Explainer
from serving.impressions import read_impressions
from tests.running_api import RunningApi, open_shop, plan_for, publish, wait_until
from tests.tiny_bundle import Shop, make_bundle

COLUMNS = ("f_pair_orders", "f_user_mean_price", "r_history_rank", "r_als_score", "f_item_price")


def texts(row: list[float], shap: list[float], **options: Any) -> list[str]:
    why = explain_row(COLUMNS, np.array(row, np.float32), np.array(shap), **options)
    return [one.text for one in why.contributions]


def test_contributions_are_said_in_words_the_largest_first() -> None:
    assert texts([4, 1250.4, 3, 0.25, np.nan], [0.82, -0.5, 0.3, -0.04, 0.1, -2]) == [
        "User's orders with the item: 4 (raises the score by 0.82)",
        "Mean unit price the user paid, minor units: 1,250 (lowers the score by 0.50)",
        "Place in the list by the user's own history: 3 (raises the score by 0.30)",
        "Item's price, minor units: unknown (raises the score by 0.10)",
        "Score by what users alike took (ALS): 0.25 (lowers the score by 0.04)",
    ]


def test_only_the_top_is_named_and_nothing_that_moved_nothing() -> None:
    assert len(texts([1] * 5, [5, 4, 3, 2, 1, 0], top=2)) == 2
    assert texts([1, 1, np.nan, 1, 1], [0, 0, -1, 0, 0, 0]) == [
        "Place in the list by the user's own history: not in it (lowers the score by 1.00)"
    ]


def test_an_explanation_has_the_numbers_and_the_sum() -> None:
    why = explain_row(COLUMNS, np.array([4, np.nan, 1, 0.1, 2], np.float32), np.array([1, 0.5, -0.25, 0.1, 0, -2.0]))
    assert why.summary == (
        "The model's score is -0.65: -2.00 on average, +1.35 by what it knows of this user and item."
    )
    first, second, _, fourth = why.contributions
    assert (first.feature, first.value, first.contribution) == ("f_pair_orders", 4.0, 1.0)
    assert second.value is None
    assert fourth.value == 0.1, "as many digits as a float32 has"


def test_every_column_a_ranker_may_have_is_described() -> None:
    for name, doc in OUTPUTS:
        assert describe(name) == doc
    for generator in ("history", "popular", "category", "als", "similar"):
        for kind in ("score", "rank"):
            words = describe(f"r_{generator}_{kind}")
            assert words.startswith(("Score by ", "Place in the list by "))
            assert "_" not in words
    assert describe("r_new_one_rank") == "Place in the list by new_one"
    assert describe("something") == "something"


def test_what_no_model_scored_says_so() -> None:
    for source in ("popular", "popular_file", "elsewhere"):
        why = explain_unscored(source)
        assert why.summary.startswith("No model scored it: ")
        assert why.contributions == []
    assert explain_unscored("popular").summary != explain_unscored("popular_file").summary


# --- through the API ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(redis_server: RunningService) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, redis_server.port) as client:
        yield client


@pytest.fixture(scope="module")
def opened(
    redis_server: RunningService, client: redis.Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningApi, Shop, str]]:
    settings = Settings(
        home=tmp_path_factory.mktemp("explain"), project="explain", redis_port=redis_server.port, redis_timeout_ms=1000
    )
    shop, bundle_id = open_shop(settings, client)
    with RunningApi(settings) as api:
        wait_until(lambda: api.ready()["status"] != "not_ready")
        yield api, shop, bundle_id


@pytest.fixture
def api(opened: tuple[RunningApi, Shop, str]) -> RunningApi:
    return opened[0]


def test_an_explained_list_is_the_same_list(api: RunningApi) -> None:
    plain = api.recommend("u00003", k=7)
    explained = api.recommend("u00003", k=7, explain=True)
    assert explained["reasons"] == []
    for before, item in zip(plain["items"], explained["items"], strict=True):
        assert set(before) == {"item_id", "rank", "score", "source", "slot"}, "nothing is added where nobody asked"
        assert (item["item_id"], item["rank"], item["source"]) == (before["item_id"], before["rank"], before["source"])
        assert item["summary"].startswith("The model's score is ")
        assert 0 < len(item["explanation"]) <= TOP
        sizes = [abs(one["contribution"]) for one in item["explanation"]]
        assert sizes == sorted(sizes, reverse=True)
        for one in item["explanation"]:
            assert one["text"].startswith(describe(one["feature"]) + ": ")
            assert ("raises" if one["contribution"] > 0 else "lowers") in one["text"]


def test_the_contributions_are_those_of_the_model(opened: tuple[RunningApi, Shop, str]) -> None:
    api, shop, bundle_id = opened
    recommender = load_bundle(api.settings.bundles_dir / bundle_id).recommender
    answer = api.recommend("u00003", k=5, explain=True)
    draft = recommender.draft(shop.user("u00003"), shop.table(), time.time_ns() // 1000, k=5)
    slate = recommender.finish(draft, shop.pair_rows("u00003", draft.item_ids))
    shap = recommender.ranker.contributions(slate.matrix[slate.ranked])
    for item, row, one in zip(answer["items"], slate.matrix[slate.ranked], shap, strict=True):
        for part in item["explanation"]:
            column = recommender.columns.index(part["feature"])
            # The API decays to its own "now", a moment earlier.
            assert part["contribution"] == pytest.approx(one[column], abs=1e-4)
            if part["value"] is None:
                assert np.isnan(row[column])
            else:
                assert part["value"] == pytest.approx(float(row[column]), rel=1e-2)


def test_strangers_and_fillers_are_explained_in_words(api: RunningApi) -> None:
    for answer in (api.recommend("nobody", k=4, explain=True), api.recommend("u00003", k=45, explain=True)):
        last = answer["items"][-1]
        assert last["source"] == "popular"
        assert (last["explanation"], last["summary"]) == ([], explain_unscored("popular").summary)


def test_far_down_a_long_list_nothing_is_explained(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "EXPLAINED", 3)
    items = api.recommend("u00003", k=10, explain=True)["items"]
    assert all(item["explanation"] for item in items[:3])
    assert {item["summary"] for item in items[3:]} == {explain_below(3).summary}


def test_the_log_of_impressions_keeps_the_list_only(api: RunningApi) -> None:
    api.recommend("u00004", k=3, request_id="explained", explain=True)
    record = wait_until(
        lambda: next((r for r in read_impressions(api.settings.impressions_dir) if r.request_id == "explained"), None)
    )
    assert [item.rank for item in record.items] == [1, 2, 3]
    text = "".join(path.read_text("utf-8") for path in api.settings.impressions_dir.glob("*/*.jsonl"))
    assert "summary" not in text


async def test_the_client_reads_explanations(api: RunningApi) -> None:
    url = str(api.http.base_url)
    with LarderClient(url) as client:
        first = client.recommend("u00003", 3, explain=True).items[0]
        assert client.recommend("u00003", 3).items[0].explanation is None
    async with AsyncLarderClient(url) as other:
        same = (await other.recommend("u00003", 3, explain=True)).items[0]
    assert first.summary is not None and first.explanation is not None and same.explanation is not None
    assert [one.feature for one in same.explanation] == [one.feature for one in first.explanation]
    assert "the score by" in first.explanation[0].text


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_explain_is_a_boolean(api: RunningApi, wrong: Any) -> None:
    response = api.http.post("/v1/recommendations", json={"user_id": "u", "explain": wrong})
    assert response.status_code == 422
    assert response.json()["error"]["field"] == "body.explain"


def test_the_description_of_the_api_has_both_kinds_of_lines(api: RunningApi) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    assert {"summary", "explanation"} <= set(schemas["ExplainedItem"]["properties"])
    assert schemas["Contribution"]["properties"]["contribution"]["description"]
    lines = schemas["Recommendations"]["properties"]["items"]["items"]["anyOf"]
    assert {line["$ref"].rpartition("/")[2] for line in lines} == {"ExplainedItem", "RankedItem"}


def test_asking_why_keeps_nobody_waiting(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """While explanations take long, plain lists come at once; too many at a time are answered without."""
    go = threading.Event()
    real = Recommender.explain

    def slow(self: Recommender, slate: Slate, limit: int) -> Any:
        assert go.wait(20)
        return real(self, slate, limit)

    monkeypatch.setattr(Recommender, "explain", slow)
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with httpx.Client(base_url=api.http.base_url, timeout=30) as http:
            answers.append(http.post("/v1/recommendations", json={"user_id": "u00003", "k": 3, "explain": True}).json())

    threads = [threading.Thread(target=ask) for _ in range(explaining.MAX_ASKED + 2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) == 2)  # those over the limit
    began = time.monotonic()
    assert api.recommend("u00005", k=3)["level"] == "full"
    assert time.monotonic() - began < 5
    go.set()
    for thread in threads:
        thread.join(30)
    unexplained = [answer for answer in answers if answer["reasons"] == ["explanation_unavailable"]]
    assert len(unexplained) == 2
    assert all(len(answer["items"]) == 3 for answer in answers)
    assert all("explanation" not in item for answer in unexplained for item in answer["items"])
    assert "explanation" in api.recommend("u00003", k=3, explain=True)["items"][0], "the next ones are explained again"


def test_a_model_that_cannot_explain_still_recommends(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no SHAP values")

    failures = api.metric("larder_model_failures_total")
    monkeypatch.setattr(Recommender, "explain", broken)
    answer = api.recommend("u00003", k=3, explain=True)
    assert (answer["level"], answer["reasons"]) == ("full", ["explanation_unavailable"])
    assert len(answer["items"]) == 3
    assert api.metric("larder_model_failures_total") == failures + 1


def test_without_a_model_the_words_say_so(settings: Settings, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        open_shop(settings, client)
        publish(client, settings, plan_for("0" * 32, epoch=2))
        with RunningApi(settings) as api:
            wait_until(lambda: api.app.state.serving.table is not None)
            answer = api.recommend("u00003", k=3, explain=True)
    assert answer["level"] == "popularity"
    assert {item["summary"] for item in answer["items"]} == {explain_unscored("popular").summary}


def test_lightgbm_is_served_and_explained_too(settings: Settings, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        shop, _ = open_shop(settings, client)
        bundle_id = make_bundle(settings.bundles_dir, shop, kind="lightgbm")
        publish(client, settings, plan_for(bundle_id, epoch=2))
        with RunningApi(settings) as api:
            wait_until(lambda: api.ready()["bundle_id"] == bundle_id)
            answer = api.recommend("u00003", k=3, explain=True)
    assert answer["level"] == "full"
    assert all(item["explanation"] for item in answer["items"])


async def test_one_who_has_gone_is_counted_until_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    go, explainer = threading.Event(), Explainer()
    slate = Slate([], np.empty((0, 0), np.float32), np.empty(0, np.intp))

    class Blocked:
        def explain(self, slate: Slate, limit: int) -> list[Any]:
            go.wait(20)
            return []

    blocked: Any = Blocked()
    monkeypatch.setattr(explaining, "MAX_ASKED", 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(explainer.explain(blocked, slate), 0.05)
    assert await explainer.explain(blocked, slate) is None
    go.set()
    for _ in range(200):
        if (found := await explainer.explain(blocked, slate)) is not None:
            break
        await asyncio.sleep(0.01)
    assert found == []
    explainer.stop()
