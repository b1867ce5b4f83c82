"""The API killed in the middle of a batch: a client that sends it again gets the same place for what was in already."""

from __future__ import annotations

import threading
from contextlib import suppress

import httpx
import pytest
import redis

from feature_repo.online_keys import events_key
from feature_repo.stream import decode_entries
from feature_repo.stream_reader import StreamReader
from larder.services.ports import HOST
from tests.fault_clients import ITEMS
from tests.fault_processes import Shop, api_service, fault_settings
from tests.test_faults_kills import open_shop

pytestmark = pytest.mark.faults

BATCH = 1000  # several scripts
KILLS = 2
MOST_KILLS = 10  # until one of them came in the middle of a batch


def test_a_batch_cut_off_is_completed_by_sending_it_again(tmp_path):
    settings = fault_settings(tmp_path / "home")
    cut = 0
    with Shop(settings, api=api_service(settings)) as shop, redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings)
        shop.start_all()
        stream = events_key(settings.project)

        def places() -> dict[str, int]:
            """Return the `seq` of every event in the stream."""
            entries = StreamReader(client, settings.project).after(0, 100_000)
            table = decode_entries(entries).table if entries else None
            ids = table["event_id"].to_pylist() if table else []
            assert len(set(ids)) == len(ids), "an event is there once"
            return dict(zip(ids, table["seq"].to_pylist(), strict=True)) if ids else {}

        def send(events: list[dict]) -> httpx.Response:
            return httpx.post(f"http://127.0.0.1:{settings.api_port}/v1/events", json={"events": events}, timeout=30)

        for n in range(MOST_KILLS):
            if n >= KILLS and cut:
                break
            batch = [
                {"event_id": f"e{n}-{k}", "user_id": f"user {k % 7}", "item_id": ITEMS[k % 9], "event_type": "view"}
                for k in range(BATCH)
            ]
            before = client.xlen(stream)
            answers: list[httpx.Response] = []

            def deliver(batch: list[dict] = batch, answers: list[httpx.Response] = answers) -> None:
                with suppress(httpx.TransportError):
                    answers.append(send(batch))

            sender = threading.Thread(target=deliver)
            sender.start()
            while client.xlen(stream) == before and sender.is_alive():
                pass
            shop.kill("api")
            sender.join()
            inside = places()
            arrived = {event["event_id"]: inside[event["event_id"]] for event in batch if event["event_id"] in inside}
            cut += 0 < len(arrived) < BATCH
            assert not answers or len(arrived) == BATCH, "acknowledged is only what is in the stream"

            shop.wait_ready("api")
            results = send(batch).json()["results"]
            assert [result["event_id"] for result in results] == [event["event_id"] for event in batch]
            for result in results:
                known = arrived.get(result["event_id"])
                assert result["status"] == ("accepted" if known is None else "duplicate")
                assert known is None or result["seq"] == known
            assert {result["event_id"]: result["seq"] for result in results}.items() <= places().items()
    assert cut > 0, "a kill came in the middle of a batch"
