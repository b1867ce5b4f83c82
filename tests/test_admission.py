"""Who is let in when there is too much to do: lists before events, health always; refusals say when to come again."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from serving.admission import Admission, Door
from serving.metrics import Metrics

LIMIT = 4


class Slow:
    """An app whose answers wait for a word; `/broken` fails at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/broken" or scope["path"].startswith("/v1/items/broken"):
            raise RuntimeError("a bug")
        if scope["path"].startswith("/v1"):
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def until(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://larder")


async def test_lists_go_before_events_and_health_is_never_refused() -> None:
    slow, metrics = Slow(), Metrics()
    door = Door(LIMIT, metrics)
    async with client_of(Admission(slow, door)) as client:
        lists = [asyncio.create_task(client.post("/v1/recommendations")) for _ in range(LIMIT // 2)]
        await until(lambda: door.under_way == LIMIT // 2)
        assert (await client.post("/v1/events")).status_code == 503, "half is for lists alone"
        lists += [asyncio.create_task(client.get("/v1/items/a/similar")) for _ in range(LIMIT // 2)]
        await until(lambda: door.under_way == LIMIT)
        refused = await client.post("/v1/recommendations")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        for path in ("/livez", "/readyz", "/metrics", "/admin/rollout"):
            assert (await client.get(path)).status_code == 200
        slow.go.set()
        assert [answer.status_code for answer in await asyncio.gather(*lists)] == [200] * LIMIT
        assert (await client.post("/v1/events")).status_code == 200, "whoever left made room"
    counted = {kind: metrics.shed.labels(kind)._value.get() for kind in ("events", "lists")}
    assert counted == {"events": 1, "lists": 1}


async def test_what_fails_makes_room_too() -> None:
    door = Door(1, Metrics())
    async with client_of(Admission(Slow(), door)) as client:
        for _ in range(3):
            assert (await client.get("/v1/items/broken")).status_code == 500
    assert door.under_way == 0


@pytest.mark.parametrize("limit", [0, 100])
async def test_without_a_limit_or_below_it_nobody_is_refused(limit: int) -> None:
    slow = Slow()
    slow.go.set()
    async with client_of(Admission(slow, Door(limit, Metrics()))) as client:
        answers = await asyncio.gather(*(client.post("/v1/events") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
