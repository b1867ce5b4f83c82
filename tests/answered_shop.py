"""A made-up shop for tests of live quality: lists in the impression log, and what users did in the event log."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from feature_repo.events import EVENT_SCHEMA, LOG_SCHEMA, seq_of
from feature_repo.ingest_log import LiveLog
from feature_repo.settings import Settings
from feature_repo.stream import StreamBatch
from feature_repo.views import DAY_US
from serving.cascade.recommender import RankedItem
from serving.impressions import ImpressionRecord, day_of
from tests.live_shop import a_view, import_history

NOW_US = int(datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp() * 1e6)
ITEMS = [f"i{n}" for n in range(12)]


@dataclass
class AnsweredShop:
    """Collects lists and events, and writes both logs at once."""

    settings: Settings
    lists: list[ImpressionRecord] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def show(self, request_id: str, user: str, items: list[str], at_us: int = NOW_US - 2 * DAY_US, **said: Any) -> None:
        """Log a list; scores fall from 0.5 unless `scores` says otherwise."""
        scores = said.pop("scores", [0.5 / (n + 1) for n in range(len(items))])
        lines = [RankedItem(item, n + 1, scores[n], "als") for n, item in enumerate(items)]
        fields: dict[str, Any] = {
            "assigned_arm": "stable", "served_bundle": "b1", "model_version": "1", "level": "full", "k": len(items),
            "user_seq": 1, "recent_seq": 1, "feature_age_s": 0.0, "reasons": [], "latency_ms": 5.0, "epoch": 1,
        } | said  # fmt: skip
        self.lists.append(ImpressionRecord(request_id, at_us, user, items=lines, **fields))

    def did(self, user: str, item: str, kind: str, at_us: int, request_id: str | None = None, **said: Any) -> None:
        """Log an event."""
        at = datetime.fromtimestamp(at_us / 1e6, UTC)
        row = dict.fromkeys(EVENT_SCHEMA.names) | {
            "event_id": f"e{len(self.events)}", "user_id": user, "item_id": item, "event_type": kind,
            "event_timestamp": at, "received_at": at, "request_id": request_id,
        }  # fmt: skip
        self.events.append(row | said)

    def write(self) -> None:
        """Write both logs, and a history with a few interactions of the first items."""
        past = NOW_US - 60 * DAY_US
        history = [
            a_view(f"h{n}", f"u{n % 5}", at_us=past + n, item_id=ITEMS[min(n // 4, 6)]) for n in range(40)
        ]  # fmt: skip
        import_history(self.settings, history, items=ITEMS)
        days = defaultdict(list)
        for one in self.lists:
            days[day_of(one.time_us)].append(msgspec.json.encode(one))
        for day, lines in days.items():
            path = self.settings.impressions_dir / day / "1-1.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\n".join(lines) + b"\n")
        self.events.sort(key=lambda event: event["received_at"])
        for n, event in enumerate(self.events):
            event["seq"] = seq_of(int(event["received_at"].timestamp() * 1000), n)
        if self.events:
            table = pa.Table.from_pylist(self.events, schema=LOG_SCHEMA)
            with contextlib.closing(LiveLog(self.settings)) as log:
                log.append(StreamBatch(table, [], [], self.events[-1]["seq"]))


def random_shop(settings: Settings, seed: int, lists: int = 150) -> AnsweredShop:
    """A few days of lists of two arms, with every kind of answer, true and false claims among them."""
    shop, rng = AnsweredShop(settings), np.random.default_rng(seed)
    for n in range(lists):
        user, at = f"u{rng.integers(25)}", NOW_US - int(rng.integers(4 * DAY_US))
        items = [str(item) for item in rng.permutation(ITEMS)[: rng.integers(1, 12)]]
        canary = int(user[1:]) % 3 == 0
        shop.show(
            f"r{n}", user, items, at, assigned_arm="canary" if canary else "stable",
            served_bundle="b2" if canary else "b1", model_version="2" if canary else "1",
            user_seq=int(rng.integers(2)), scores=rng.uniform(0, 0.4, len(items)).tolist(),
            level=str(rng.choice(["full", "popularity"], p=[0.8, 0.2])),
        )  # fmt: skip
        for rank, item in enumerate(items, start=1):
            for kind, p in (("view", 0.2), ("cart", 0.1), ("purchase", 0.1), ("confirm", 0.1), ("reject", 0.1),
                            ("impression", 0.5)):  # fmt: skip
                if rng.random() > p:
                    continue
                later = at + int(rng.integers(2 * DAY_US if rng.random() < 0.2 else DAY_US // 2))
                claim: dict[str, Any] = {"request_id": f"r{n}", "rank": rank}
                if rng.random() < 0.1:
                    claim["rank"] = 7
                if rng.random() < 0.1:
                    claim["request_id"] = f"r{rng.integers(lists + 30)}"
                if kind == "purchase" and rng.random() < 0.5:
                    claim = {}
                if later < NOW_US:
                    shop.did(user, item, kind, later, **claim)
    shop.write()
    return shop
