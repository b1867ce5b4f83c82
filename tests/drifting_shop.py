"""A small trained shop with a champion, and lists of its model in windows that follow: as they should be, or broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.settings import Settings
from larder.benches.drift_shifts import Shift
from larder.watching.replay import answered
from monitoring.drift.comparison import Rules
from monitoring.drift.served import Watched
from serving.bundle import Bundle
from serving.impressions import day_of
from serving.plan import Arm, Plan
from serving.signature import signing_key
from tests.gated_shop import CONFIG
from training.offline_table import offline_item_table
from training.train import train

WINDOW_MINUTES = 60.0
RULES = Rules(sample=60, reference=200, baseline=1)
_US = round(WINDOW_MINUTES * 60e6)


@dataclass
class DriftingShop:
    """A shop whose champion was promoted some hours ago."""

    settings: Settings
    bundle: Bundle
    since: datetime

    def end_us(self, windows: int) -> int:
        """When so many windows are over and may be judged."""
        return round(self.since.timestamp() * 1e6) + windows * _US + 15 * 60_000_000

    def serve(self, window: int, shift: Shift | None = None, *, users: int = 90, category: str | None = None) -> None:
        """Write the log of one window."""
        start = round(self.since.timestamp() * 1e6) + window * _US
        recommender = (shift or Shift("nothing")).recommender(self.bundle.recommender)
        watched = Watched.of(self.bundle.bundle_id, recommender.service, self.bundle.popular)
        reader = AsOfReader(self.settings, start)
        table = offline_item_table(reader, start)
        chosen = np.random.default_rng(window).choice(reader.users(), users, replace=False)
        path = self.settings.impressions_dir / day_of(start) / f"window-{window}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as log:
            for number, user in enumerate(chosen):
                now = start + (number + 1) * _US // (users + 2)
                record = answered(recommender, reader, table, watched, str(user), now, f"{window}-{number}")
                if record is not None:
                    if category is not None and record.seen is not None:
                        seen = msgspec.structs.replace(record.seen, categories=[category] * len(record.seen.categories))
                        record = msgspec.structs.replace(record, seen=seen)
                    log.write(msgspec.json.encode(record) + b"\n")


def make_drifting_shop(settings: Settings, *, events: int = 9_000) -> DriftingShop:
    """Import, fold, train, and promote by hand."""
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=8)
    write_dataset(load_dataset("simulator", settings, n_events=events, end=since), settings)
    backfill(settings)
    bundle = train(settings, CONFIG, "hash of the data").bundle
    entry = NewEntry("test", "promote", "the first", bundle.bundle_id, "1")
    store = ControlStore(settings, signing_key(settings))
    plan: Callable[[Plan | None], Plan] = lambda _: Plan(0, Arm(bundle.bundle_id, "1"), since)  # noqa: E731
    store.commit(plan, expected_epoch=0, entry=entry, now=since)
    return DriftingShop(settings, bundle, since)
