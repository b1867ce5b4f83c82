"""What the serving bench serves: a simulated shop of 20,000 items, a trained bundle and a candidate, in Redis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from deployment.publication import publish_committed
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.backfill import backfill
from feature_repo.datasets import read_events
from feature_repo.event_log import read_report
from feature_repo.materialize import materialize
from feature_repo.settings import Settings
from feature_repo.store import apply
from larder.story.data import ensure_data
from larder.story.steps import PhaseProgress
from serving.plan import Arm, Plan
from serving.signature import signing_key
from training.sample import sample_of
from training.train import TrainConfig, train

ITEMS: Final = 20_000
USERS: Final = 5_000
EVENTS: Final = 300_000
CANDIDATES: Final = 300
K: Final = 20


@dataclass(frozen=True)
class Shop:
    """A project that can be served.

    Attributes
    ----------
    bundle_id, candidate_id
        The champion's bundle and another one, for canary and shadow.
    warm, cold
        Users with a history, and ids nobody knows.
    """

    settings: Settings
    bundle_id: str
    candidate_id: str
    warm: tuple[str, ...]
    cold: tuple[str, ...]


def make_shop(settings: Settings, home: Path, bundles: int = 2) -> Shop:
    """Make data, features and one or two bundles (one: it is the candidate, too); Redis must run."""
    settings = replace(settings, home=home, project="bench_serving")
    options = {"n_items": ITEMS, "n_users": USERS, "n_events": EVENTS}
    data_hash = ensure_data(settings, "simulator", end=datetime.now(UTC), options=options)
    with PhaseProgress() as report:
        backfill(settings)
        apply(settings)
        materialize(settings)
        made = []
        for seed in range(settings.seed, settings.seed + bundles):
            data = read_report(settings)
            config = TrainConfig(target=data.target, repeats=data.repeats, candidates=CANDIDATES)
            # 500 trees as a whole model has: a sample's few would make ranking look cheaper than it is.
            config = replace(sample_of(config), ranker=config.ranker)
            made.append(train(replace(settings, seed=seed), config, data_hash, report).bundle.bundle_id)
    users = sorted(set(read_events(settings, columns=["user_id"])["user_id"].to_pylist()))
    np.random.default_rng(5).shuffle(users)
    return Shop(settings, made[0], made[-1], tuple(users), tuple(f"nobody{n:05d}" for n in range(2_000)))


def publish(shop: Shop, *, rollout: bool) -> None:
    """Commit and publish a plan: the champion alone, or with a tenth of the users in a canary and a shadow beside."""
    store = ControlStore(shop.settings, signing_key(shop.settings))
    before = store.plan()
    candidate = Arm(shop.candidate_id, "2")
    more = {"release": "bench", "salt": "bench", "canary": candidate, "weight": 1_000, "shadow": candidate}
    now = datetime.now(UTC)
    store.commit(
        lambda epoch: Plan(epoch, Arm(shop.bundle_id, "1"), now, **(more if rollout else {})),  # type: ignore[arg-type]
        expected_epoch=before.epoch if before else 0,
        entry=NewEntry("bench", "promote", "to be measured", shop.bundle_id, "1"),
        now=now,
    )
    publish_committed(shop.settings, store, signing_key(shop.settings))
