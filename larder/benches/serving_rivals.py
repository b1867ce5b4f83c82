"""What the API is compared with: a bare server of the same model, and one that reads features by Feast's SDK.

    python -m larder.benches.serving_rivals bare|sdk PORT BUNDLE

The bare one is what somebody would write in a day: two reads, the cascade, JSON. It has no logs, metrics, deadlines,
breakers, arms or request ids, and its item table never changes. The other reads one user, 300 items and 300 pairs from
Feast's own Redis store by `get_online_features`, and ranks 300 rows with the same model.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn
from threadpoolctl import threadpool_limits

from feature_repo.online_reader import AsyncOnlineReader, OnlineReader
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.settings import Settings
from feature_repo.views import ITEM_STATS, USER_ITEM, USER_STATS
from serving.bundle import load_bundle
from serving.cascade.items import build_item_table, catalog_entry

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


def app(answer: Answer) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that answers every POST."""
    encode = msgspec.json.Encoder().encode

    async def run(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        if scope["method"] == "POST":
            while (message := await receive()).get("more_body") or message.get("body"):
                body += message["body"]
                if not message.get("more_body"):
                    break
        data = encode(await answer(msgspec.json.decode(body)) if body else {})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return run


def bare(settings: Settings, bundle: Path) -> Answer:
    """Two reads, the cascade, nothing else."""
    recommender = load_bundle(bundle).recommender
    now_us = time.time_ns() // 1000
    loading = OnlineReader(connect(settings, timeout_ms=10_000), settings.project)
    ids = sorted(loading.changed_items(0))
    stats, catalog = loading.read_items(ids)
    table = build_item_table([catalog_entry(i, entry) for i, entry in zip(ids, catalog, strict=True)], stats, now_us)
    reader = AsyncOnlineReader(connect_async(settings), settings.project)

    async def answer(asked: dict[str, Any]) -> Any:
        now_us = time.time_ns() // 1000
        user = await reader.user(asked["user_id"], now_us)
        draft = recommender.draft(user, table, now_us, k=asked["k"])
        pairs = await reader.pairs(asked["user_id"], draft.item_ids, now_us)
        slate = recommender.finish(draft, pairs)
        return {"items": [{"item_id": one.item_id, "rank": one.rank, "score": one.score} for one in slate.items]}

    return answer


def sdk(settings: Settings, bundle: Path) -> Answer:
    """Feast's SDK on Feast's Redis store, and the same model."""
    from larder.benches.feature_reads import ITEMS, stock_store, write_stock

    store = stock_store(settings)
    items = [f"item{i:05d}" for i in range(ITEMS)]
    user_id = write_stock(store, items)
    ranker = load_bundle(bundle).recommender
    wanted = [f"{view.name}:{column.name}" for view in (USER_STATS, ITEM_STATS, USER_ITEM) for column in view.columns]
    matrix = np.zeros((ITEMS, len(ranker.columns)), np.float32)

    async def answer(asked: dict[str, Any]) -> Any:
        rows = {"user_id": [user_id] * ITEMS, "item_id": items}
        found = store.get_online_features(features=wanted, entity_rows=rows).to_dict()
        columns = [np.array(values, object) for name, values in found.items() if name not in rows]
        for i, values in enumerate(columns[: matrix.shape[1]]):
            matrix[:, i] = np.where(values == None, np.nan, values).astype(np.float32)  # noqa: E711 - elementwise
        best = np.argsort(-ranker.ranker.score(matrix))[: asked["k"]]
        return {"items": [{"item_id": items[i], "rank": n} for n, i in enumerate(best.tolist(), start=1)]}

    return answer


def main(kind: str, port: str, bundle: str) -> None:
    """Serve until told to stop."""
    threadpool_limits(1, "blas")
    answer = (bare if kind == "bare" else sdk)(Settings.load(), Path(bundle))
    gc.freeze()
    uvicorn.run(app(answer), port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
