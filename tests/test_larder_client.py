"""The HTTP client: what it sends, how it reads answers and errors, and that it knows what the server answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import msgspec
import pytest

from larder_client import answers as client_answers
from larder_client.answers import Event, Feedback, Item
from larder_client.calls import ApiError, ApiUnavailableError
from larder_client.client import AsyncLarderClient, LarderClient
from serving import answers as server_answers
from serving import schemas
from serving.cascade.recommender import RankedItem

MADE = {
    "request_id": "r1",
    "model_version": "3",
    "bundle_id": "b",
    "arm": "stable",
    "level": "full",
    "reasons": [],
    "feature_age_s": 0.25,
    "item_table_age_s": 0.5,
}
ITEM = {"item_id": "a/b?", "rank": 1, "score": 0.5, "source": "als"}


class Api:
    """An HTTP server that keeps the requests it gets and gives the answer it was told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.status, self.body = 200, b"{}"
        self.overloaded = 0  # so many requests are answered 429 first
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                api.requests.append((f"{self.command} {self.path}", json.loads(body) if body else None))
                if api.overloaded:
                    api.overloaded -= 1
                    self.send_response(429)
                    self.send_header("retry-after", "1")
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                self.send_response(api.status)
                self.send_header("content-length", str(len(api.body)))
                self.end_headers()
                self.wfile.write(api.body)

            do_GET = do_POST = answer  # noqa: N815 - the names http.server looks for

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def will_answer(self, body: Any, status: int = 200) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.server.shutdown()
    api.server.server_close()


def test_recommendations(api: Api) -> None:
    api.will_answer({**MADE, "user_id": "u", "items": [ITEM], "a_later_field": 1})
    with LarderClient(api.url) as client:
        answer = client.recommend("u", 5, exclude=["i"], repeats="drop", request_id="r1", diversity="mmr")
        client.recommend("u")
    assert (answer.user_id, answer.items[0].rank, answer.bundle_id, answer.feature_age_s) == ("u", 1, "b", 0.25)
    assert api.requests == [
        (
            "POST /v1/recommendations",
            {"user_id": "u", "k": 5, "exclude": ["i"], "repeats": "drop", "request_id": "r1", "diversity": "mmr"},
        ),
        ("POST /v1/recommendations", {"user_id": "u", "k": 20}),
    ]
    for _, body in api.requests:
        schemas.RecommendationRequest.model_validate(body)


def test_items_scores_and_health(api: Api) -> None:
    with LarderClient(api.url) as client:
        api.will_answer({**MADE, "items": [ITEM]})
        assert client.similar("a/b?", 3).items[0].item_id == "a/b?"
        assert client.popular(category="Küche", window="1d").level == "full"
        api.will_answer({**MADE, "scores": [{"user_id": "u", "item_id": "i", "probability": 0.1, "reasons": []}]})
        assert client.score([("u", "i")]).scores[0].probability == 0.1
        api.will_answer({"status": "not_ready", "problems": ["no plan"]}, 503)
        assert client.readiness().problems == ["no plan"]
        assert not client.live()
        api.will_answer(b"larder_requests_total 1\n")
        assert client.live()
        assert client.metrics() == "larder_requests_total 1\n"
    assert [path for path, _ in api.requests[:3]] == [
        "GET /v1/items/a%2Fb%3F/similar?k=3",
        "GET /v1/items/popular?k=20&category=K%C3%BCche&window=1d",
        "POST /v1/score",
    ]
    schemas.ScoreRequest.model_validate(api.requests[2][1])
    assert api.requests[2][1] == {"pairs": [{"user_id": "u", "item_id": "i"}]}


def test_the_same_event_sent_again_is_the_same_event(api: Api) -> None:
    api.will_answer({"accepted": 1, "duplicates": 0, "rejected": 0, "results": []}, 202)
    event = Event(user_id="u", item_id="i", event_type="view", request_id="r1", rank=2)
    with LarderClient(api.url) as client:
        assert client.send([event]).accepted == 1
        client.send([event])
    assert api.requests[0] == api.requests[1]
    (sent,) = api.requests[0][1]["events"]
    schemas.EventModel.model_validate(sent)
    assert sent["event_timestamp"].endswith("Z")
    assert set(sent) == {"user_id", "item_id", "event_type", "event_id", "event_timestamp", "request_id", "rank"}
    assert Event(user_id="u", item_id="i", event_type="view").event_id != event.event_id


def test_entries_name_only_what_they_set(api: Api) -> None:
    api.will_answer({"accepted": 1, "duplicates": 0, "rejected": 0, "results": []}, 202)
    with LarderClient(api.url) as client:
        client.upsert_items([Item(item_id="i", price=5, title=None)])
        client.set_availability({"i": False})
        client.block(["i"])
        client.block(["i"], blocked=False)
    sent = [body["items"][0] for _, body in api.requests]
    assert all(path == "POST /v1/items" for path, _ in api.requests)
    for entry in sent:
        schemas.ItemModel.model_validate(entry)
        entry.pop("change_id")
    assert sent == [
        {"item_id": "i", "price": 5, "title": None},
        {"item_id": "i", "available": False},
        {"item_id": "i", "blocked": True},
        {"item_id": "i", "blocked": False},
    ]


async def test_the_client_waits_as_long_as_the_api_asks(api: Api) -> None:
    event = Event(user_id="u", item_id="i", event_type="view")
    api.will_answer({"accepted": 1, "duplicates": 0, "rejected": 0, "results": []}, 202)
    api.overloaded = 1
    with LarderClient(api.url) as client:
        assert client.send([event]).accepted == 1
    api.overloaded = 1
    async with AsyncLarderClient(api.url) as client:
        assert (await client.send([event])).accepted == 1
    assert len({json.dumps(body) for _, body in api.requests}) == 1, "the same events, with the same ids"
    api.overloaded = 2
    with LarderClient(api.url, patience_s=0) as client:
        with pytest.raises(ApiError, match="429") as caught:
            client.send([event])
        assert caught.value.retry_after_s == 1.0
        with pytest.raises(ApiError, match="429"):
            client.recommend("u")  # a page does not wait


def test_errors_carry_what_the_api_says(api: Api) -> None:
    with LarderClient(api.url) as client:
        api.will_answer({"error": {"code": "bad_input", "message": "k is 0", "field": "k", "hint": "1 to 100"}}, 422)
        with pytest.raises(ApiError, match=r"k is 0 \[422 bad_input\]; 1 to 100") as caught:
            client.recommend("u", 0)
        assert caught.value.field == "k"
        api.will_answer(b"<html>", 502)
        with pytest.raises(ApiError, match="502 http"):
            client.recommend("u")
        with pytest.raises(ApiError, match="502 http"):
            client.metrics()
        api.will_answer(b'{"items": 3}')
        with pytest.raises(ApiError, match="bad_answer"):
            client.popular()


async def test_the_asynchronous_client_does_the_same(api: Api) -> None:
    async with AsyncLarderClient(api.url) as client:
        api.will_answer({**MADE, "user_id": "u", "items": [ITEM]})
        assert (await client.recommend("u")).items[0].source == "als"
        api.will_answer({"error": {"code": "conflict", "message": "no"}}, 409)
        with pytest.raises(ApiError, match="409 conflict"):
            await client.send([])
    synchronous = {name for name in vars(LarderClient) if not name.startswith("_")}
    assert synchronous == {name for name in vars(AsyncLarderClient) if not name.startswith("_")}


async def test_no_answer_is_an_error_of_its_own(api: Api) -> None:
    api.server.shutdown()
    api.server.server_close()
    with LarderClient(api.url) as client, pytest.raises(ApiUnavailableError, match=r"POST /v1/recommendations: Conn"):
        client.recommend("u")
    async with AsyncLarderClient(api.url) as client:
        assert await client.live() is False


ITEMS = [RankedItem("i", 1, 0.5, "als", "new")]
EVENTS = [server_answers.EventResult(None, "rejected", None, "bad_time: x")]


@pytest.mark.parametrize(
    "answer",
    [
        server_answers.Recommendations(**MADE, user_id="u", items=ITEMS),
        server_answers.Recommendations(**MADE | {"model_version": None, "bundle_id": None}, user_id="u", items=[]),
        server_answers.ItemList(**MADE, items=ITEMS),
        server_answers.Scores(**MADE, scores=[server_answers.ScoredPair("u", "i", 0.5, ["unknown_user"])]),
        server_answers.EventResults(accepted=0, duplicates=0, rejected=1, retry_after_s=3, results=EVENTS),
        server_answers.ItemResults(1, 0, 0, [server_answers.ItemResult("i", "c", "accepted", 7, None)]),
        server_answers.Readiness("ready", 1, "b", "3", 9, 0.1, None, []),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_the_client_reads_what_the_server_answers(answer: Any) -> None:
    wire = msgspec.json.encode(answer)
    read = msgspec.json.decode(wire, type=getattr(client_answers, type(answer).__name__))
    sent, kept = json.loads(wire), msgspec.to_builtins(read)
    assert kept == {name: sent[name] for name in kept}


def test_the_same_feedback_sent_again_is_the_same_feedback(api: Api) -> None:
    api.will_answer({"accepted": 1, "duplicates": 0, "rejected": 0, "results": []}, 202)
    verdict = Feedback(request_id="r1", user_id="u", item_id="i", verdict="reject")
    with LarderClient(api.url) as client:
        assert client.give_feedback([verdict]).accepted == 1
        client.give_feedback([verdict])
    assert api.requests[0] == api.requests[1]
    (sent,) = api.requests[0][1]["feedback"]
    schemas.FeedbackModel.model_validate(sent)
