"""A small shop for tests: items, users and their history in a real Redis, and a real, tiny, fitted model bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import redis

from feature_repo.events import EventType, seq_of
from feature_repo.fold import EventArrays, RowIndices, fold_events, new_state
from feature_repo.online_keys import changed_key, row_key, watermark_key
from feature_repo.packed_row import pack_rows
from feature_repo.packed_tail import CatalogItem, pack_catalog, pack_recent
from feature_repo.rows import RecentEvents, Rows, UserRows, null_rows
from feature_repo.views import (
    CATALOG_VIEW,
    DAY_US,
    FOLD_VIEWS,
    ITEM_STATS,
    NULL_INT,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
)
from serving.candidates.contract import CandidateGenerator
from serving.candidates.factors import ItemFactors
from serving.candidates.history import OwnHistory
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table
from serving.cascade.ranker import Calibration, CatBoostRanker, LightGBMRanker, TreeRanker
from serving.cascade.recommender import Policy
from training.generators.als import Als
from training.line_up import LineUp, default_line_up
from training.rankers.contract import UNCALIBRATED
from training.save_bundle import feature_columns, save_bundle

SERVICE = "ranking_v1"
CATEGORIES = ("bread", "cheese", "jam", "tea")


@dataclass(frozen=True)
class Shop:
    """Everything known of the small shop, by plain arrays."""

    item_ids: list[str]
    user_ids: list[str]
    catalog: list[CatalogItem]
    stats: dict[str, Rows]  # by view name
    pairs: list[tuple[int, int]]
    affinities: list[tuple[int, int]]
    recent: list[RecentEvents]
    now_us: int
    last_seq: int

    def table(self) -> ItemTable:
        """The item table that serving should build."""
        entries = [
            CatalogEntry(c.item_id, c.title, c.category, c.price, c.created_at, c.available) for c in self.catalog
        ]
        return build_item_table(entries, self.stats[ITEM_STATS.name], self.now_us)

    def user(self, user_id: str) -> UserRows:
        """The rows that serving should read."""
        u = self.user_ids.index(user_id)
        mine = sorted((CATEGORIES[c], i) for i, (owner, c) in enumerate(self.affinities) if owner == u)
        return UserRows(
            user_id,
            _take(self.stats[USER_STATS.name], [u]),
            [name for name, _ in mine],
            _take(self.stats[USER_CATEGORY.name], [i for _, i in mine]),
            self.recent[u],
        )

    def pair_rows(self, user_id: str, item_ids: list[str]) -> Rows:
        """The pair rows that serving should read."""
        row = {(self.user_ids[u], self.item_ids[i]): n for n, (u, i) in enumerate(self.pairs)}
        out = null_rows(USER_ITEM, len(item_ids))
        for n, item_id in enumerate(item_ids):
            if (found := row.get((user_id, item_id))) is not None:
                out.ints[n] = self.stats[USER_ITEM.name].ints[found]
                out.floats[n] = self.stats[USER_ITEM.name].floats[found]
                out.present[n] = True
        return out


@dataclass(frozen=True)
class Events:
    """What happened, oldest first: indices of users and items, and plain arrays, each shape (n,)."""

    user: Any
    item: Any
    etype: Any
    value: Any
    time: Any


def _take(rows: Rows, which: list[int]) -> Rows:
    return Rows(rows.view, rows.ints[which], rows.floats[which], rows.present[which])


def small_line_up(*, factors: int, iterations: int) -> LineUp:
    """The default line-up with an ALS that fits in no time."""
    return tuple(
        replace(one, factors=factors, iterations=iterations) if isinstance(one, Als) else one
        for one in default_line_up()
    )


def make_shop(now_us: int, *, n_items: int = 50, n_users: int = 30, n_events: int = 900, seed: int = 3) -> Shop:
    """Make a shop with a random history that ends an hour before `now_us`, folded by the real fold."""
    rng = np.random.default_rng(seed)
    item_ids = [f"i{i:05d}" for i in range(n_items)]
    user_ids = [f"u{u:05d}" for u in range(n_users)]
    category = rng.integers(0, len(CATEGORIES), n_items)
    price = rng.integers(100, 5000, n_items)
    catalog = [
        CatalogItem(item, f"Item {i}", CATEGORIES[category[i]], int(price[i]), now_us - 300 * DAY_US, i != n_items - 1)
        for i, item in enumerate(item_ids)
    ]
    time = np.sort(now_us - DAY_US // 24 - rng.integers(0, 60 * DAY_US, n_events)).astype(np.int64)
    user = rng.integers(0, n_users, n_events)
    # A taste, so that there is something to learn: users like items whose number is near theirs.
    item = (user * n_items // n_users + np.abs(rng.normal(0, n_items / 8, n_events)).astype(int)) % n_items
    etype = rng.choice([EventType.view, EventType.cart, EventType.purchase], n_events, p=[0.6, 0.15, 0.25])
    events = Events(user, item, etype.astype(np.int8), price[item].astype(np.float64), time)
    return fold_shop(catalog, user_ids, events, now_us)


def fold_shop(catalog: list[CatalogItem], user_ids: list[str], events: Events, now_us: int) -> Shop:
    """Everything known of a shop after some events, folded by the real fold."""
    user, item, time, n_events = events.user, events.item, events.time, len(events.time)
    category = np.array([CATEGORIES.index(one.category or "") for one in catalog])
    price = np.array([one.price or 0 for one in catalog])
    seq = np.array([seq_of(int(t) // 1000, n % 1000) for n, t in enumerate(time)], np.int64)
    pair_of = {key: i for i, key in enumerate(dict.fromkeys(zip(user.tolist(), item.tolist(), strict=True)))}
    affinity_of = {k: i for i, k in enumerate(dict.fromkeys(zip(user.tolist(), category[item].tolist(), strict=True)))}
    pair_rows = np.array([pair_of[key] for key in zip(user.tolist(), item.tolist(), strict=True)])
    affinity_rows = np.array([affinity_of[key] for key in zip(user.tolist(), category[item].tolist(), strict=True)])
    rows: RowIndices = (user, item, pair_rows, affinity_rows)
    sizes = (len(user_ids), len(catalog), len(pair_of), len(affinity_of))
    states: Any = tuple(new_state(view, size) for view, size in zip(FOLD_VIEWS, sizes, strict=True))
    fold_events(
        EventArrays(
            etype=events.etype,
            value=events.value,
            quantity=np.ones(n_events, np.int64),
            price=price[item].astype(np.int64),
            time=time,
            session=np.full(n_events, NULL_INT),
            click=np.zeros(n_events, np.bool_),
            seq=seq,
        ),
        states,
        rows,
    )
    item_ids = [one.item_id for one in catalog]
    recent = []
    for u in range(len(user_ids)):
        mine = np.flatnonzero(user == u)[-200:]
        last = int(seq[mine[-1]]) if len(mine) else 0
        recent.append(RecentEvents([item_ids[i] for i in item[mine]], events.etype[mine], time[mine], last))
    stats = {
        view.name: Rows(view, state.ints, state.floats, state.ints[:, 0] != NULL_INT)
        for view, state in zip(FOLD_VIEWS, states, strict=True)
    }
    return Shop(item_ids, user_ids, catalog, stats, list(pair_of), list(affinity_of), recent, now_us, int(seq[-1]))


def write_shop(shop: Shop, client: redis.Redis, project: str) -> None:
    """Write a shop to Redis in the layout of the online store."""
    packed = {name: pack_rows(rows.view, rows.ints, rows.floats) for name, rows in shop.stats.items()}
    pipe = client.pipeline(transaction=False)
    for u, user_id in enumerate(shop.user_ids):
        if shop.stats[USER_STATS.name].present[u]:
            pipe.set(row_key(project, USER_STATS.name, user_id), packed[USER_STATS.name][u])
            pipe.set(row_key(project, RECENT_VIEW, user_id), pack_recent([shop.recent[u]])[0])
    for row, (u, i) in zip(packed[USER_ITEM.name], shop.pairs, strict=True):
        pipe.hset(row_key(project, USER_ITEM.name, shop.user_ids[u]), shop.item_ids[i], row)
    for row, (u, c) in zip(packed[USER_CATEGORY.name], shop.affinities, strict=True):
        pipe.hset(row_key(project, USER_CATEGORY.name, shop.user_ids[u]), CATEGORIES[c], row)
    entries = pack_catalog(shop.catalog, np.full(len(shop.catalog), shop.now_us))
    present = shop.stats[ITEM_STATS.name].present
    for i, item_id in enumerate(shop.item_ids):
        if present[i]:
            pipe.set(row_key(project, ITEM_STATS.name, item_id), packed[ITEM_STATS.name][i])
        pipe.set(row_key(project, CATALOG_VIEW, item_id), entries[i])
    pipe.zadd(changed_key(project), dict.fromkeys(shop.item_ids, shop.now_us // 1000))
    pipe.set(watermark_key(project), shop.last_seq)
    pipe.execute()


def make_generators(shop: Shop, *, seed: int = 3, depth: int = 10) -> tuple[CandidateGenerator, ...]:
    """Every kind of generator, fitted by a few lines of NumPy."""
    n = len(shop.item_ids)
    taken = np.zeros((len(shop.user_ids), n))
    for u, i in shop.pairs:
        taken[u, i] = 1.0
    together = taken.T @ taken
    np.fill_diagonal(together, 0.0)
    near = np.argsort(-together, axis=1, kind="stable")[:, :depth].astype(np.int32)
    similarity = np.take_along_axis(together, near, axis=1)
    near[similarity == 0] = -1
    factors = np.linalg.svd(taken, full_matrices=False)[2][:8].T.astype(np.float32)
    factors += np.random.default_rng(seed).normal(0, 0.01, factors.shape).astype(np.float32)
    ids = Vocabulary(shop.item_ids)
    return (
        OwnHistory(60.0),
        Popularity("7d"),
        CategoryPopularity("30d"),
        ItemFactors(ids, np.ascontiguousarray(factors), 0.05, 4.0, 180.0),
        ItemToItem(ids, near, (similarity / similarity.max()).astype(np.float32), 60.0),
    )


def make_bundle(
    bundles_dir: Path,
    shop: Shop,
    *,
    name: str = "tiny",
    seed: int = 3,
    trees: int = 20,
    candidates: int = 30,
    purchase: Path | None = None,
    policy: Policy | None = None,
    kind: str = "catboost",
) -> str:
    """Fit a small ranker and write a bundle; other seeds give other bundles. Returns the bundle id."""
    generators = make_generators(shop, seed=seed)
    columns = feature_columns(SERVICE, generators)
    rng = np.random.default_rng(seed)
    matrix = rng.normal(1.0, 1.0, (400, len(columns))).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    wanted = [columns.index(c) for c in ("f_pair_views", "r_similar_score", "f_item_purchases_30d")]
    label = (np.nan_to_num(matrix[:, wanted]).sum(axis=1) + rng.normal(0, 1, 400) > 3.0).astype(float)
    ranker = _fit_catboost(matrix, label, columns, seed, trees) if kind == "catboost" else _fit_lightgbm(matrix, label)
    raw = ranker.score(matrix)
    knots = np.linspace(raw.min() - 1.0, raw.max() + 1.0, 20)
    calibration = Calibration(knots, 1.0 / (1.0 + np.exp(-knots)))
    directory = save_bundle(
        bundles_dir,
        name=name,
        service=SERVICE,
        generators=generators,
        ranker=replace(ranker, calibration=calibration),
        policy=policy or Policy("keep", candidates, (candidates,) * len(generators)),
        table=shop.table(),
        golden=matrix[:16],
        content={"metrics": {}, "trained_until_us": shop.now_us},
        volatile={},
        purchase=purchase,
    )
    return directory.name


def _fit_catboost(matrix: Any, label: Any, columns: tuple[str, ...], seed: int, trees: int) -> TreeRanker:
    from catboost import CatBoost, Pool

    model = CatBoost(
        {
            "loss_function": "Logloss", "iterations": trees, "depth": 6, "random_seed": seed, "thread_count": 1,
            "allow_writing_files": False, "logging_level": "Silent",
        }
    )  # fmt: skip
    model.fit(Pool(matrix, label, feature_names=list(columns)))
    return CatBoostRanker(model, UNCALIBRATED, Pool)


def _fit_lightgbm(matrix: Any, label: Any) -> TreeRanker:
    import lightgbm

    params = {"objective": "binary", "num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1}
    return LightGBMRanker(lightgbm.train(params, lightgbm.Dataset(matrix, label), 10), UNCALIBRATED)
