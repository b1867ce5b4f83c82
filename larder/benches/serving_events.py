"""A steady stream of events into a running API: `python -m larder.benches.serving_events PORT EVENTS_PER_SECOND`."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
import msgspec
import numpy as np

from feature_repo.datasets import read_events, read_items
from feature_repo.settings import Settings
from larder_client.answers import Event

#: Events of one request: some shops' pages send a few at a time.
_TOGETHER = 5


async def stream(port: int, rate: float, settings: Settings) -> None:
    """Send views and carts until told to stop."""
    rng = np.random.default_rng(3)
    users = sorted(set(read_events(settings, columns=["user_id"])["user_id"].to_pylist()))
    items = read_items(settings)["item_id"].to_pylist()
    encode = msgspec.json.Encoder().encode
    headers = {"content-type": "application/json"}
    due = time.perf_counter()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as http:
        while True:
            user, kinds = users[int(rng.integers(len(users)))], rng.random(_TOGETHER)
            events = [
                Event(
                    user_id=user,
                    item_id=items[int(rng.integers(len(items)))],
                    event_type="cart" if kind < 0.1 else "view",
                )
                for kind in kinds
            ]
            async with http.post("/v1/events", data=encode({"events": events})) as answer:
                await answer.read()
            due += _TOGETHER / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))


if __name__ == "__main__":
    asyncio.run(stream(int(sys.argv[1]), float(sys.argv[2]), Settings.load()))
