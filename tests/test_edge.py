"""Around the API's answers: logs, request ids, other origins' pages, caches."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import redis

from feature_repo.settings import Settings, SettingsError
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.cascade.recommender import Recommender
from serving.cors import allowed_origins
from serving.impression_log import ShadowLog
from serving.impressions import ShadowRecord
from serving.item_lists import ItemListService
from serving.logs import formatter_of
from serving.metrics import Metrics
from serving.request_id import begin_request
from serving.shadow import Shadow
from serving.state import ServingState
from tests.running_api import RunningApi, open_shop

SHOP = "https://shop.example"


@pytest.fixture(scope="module")
def api(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    settings = Settings(
        home=tmp_path_factory.mktemp("edge"), project="edge", redis_port=redis_server.port, redis_timeout_ms=1000,
        cors_origins=f"{SHOP}, http://localhost:3000",
    )  # fmt: skip
    with redis.Redis(HOST, redis_server.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api


@contextlib.contextmanager
def logged(log_format: str) -> Iterator[list[str]]:
    """Lines that the process writes meanwhile."""
    stream, lines = io.StringIO(), []
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter_of(log_format))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        lines += stream.getvalue().split("\n")[:-1]


NASTY = 'u1\n2026-01-01 00:00:00.000 INFO serving: all is well\r\x1b[2J\x9b31m\u2028\u202e\x00\ud800 {"level": 1}'
SECRETS = {
    "postgresql://larder:hunter2@db/larder": "hunter2",
    "redis://:hunter2@127.0.0.1:6379": "hunter2",
    "Authorization: Bearer hunter2.x-y": "hunter2.x-y",
    "{'LARDER_SIGNING_KEY': 'hunter2'}": "hunter2",
    "admin_token=hunter2": "hunter2",
    'password: "hunter2"': "hunter2",
}


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("where", ["argument", "exception"])
def test_no_id_makes_a_line_of_its_own(log_format: str, where: str) -> None:
    log = logging.getLogger("serving.test")
    with logged(log_format) as lines:
        if where == "argument":
            log.error("user %s is unknown", NASTY)
        else:
            try:
                raise ValueError(NASTY)
            except ValueError:
                log.exception("it failed")
    text = "\n".join(lines)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800]", text)
    ours = [line for line in lines if not line.startswith("  | ")]
    assert len(ours) == 1, "tracebacks are indented, and nothing else has a line of its own"
    if log_format == "json":
        assert len(lines) == 1
        said = json.loads(lines[0])
        assert NASTY in said["message" if where == "argument" else "error"], "and yet nothing is lost"
        assert (said["level"], said["logger"]) == ("ERROR", "serving.test")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_is_logged(log_format: str, text: str) -> None:
    with logged(log_format) as lines:
        logging.getLogger("serving.test").error("cannot connect: %s", text)
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("serving.test").exception("it failed")
    assert SECRETS[text] not in "\n".join(lines)
    assert "\n".join(lines).count("***") >= 2


def test_a_line_has_an_end() -> None:
    with logged("json") as lines:
        logging.getLogger("serving.test").error("x" * 10**6)
    assert len(lines[0]) < 5_000


def test_there_are_two_formats() -> None:
    with pytest.raises(SettingsError, match="text or json, not 'xml'"):
        formatter_of("xml")


def test_every_line_of_a_request_has_its_id(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the server's own about an exception; the answer and its body name it, so that the two are found together."""

    def broken(*_: Any) -> None:
        logging.getLogger("serving.test").warning("about to fail")
        raise RuntimeError("a bug")

    monkeypatch.setattr(ItemListService, "similar", broken)
    with logged("json") as lines:
        answer = api.http.get("/v1/items/a%E2%80%A8b/similar", headers={"X-Request-Id": "page-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "page-7")
    assert answer.json()["error"]["request_id"] == "page-7"
    assert answer.headers["connection"] == "close", "the server closes it: who is not told loses the next request"
    assert "a bug" not in answer.text
    said = [json.loads(line) for line in lines]
    assert [one["request_id"] for one in said] == ["page-7"] * len(said)
    assert {"serving.test", "serving.problems"} <= {one["logger"] for one in said}
    assert "RuntimeError: a bug" in next(one["error"] for one in said if one["logger"] == "serving.problems")


@pytest.mark.parametrize("sent", ["page-1", "a.b_c:d/e+f=@", "x" * 128])
def test_a_plain_request_id_is_taken(api: RunningApi, sent: str) -> None:
    for answer in (
        api.http.get("/livez", headers={"X-Request-Id": sent}),
        api.http.post("/v1/recommendations", json={"user_id": "u00001"}, headers={"X-Request-Id": sent}),
        api.http.post("/v1/recommendations", json={}, headers={"X-Request-Id": sent}),
        api.http.get("/nothing", headers={"X-Request-Id": sent}),
    ):
        assert answer.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "a\tb", 'a"b', "<b>", "é", "a\\nb", "${x}"])
def test_another_is_not_and_one_is_made(api: RunningApi, sent: str) -> None:
    headers = [(b"X-Request-Id", sent.encode("latin-1"))]
    answer = api.http.post("/v1/recommendations", json={"user_id": "u00001"}, headers=headers)
    made = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert answer.json()["request_id"] == made, "the answer is found in the logs by its own id"


def test_a_trace_of_several_requests_does_not_make_their_answers_one(api: RunningApi) -> None:
    """Impressions count once for each answer's id and item: a page's id is not an answer's."""
    ask = {"headers": {"X-Request-Id": "page-1"}, "json": {"user_id": "u00001"}}
    ids = {api.http.post("/v1/recommendations", **ask).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3
    assert "page-1" not in ids
    chosen = api.http.post("/v1/recommendations", json={"user_id": "u00001", "request_id": "mine"})
    assert chosen.json()["request_id"] == "mine"


def test_lines_of_an_answer_with_an_id_of_its_own_have_both(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id that impressions, clicks and `larder explain-request` know is found in the log, too."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of a model")

    monkeypatch.setattr(Recommender, "finish", broken)
    ask = {"headers": {"X-Request-Id": "page-1"}, "json": {"user_id": "u00001", "request_id": "r\u202e1"}}
    for log_format in ("json", "text"):
        with logged(log_format) as lines:
            assert api.http.post("/v1/recommendations", **ask).json()["reasons"] == ["model_failed"]
        assert len([line for line in lines if "failed on a request" in line]) == 1
        if log_format == "json":
            said = json.loads(lines[0])
            assert (said["request_id"], said["answer_id"]) == ("page-1", "r\u202e1")
        else:
            assert lines[0].partition("\n")[0].endswith("[page-1 r\\u202e1]")
    with logged("json") as lines:
        api.http.post("/v1/recommendations", json={"user_id": "u00001"})
    assert "answer_id" not in json.loads(lines[0]), "one id is enough where they are the same"


async def test_a_shadow_s_lines_have_the_id_of_the_answer(tmp_path: Path) -> None:
    """It works in a task of its own, after the request."""
    metrics = Metrics()
    state = ServingState(SimpleNamespace())  # type: ignore[arg-type] # no items are looked at
    settings = Settings(home=tmp_path)
    shadow = Shadow(settings, state, None, metrics)  # type: ignore[arg-type] # parts that fail are the point
    release: Any = SimpleNamespace(shadow=SimpleNamespace(began=True), plan=SimpleNamespace(epoch=1))
    state.release = release
    with logged("json") as lines:
        shadow.start()
        answer = SimpleNamespace(request_id="answer-9", items=[])
        shadow.ask(release, None, answer, 1.0)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            while b'larder_shadow_total{result="error"} 0.0' in metrics.exposition():
                await asyncio.sleep(0.01)
        await shadow.stop()
    assert json.loads(lines[0])["request_id"] == "answer-9"


def test_records_that_are_lost_name_their_requests(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    log = ShadowLog(tmp_path / "log", lambda _number: None)
    fields = dict.fromkeys(ShadowRecord.__struct_fields__[:-2])
    for n in range(7):
        log.append(ShadowRecord(**fields | {"request_id": f"answer-{n}", "time_us": 1}))  # type: ignore[arg-type]
    with logged("json") as lines:
        log.start()
        log.stop()
    message = json.loads(lines[0])["message"]
    assert message.startswith("7 records could not be written")
    assert "answer-0, answer-1" in message
    assert "answer-5" not in message, "a few are enough"


def test_an_id_outside_of_requests_is_none() -> None:
    with logged("json") as lines:
        logging.getLogger("serving.test").error("in the background")
    assert "request_id" not in json.loads(lines[0])
    assert len(begin_request([])) == 32


def preflight(api: RunningApi, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type",
    }  # fmt: skip
    return api.http.options("/v1/recommendations", headers=headers)


def test_pages_of_the_named_origins_may_call(api: RunningApi) -> None:
    allowed = preflight(api, SHOP)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, SHOP)
    answer = api.http.post("/v1/recommendations", json={"user_id": "u00001"}, headers={"Origin": SHOP})
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    for origin in ("https://evil.example", "https://shop.example.evil.example", "http://shop.example", "null"):
        assert "access-control-allow-origin" not in preflight(api, origin).headers


def test_pages_hear_of_a_refusal(api: RunningApi) -> None:
    door = api.app.state.edge.door
    door.under_way += api.settings.max_under_way
    try:
        refused = api.http.post("/v1/recommendations", json={"user_id": "u00001"}, headers={"Origin": SHOP})
    finally:
        door.under_way -= api.settings.max_under_way
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (503, SHOP)
    assert refused.json()["error"]["code"] == "overloaded"


def test_by_default_no_page_may() -> None:
    assert Settings().cors_origins == ""
    assert allowed_origins("") == []


@pytest.mark.parametrize("setting", ["shop.example", "https://shop.example/", "https://Shop.example", "null", "*.a"])
def test_what_is_no_origin_is_refused_at_start(setting: str) -> None:
    with pytest.raises(SettingsError, match="is no origin"):
        allowed_origins(f"https://a.example, {setting}")


@pytest.mark.parametrize("path", ["/v1/items/popular?k=5", "/v1/items/i00001/similar?k=5"])
def test_a_list_one_has_is_not_sent_again(api: RunningApi, path: str) -> None:
    first = api.http.get(path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache", "an item may be taken out of the shop any moment"
    for sent in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = api.http.get(path, headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert "x-request-id" in again.headers
    assert api.http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert api.http.get(path.replace("k=5", "k=6"), headers={"If-None-Match": tag}).status_code == 200


def test_a_list_that_changed_is_sent(api: RunningApi) -> None:
    path = "/v1/items/popular?k=5"
    first = api.http.get(path)
    top = first.json()["items"][0]["item_id"]
    table = api.app.state.serving.items.table
    index = table.index[top]
    assert table.available[index]
    before = table.available.copy()
    table.available.flags.writeable = True
    table.available[index] = False
    try:
        again = api.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    finally:
        table.available[:] = before
    assert again.status_code == 200
    assert top not in {item["item_id"] for item in again.json()["items"]}


@pytest.mark.parametrize(("accepted", "packed"), [
    ("gzip", True), ("br, GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False), ("identity", False), ("br", False),
])  # fmt: skip
def test_long_lists_are_packed_for_who_takes_it(api: RunningApi, accepted: str, packed: bool) -> None:
    with api.http.stream("GET", "/v1/items/popular?k=49", headers={"Accept-Encoding": accepted}) as answer:
        raw = b"".join(answer.iter_raw())
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert "accept-encoding" in answer.headers["vary"].lower()
    items = json.loads(gzip.decompress(raw) if packed else raw)["items"]
    assert len(items) > 40
    if packed:
        assert len(raw) < 1_500
