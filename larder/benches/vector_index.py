"""Retrieval from item factors: exact with NumPy and with FAISS, by the inverted file serving uses, and by HNSW."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from feature_repo.events import EventType
from feature_repo.rows import RecentEvents, UserRows, null_rows
from feature_repo.settings import Settings
from feature_repo.views import ITEM_STATS, USER_CATEGORY, USER_STATS
from larder.progress import progress
from serving.candidates.contract import F32, top_k
from serving.candidates.factors import ItemFactors
from serving.candidates.vector_index import EXACT_BELOW, VectorIndex, cluster, with_index
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table

K = 300
_USERS = 100
_NOW_US = 1_790_000_000_000_000


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Measure recall against exact search, and milliseconds on one thread."""
    figures: dict[str, float] = {}
    with threadpool_limits(1):
        for n in (20_000, 200_000):
            for d in (64, 128):
                with progress(f"{n:,} items x {d}"):
                    figures |= {f"{n // 1000}k_{d}.{name}": value for name, value in _measure(n, d).items()}
    return figures, {
        "200k_64.recall": (">=", 0.95),
        "200k_128.recall": (">=", 0.95),
        "200k_64.query_speedup": (">", 2.0),
        "200k_128.query_speedup": (">", 2.0),
    }


def _measure(n: int, d: int) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, users = made(n, d, seed=0)
    exact = [set(top_k(vectors @ user, K).tolist()) for user in users]
    flat = faiss.IndexFlatIP(d)
    flat.add(vectors)
    figures = {
        "numpy_ms": _ms(lambda i: top_k(vectors @ users[i], K)),
        "faiss_flat_ms": _ms(lambda i: flat.search(users[i : i + 1], K)),
    }
    figures["faiss_flat_over_numpy"] = figures["faiss_flat_ms"] / figures["numpy_ms"]
    if n < EXACT_BELOW:
        return figures
    start = time.perf_counter()
    centroids, lists = cluster(vectors, seed=1)
    figures["cluster_s"] = time.perf_counter() - start
    start = time.perf_counter()
    index = VectorIndex(vectors, centroids, lists)
    figures["load_s"] = time.perf_counter() - start
    figures["index_ms"] = _ms(lambda i: index.search(users[i], K))
    figures["recall"] = _recall(exact, [index.search(user, K) for user in users])
    # The same lists, filled by inner product as FAISS does on its own.
    coarse = faiss.IndexFlatIP(d)
    coarse.add(centroids)
    plain = faiss.IndexIVFFlat(coarse, d, len(centroids), faiss.METRIC_INNER_PRODUCT)
    plain.is_trained, plain.nprobe = True, len(centroids) // 8
    plain.add(vectors)
    figures["lists_by_product_ms"] = _ms(lambda i: plain.search(users[i : i + 1], K))
    figures["lists_by_product_recall"] = _recall(exact, plain.search(users, K)[1])
    graph = faiss.IndexHNSWFlat(d, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, 2 * K
    start = time.perf_counter()
    graph.add(vectors)
    figures["hnsw_build_s"] = time.perf_counter() - start
    figures["hnsw_ms"] = _ms(lambda i: graph.search(users[i : i + 1], K))
    figures["hnsw_recall"] = _recall(exact, graph.search(users, K)[1])
    return figures | _as_served(vectors, centroids, lists)


def _as_served(vectors: F32, centroids: F32, lists: npt.NDArray[np.int32]) -> dict[str, float]:
    """Milliseconds of a whole query: fold-in, retrieval, and the scores of the candidates."""
    ids = [f"i{i:06d}" for i in range(len(vectors))]
    one = with_index(ItemFactors(Vocabulary(ids), vectors, 1.0, 4.0, 180.0, centroids=centroids, lists=lists))
    table = build_item_table([CatalogEntry(i) for i in ids], null_rows(ITEM_STATS, len(ids)), _NOW_US)
    rng = np.random.default_rng(3)
    users = [_user([ids[i] for i in rng.integers(0, len(ids), 30)]) for _ in range(_USERS)]

    def ask(model: ItemFactors) -> float:
        return _ms(lambda i: _retrieve(model, users[i], table))

    served, scanned = ask(one), ask(replace(one, index=None))
    return {"query_ms": served, "query_scan_ms": scanned, "query_speedup": scanned / served}


def _retrieve(model: ItemFactors, user: UserRows, table: ItemTable) -> F32:
    query = model.query(user, table, _NOW_US)
    return query.scores(query.top(K))


def _user(item_ids: list[str]) -> UserRows:
    n = len(item_ids)
    recent = RecentEvents(item_ids, np.full(n, int(EventType.purchase), np.int8), np.full(n, _NOW_US))
    return UserRows("u", null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), recent)


def made(n: int, d: int, *, seed: int) -> tuple[F32, F32]:
    """Make item vectors around 200 centres, of log-normal length as ALS makes them, and users near a few items each."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(200, d))[rng.integers(0, 200, n)] + 0.7 * rng.normal(size=(n, d))
    vectors *= rng.lognormal(0.0, 0.6, (n, 1)) / np.sqrt(d)
    users = vectors[rng.integers(0, n, (_USERS, 5))].mean(axis=1) + 0.1 * rng.normal(size=(_USERS, d)) / np.sqrt(d)
    return vectors.astype(np.float32), users.astype(np.float32)


def _recall(exact: list[set[int]], found: Any) -> float:
    return float(np.mean([len(want & set(got.tolist())) / K for want, got in zip(exact, found, strict=True)]))


def _ms(ask: Callable[[int], object]) -> float:
    """Median milliseconds over the users."""
    seconds = []
    for i in range(_USERS):
        start = time.perf_counter()
        ask(i)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e3
