"""Every candidate generator by itself, and new items, on the window of Online Retail before the test."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import read_events
from feature_repo.rows import RecentEvents, UserRows, null_rows
from feature_repo.settings import Settings
from feature_repo.views import ITEM_STATS
from larder.progress import progress
from larder.story.data import ensure_data
from serving.candidates.contract import CandidateGenerator, top_k
from serving.candidates.history import OwnHistory
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import CatalogEntry, ItemTable, Mask
from training.baselines import FilledGenerator
from training.generators.als import Als
from training.generators.als_similar import AlsSimilar
from training.generators.content import Content
from training.generators.contract import GeneratorFit, Past, Ready
from training.generators.contrastive import Contrastive
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.last_events import LastEvents
from training.generators.new_items import NewItems
from training.generators.segment_popularity import SegmentPopularity
from training.generators.svd import Svd
from training.metrics import per_user, recall
from training.offline_table import offline_item_table
from training.split import Log, split_by_time

GENERATORS: Mapping[str, GeneratorFit] = {
    "popular_all": Ready(Popularity("all"), 0),
    "popular_30d": Ready(Popularity("30d"), 0),
    "popular_7d": Ready(Popularity("7d"), 0),
    "category": Ready(CategoryPopularity("30d"), 0),
    "segment": SegmentPopularity(),
    "history": Ready(OwnHistory(), 0),
    "als": Als(),
    "svd": Svd(),
    "ease": Ease(),
    "similar": Cooccurrence(),
    "als_similar": AlsSimilar(),
    "recent": LastEvents(),
    "content": Content(),
    "contrastive": Contrastive(),
}
_DEPTH = 100


@dataclass(frozen=True)
class _Shop:
    """The shop as of the start of the window, and what its known users take in it."""

    past: Past
    users: Mapping[str, UserRows]
    targets: Mapping[str, set[str]]
    future: ItemTable  # the items that are first sold later

    @property
    def now_us(self) -> int:
        return self.past.now_us


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Measure on the last rolling window; the test window stays closed."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="online_retail")
        ensure_data(own, "online_retail")
        backfill(own)
        shop = _shop(own)
        figures: dict[str, float] = {"users": len(shop.users)}
        for name, fit in GENERATORS.items():
            with progress(name):
                figures |= {f"{name}.{key}": value for key, value in _alone(shop, fit).items()}
        with progress("new items"):
            figures |= _held_out(shop) | _first_sold(shop) | _hardly_sold(shop)
    return figures, {"held_out.new_items_over_content": (">", 1.0)}


def _shop(settings: Settings) -> _Shop:
    columns = ["user_id", "item_id", "event_type", "event_timestamp", "received_at"]
    log = Log.of(read_events(settings, columns=columns))
    split = split_by_time(log.time_us, test_share=0.1, windows=4)
    window = split.rolling[-1]
    reader = AsOfReader(settings, window.start_us)
    past = Past(
        log.before(window.start_us),
        offline_item_table(reader, window.start_us),
        window.start_us,
        settings.seed,
        settings.threads,
    )
    targets = log.targets(window, "purchase")
    users = {user: reader.user(user, window.start_us) for user in targets}
    later = offline_item_table(AsOfReader(settings, window.end_us), window.end_us)
    return _Shop(past, {user: rows for user, rows in users.items() if rows.known}, targets, later)


def _alone(shop: _Shop, fit: GeneratorFit) -> dict[str, float]:
    """Grade a generator by its own list, with repeats and without."""
    start = time.perf_counter()
    generator = shop.past.fit(fit)
    figures = {"fit_s": time.perf_counter() - start}
    alone = FilledGenerator(generator, None, _DEPTH)
    log = shop.past.log
    bought: dict[str, set[str]] = {}
    for user, item in zip(log.user, log.item, strict=True):
        bought.setdefault(user, set()).add(item)
    known = {user: shop.targets[user] for user in shop.users}
    fresh = {user: left for user, wanted in known.items() if (left := wanted - bought.get(user, set()))}
    for prefix, targets, repeats in (("", known, True), ("fresh_", fresh, False)):
        slates = {user: alone(shop.users[user], shop.past.table, shop.now_us, repeats=repeats) for user in targets}
        figures[f"{prefix}ndcg_at_10"] = float(per_user(slates, targets)["ndcg@10"].mean())
        found = [recall(slates[user], wanted, _DEPTH) for user, wanted in targets.items()]
        figures[f"{prefix}recall_at_{_DEPTH}"] = float(np.mean(found))
    return figures


def _held_out(shop: _Shop) -> dict[str, float]:
    """Take a fifth of the items, as if they were new, out of the log, the table and all histories."""
    log, table = shop.past.log, shop.past.table
    items = np.unique(log.item.astype(str))
    gone = set(np.random.default_rng(7).choice(items, len(items) // 5, replace=False).tolist())
    keep = np.array([item not in gone for item in log.item])
    cut = Log(log.user[keep], log.item[keep], log.event_type[keep], log.time_us[keep])
    inputs = table.inputs.copy()
    inputs[table.lookup(sorted(gone))] = np.nan
    past = Past(cut, replace(table, inputs=inputs), shop.now_us, shop.past.seed, shop.past.threads)
    users = {user: replace(rows, recent=_without(rows.recent, gone)) for user, rows in shop.users.items()}
    fitted: dict[str, CandidateGenerator] = {
        "new_items": past.fit(NewItems()),
        "content": past.fit(Content()),
        "contrastive": past.fit(Contrastive()),
    }
    return _among("held_out", replace(shop, past=past, users=users), gone, 50, fitted)


def _first_sold(shop: _Shop) -> dict[str, float]:
    """Put items nobody bought before the window into the table as the catalogue would, after the fit."""
    later, known = shop.future, shop.past.table.index
    new = [i for i, item in enumerate(later.ids) if item not in known]
    entries = [CatalogEntry(later.ids[i], later.titles[i], later.category[i]) for i in new]
    fitted: dict[str, CandidateGenerator] = {
        "new_items": shop.past.fit(NewItems()),
        "content": shop.past.fit(Content()),
        "contrastive": shop.past.fit(Contrastive()),
    }
    table = apply_changes(shop.past.table, entries, null_rows(ITEM_STATS, len(entries)), shop.now_us)
    grown = replace(shop, past=replace(shop.past, table=table))
    return _among("first_sold", grown, {entry.item_id for entry in entries}, 5, fitted)


def _hardly_sold(shop: _Shop) -> dict[str, float]:
    """Take items with at most 10 purchases, as they stand, beside popularity among them."""
    one = shop.past.fit(NewItems(max_takers=10))
    new = {shop.past.table.ids[i] for i in np.flatnonzero(one.new(shop.past.table))}
    fitted: dict[str, CandidateGenerator] = {
        "new_items": one,
        "mapping": replace(one, popularity_floor=1e6),
        "content": shop.past.fit(Content()),
        "contrastive": shop.past.fit(Contrastive()),
        "popular_30d": Popularity("30d"),
    }
    return _among("hardly_sold", shop, new, 50, fitted)


def _among(
    name: str, shop: _Shop, new: set[str], k: int, generators: Mapping[str, CandidateGenerator]
) -> dict[str, float]:
    """Return recall at k among new items, of users with a history who take one; beside a random order."""
    table = shop.past.table
    is_new: Mask = np.zeros(len(table), np.bool_)
    is_new[table.lookup(sorted(new))] = True
    everything = np.arange(len(table), dtype=np.int32)
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {one: [] for one in ("random", *generators)}
    for user, rows in shop.users.items():
        wanted = shop.targets[user] & new
        if not wanted or not rows.recent.item_ids:
            continue
        scores = {"random": rng.random(len(table)).astype(np.float32)} | {
            one: generator.query(rows, table, shop.now_us).scores(everything) for one, generator in generators.items()
        }
        for one, values in scores.items():
            slate = [table.ids[i] for i in top_k(np.where(is_new, values, 0.0).astype(np.float32), k)]
            found[one].append(recall(slate, wanted, k))
    figures = {f"{name}.{one}_recall_at_{k}": float(np.mean(values)) for one, values in found.items()}
    figures |= {f"{name}.items": float(len(new)), f"{name}.users": float(len(found["random"]))}
    ratio = np.mean(found["new_items"]) / max(float(np.mean(found["content"])), 1e-9)
    return figures | {f"{name}.new_items_over_content": float(ratio)}


def _without(recent: RecentEvents, gone: set[str]) -> RecentEvents:
    keep = np.array([item not in gone for item in recent.item_ids], np.bool_)
    kept = [item for item in recent.item_ids if item not in gone]
    return RecentEvents(kept, recent.types[keep], recent.times[keep], recent.seq)
