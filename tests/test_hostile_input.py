"""Hostile input to every POST route, over real sockets: a 4xx in the one format, quickly, and the next is answered."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator

import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.protocol import MAX_HEAD_BYTES, MAX_HEADERS
from tests.raw_http import Answer, Connection, exchange, request
from tests.running_api import RunningApi, open_shop

#: Each POST route with a body that is right, an id in it as `"ID"` and a number as `7` (its name where it has one).
ROUTES = {
    "/v1/recommendations": b'{"user_id": "ID", "k": 7}',
    "/v1/score": b'{"pairs": [{"user_id": "ID", "item_id": "b"}]}',
    "/v1/events": b'{"events": [{"user_id": "ID", "item_id": "b", "event_type": "view", "quantity": 7}]}',
    "/v1/items": b'{"items": [{"item_id": "ID", "price": 7}]}',
}
NOT_FINITE = {"NaN": b"NaN", "Infinity": b"Infinity", "-Infinity": b"-Infinity", "1e999": b"1e999", "-1e999": b"-1e999"}
IDS = NOT_FINITE | {
    "lone surrogate, escaped": rb'"\ud800"',
    "low surrogate, escaped": rb'"a\udc00b"',
    "lone surrogate, raw": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "NUL, escaped": rb'"a\u0000b"',
    "NUL, raw": b'"a\x00b"',
    "line feed": rb'"a\nINFO all is well"',
    "line feed, raw": b'"a\nb"',
    "ANSI escape": rb'"\u001b[2J"',
    "C1 control": rb'"\u009b2J"',
    "empty": b'""',
    "blank": b'"  \\t "',
    "10,000 characters": b'"' + b"x" * 10_000 + b'"',
    "129 bytes": '"{}"'.format("é" * 64 + "x").encode(),
    "true": b"true",
    "number": b"5",
    "null": b"null",
    "list": b'["a"]',
    "object": b'{"a": 1}',
}
NUMBERS = NOT_FINITE | {
    "true": b"true", "text": b'"7"', "part": b"7.5", "negative": b"-7", "30 digits": b"1" * 30,
    "5,000 digits": b"1" * 5_000, "hexadecimal": b"0x7", "leading zero": b"07", "list": b"[7]",
}  # fmt: skip
BODIES = {
    "nothing": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"a"',
    "no fields": b"{}",
    "an unknown field": b'{"colour": "blue"}',
    "cut off": b'{"user_id": ',
    "two values": b"{} {}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"user_id": "a"}'.encode("utf-16"),
    "100,000 lists deep": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "400,000 elements": b"[" + b"1," * 400_000 + b"1]",
    "400,000 empty objects": b"[" + b"{}," * 300_000 + b"{}]",
}


@pytest.fixture(scope="module")
def api(redis_server: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    settings = Settings(
        home=tmp_path_factory.mktemp("hostile"), project="hostile", redis_port=redis_server.port, redis_timeout_ms=1000,
        receive_timeout_s=1.0,
    )  # fmt: skip
    with redis.Redis(HOST, redis_server.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api


@pytest.fixture
def port(api: RunningApi) -> Iterator[int]:
    """The API's port; after each test it must still answer as ever."""
    yield api.settings.api_port
    began = time.monotonic()
    assert api.recommend("u00001")["level"] == "full"
    assert time.monotonic() - began < 2


def assert_refused(answer: Answer, *statuses: int, field: bool = False) -> None:
    """A 4xx in the one format: what is wrong, where, what to do, whose request; quickly and not at length."""
    assert answer.status in (statuses or (422,)), answer.body[:500]
    assert set(answer.error) >= {"code", "message", "hint", "request_id"} | ({"field"} if field else set())
    assert answer.error["request_id"] == answer.headers["x-request-id"]
    assert all(text.isprintable() for text in answer.error.values())
    assert len(answer.body) < 2_000
    assert answer.seconds < 3


@pytest.mark.parametrize("vector", IDS)
@pytest.mark.parametrize("path", ROUTES)
def test_an_id_that_is_none(port: int, path: str, vector: str) -> None:
    assert_refused(exchange(port, request(path, ROUTES[path].replace(b'"ID"', IDS[vector]))), field=True)


@pytest.mark.parametrize("vector", NUMBERS)
@pytest.mark.parametrize("path", [path for path, body in ROUTES.items() if b": 7" in body])
def test_a_number_that_is_none(port: int, path: str, vector: str) -> None:
    assert_refused(exchange(port, request(path, ROUTES[path].replace(b": 7", b": " + NUMBERS[vector]))), field=True)


@pytest.mark.parametrize("vector", BODIES)
@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_is_none(port: int, path: str, vector: str) -> None:
    assert_refused(exchange(port, request(path, BODIES[vector])), field=True)


@pytest.mark.parametrize("path", ROUTES)
def test_a_name_that_comes_twice(port: int, path: str) -> None:
    """A proxy that checks the first and a server that takes the last would not speak of the same request."""
    name = b'"item_id"' if path == "/v1/items" else b'"user_id"'
    for again in (name, name.replace(b"_", rb"\u005f")):
        body = ROUTES[path].replace(name + b": ", again + b': "x", ' + name + b": ")
        assert_refused(exchange(port, request(path, body)), field=True)


@pytest.mark.parametrize("path", ROUTES)
def test_two_million_elements(port: int, path: str) -> None:
    body = b"[" + b"1," * 2_000_000 + b"1]"
    assert_refused(exchange(port, request(path, body)), 413)
    chunks = b"".join(
        b"10000\r\n%b\r\n" % body[at : at + 65_536] for at in range(0, len(body) // 65_536 * 65_536, 65_536)
    )
    head = request(path, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert_refused(exchange(port, head + chunks + b"0\r\n\r\n"), 413)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "", "json", "*/*"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_a_wrong_content_type(port: int, path: str, kind: str) -> None:
    data = request(path, ROUTES[path]).replace(b"application/json", kind.encode())
    assert_refused(exchange(port, data), field=True)


@pytest.mark.parametrize("path", ROUTES)
def test_a_gzip_bomb_is_not_opened(port: int, path: str) -> None:
    bomb = gzip.compress(b'{"user_id": "' + b"x" * 50_000_000, compresslevel=1)
    answer = exchange(port, request(path, bomb, "Content-Encoding: gzip"))
    assert_refused(answer, field=True)
    assert "Content-Encoding" in answer.error["hint"]


def with_head(path: str, *lines: str) -> bytes:
    """A request without the headers of a right one."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: larder", *lines, "", ""]).encode("latin-1")


LENGTHS = {
    "negative": ["Content-Length: -1"],
    "no number": ["Content-Length: ten"],
    "signed": ["Content-Length: +5"],
    "two that differ": ["Content-Length: 5", "Content-Length: 6"],
    "above 64 bits": ["Content-Length: 99999999999999999999999"],
    "with chunks": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "unknown encoding": ["Transfer-Encoding: gzip"],
}


@pytest.mark.parametrize("vector", LENGTHS)
@pytest.mark.parametrize("path", ROUTES)
def test_a_length_that_is_none(port: int, path: str, vector: str) -> None:
    assert_refused(exchange(port, with_head(path, *LENGTHS[vector]) + b"hello"), 400)


@pytest.mark.parametrize("path", ROUTES)
def test_a_missing_or_false_length(port: int, path: str) -> None:
    body = ROUTES[path]
    assert_refused(exchange(port, with_head(path, "Content-Type: application/json") + body), 422, 400)
    assert_refused(exchange(port, request(path, body, length=len(body) - 9)), field=True)  # what is cut off is no JSON
    assert_refused(exchange(port, request(path, body, length=3 * 10**8)), 413)
    assert_refused(exchange(port, request(path, body, "Expect: 100-continue", length=3 * 10**8)), 413)


def test_a_body_that_does_not_end(port: int) -> None:
    path = "/v1/events"
    assert_refused(exchange(port, request(path, ROUTES[path], length=len(ROUTES[path]) + 9)), 408)


@pytest.mark.parametrize("path", ROUTES)
def test_chunks(port: int, path: str) -> None:
    """Right ones are taken, however small; wrong ones are refused."""
    head, body = with_head(path, "Content-Type: application/json", "Transfer-Encoding: chunked"), ROUTES[path]
    single = b"".join(b"1;note=x\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))) + b"0\r\nTrailer: x\r\n\r\n"
    assert exchange(port, head + single).status in (200, 202)
    assert_refused(exchange(port, head + b"5\r\n" + body[:9]), 400)
    assert_refused(exchange(port, head + b"-5\r\n" + body), 400)
    assert_refused(exchange(port, head + b"fffffffffffffffff\r\n" + body), 400)
    assert_refused(exchange(port, head + b"0\r\n" + b"Trailer: x\r\n" * 500_000), 413)


@pytest.mark.parametrize("path", ROUTES)
def test_heads_that_are_too_large(port: int, path: str) -> None:
    many = [f"X-{n}: {n}" for n in range(MAX_HEADERS)]
    long = ["X-Long: " + "x" * MAX_HEAD_BYTES]
    assert_refused(exchange(port, request(path, ROUTES[path], *many)), 431)
    assert_refused(exchange(port, request(path, ROUTES[path], *[f"X-{n}: {n}" for n in range(20_000)])), 431)
    assert_refused(exchange(port, request(path, ROUTES[path], *long)), 431)
    assert_refused(exchange(port, f"POST {path} HTTP/1.1\r\n".encode() + b"X-Endless: " + b"x" * 10**6), 431)
    assert_refused(exchange(port, request(f"{path}?{'x' * MAX_HEAD_BYTES}", ROUTES[path])), 431, 400)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: larder\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: larder\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost : larder\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\n folded: x\r\n\r\n",
        b"POST /v1/\xff HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_request(port: int, data: bytes) -> None:
    assert_refused(exchange(port, data), 400, 404)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/../../../../etc/passwd/similar",
        "/v1/items/..%2f..%2f..%2fetc%2fpasswd/similar",
        "/v1/items/%2e%2e/%2e%2e/etc/passwd/similar",
        "/docs/assets/../../../../etc/passwd",
        "/docs/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/docs/assets//etc/passwd",
        "/admin/users/..%2f..%2fetc%2fpasswd/features",
        "http://elsewhere/etc/passwd",
        "//etc/passwd",
    ],
)
def test_paths_that_climb(port: int, path: str) -> None:
    """An id may contain a slash and dots, and is a key, never a path: an unknown one at most."""
    answer = exchange(port, request(path, method="GET"))
    assert b"root:" not in answer.body
    if answer.status == 200:
        assert json.loads(answer.body)["reasons"] == ["unknown_item"]
    else:
        assert_refused(answer, 403, 404)


@pytest.mark.parametrize("text", ["%00", "%0a", "%1b%5b2J", "x" * 10_000, "%ff", "%20"])
def test_ids_in_paths_that_are_none(port: int, text: str) -> None:
    answer = exchange(port, request(f"/v1/items/{text}/similar", method="GET"))
    if text == "%ff":  # decoded as the replacement character, which is a character
        assert answer.status == 200
    elif text == "%0a":  # no path holds a line feed
        assert_refused(answer, 404)
    else:
        assert_refused(answer, field=True)


def test_many_requests_in_one_packet(port: int) -> None:
    """A pipeline is answered in its order; one that is wrong ends it."""
    with Connection(port) as connection:
        wished = [request("/v1/recommendations", b'{"user_id": "u%05d", "k": 1}' % n) for n in range(20)]
        connection.send(b"".join(wished))
        users = [json.loads(answer.body)["user_id"] for _ in wished if (answer := connection.answer())]
    assert users == [f"u{n:05d}" for n in range(20)]
    with Connection(port) as connection:
        connection.send(wished[0] + b"nonsense\r\n\r\n")
        assert connection.closed_within(3)
