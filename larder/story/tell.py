"""Second half of the demo: what an application sees. Talks to the running API like any client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feature_repo.datasets import read_events, read_items
from feature_repo.errors import LarderError
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from larder.skew_result import figures
from larder.story.lists import side_by_side
from larder.story.sameness import prove_sameness
from larder_client.answers import Event, RankedItem
from larder_client.client import LarderClient

SHOWN = 8
K = 20
LATENCY_REQUESTS = 400
VISIBLE_WITHIN_S = 10.0


@dataclass(frozen=True)
class Story:
    """What the demo measured while it was told."""

    overlap_of_users: float
    items_changed_by_clicks: int
    features_changed: int
    visible_after_s: float
    new_user_items_changed: int
    p50_ms: float
    p95_ms: float
    skew_values: float
    skew_wrong: float
    skew_late_p95_ms: float
    skew_missing: float

    def figures(self) -> dict[str, float]:
        """Figures by name."""
        return {name: float(value) for name, value in vars(self).items()}


class Teller:
    """Tells the story of one project to a terminal."""

    def __init__(self, settings: Settings, client: LarderClient) -> None:
        self._client = client
        items = read_items(settings)
        ids = items["item_id"].to_pylist()
        self._titles = dict(zip(ids, (t or "" for t in items["title"].to_pylist()), strict=True))
        self._category = dict(zip(ids, (c or "" for c in items["category"].to_pylist()), strict=True))
        self._users = _active_users(settings)
        self._reader = OnlineReader(connect(settings, timeout_ms=2000), settings.project)

    def people(self) -> float:
        """Show popularity beside two users' lists; return how much their lists overlap."""
        popular = self._client.popular(k=K).items
        first, second = self._two_users()
        lists = {user: self._client.recommend(user, k=K).items for user in (first, second)}
        columns = {"most popular": popular, f"for {first}": lists[first], f"for {second}": lists[second]}
        print(side_by_side(columns, self._titles, rows=SHOWN))
        print("\nIn brackets: which candidate generator ranked the item highest; the order is the ranker's.")
        a, b = (_ids(lists[user]) for user in (first, second))
        return len(set(a) & set(b)) / K

    def clicks(self) -> tuple[int, int, float]:
        """Send a user's clicks; show the features and the list that changed.

        Returns
        -------
        tuple
            Items that are new in the list, features that changed, seconds until the events counted.
        """
        user = self._users[2]
        before = self._client.recommend(user, k=K)
        stats_before = self._stats(user)
        category, items = self._other_category(before.items)
        print(f"{user} looks at {len(items)} items of {category} and puts one into the cart:")
        for item in items:
            print(f"    {self._titles[item]}")
        events = [Event(user_id=user, item_id=item, event_type="view", session_id=f"demo-{user}") for item in items]
        events.append(Event(user_id=user, item_id=items[0], event_type="cart", session_id=f"demo-{user}"))
        waited = self._send(user, events)
        after = self._client.recommend(user, k=K)
        stats = self._stats(user)
        changed = {name: value for name, value in stats.items() if value != stats_before.get(name)}
        print(f"\nThe events counted after {waited * 1e3:.0f} ms. {len(changed)} features of the user changed, e.g.")
        for name in ("user_views", "user_carts", "user_views_1h", "user_carts_1d"):
            print(f"    {name:<16} {stats_before.get(name, 0.0):>8.2f} -> {stats.get(name, 0.0):>8.2f}")
        new = [item for item in _ids(after.items) if item not in _ids(before.items)]
        print(f"\n{len(new)} of {K} items are new in the list (*):")
        columns = {"before": before.items, "after": after.items}
        print(side_by_side(columns, self._titles, rows=SHOWN, marked=new))
        return len(new), len(changed), waited

    def newcomer(self) -> int:
        """Show a user nobody has seen, before and after one click; return how many items changed."""
        user = f"newcomer-{time.time_ns():x}"
        before = self._client.recommend(user, k=K)
        _, items = self._other_category(before.items)
        print(f"{user} is unknown: answered with level {before.level!r}, reasons {before.reasons or 'none'}.")
        print(f"One click on: {self._titles[items[0]]} ({self._category[items[0]]})\n")
        self._send(user, [Event(user_id=user, item_id=items[0], event_type="view", session_id=user)])
        after = self._client.recommend(user, k=K)
        new = [item for item in _ids(after.items) if item not in _ids(before.items)]
        columns = {"before": before.items, "after one click": after.items}
        print(side_by_side(columns, self._titles, rows=SHOWN, marked=new))
        return len(new)

    def latency(self) -> tuple[float, float]:
        """Ask a few hundred times over HTTP, one after the other; return p50 and p95 in ms."""
        spent = []
        for i in range(LATENCY_REQUESTS):
            start = time.perf_counter()
            self._client.recommend(self._users[i % len(self._users)], k=K)
            spent.append((time.perf_counter() - start) * 1e3)
        p50, p95 = (float(value) for value in np.quantile(spent, [0.5, 0.95]))
        print(f"{LATENCY_REQUESTS} requests for {K} items over HTTP, one by one: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
        return p50, p95

    def sameness(self, settings: Settings, base_url: str) -> tuple[float, float, float, float]:
        """Prove that features are the same everywhere while events stream in.

        Returns
        -------
        tuple
            Values compared, wrong ones, the 95 % quantile of how late rows were in ms, and missing values.
        """
        popular = _ids(self._client.popular(k=200).items)
        found = figures(prove_sameness(settings, base_url, self._users, popular))
        return found["values"], found["wrong"], found["late_p95_ms"], found["missing"]

    def _send(self, user: str, events: list[Event]) -> float:
        """Send events and wait until the user's features hold all of them; return the seconds it took."""
        start = time.perf_counter()
        results = self._client.send(events).results
        last = max(result.seq or 0 for result in results)
        while time.perf_counter() - start < VISIBLE_WITHIN_S:
            if self._reader.user(user, time.time_ns() // 1000).stats.seq[0] >= last:
                return time.perf_counter() - start
            time.sleep(0.005)
        raise LarderError(f"events of {user} did not count within {VISIBLE_WITHIN_S} s; is `larder ingest run` alive?")

    def _stats(self, user: str) -> dict[str, float]:
        """Return the user's state columns that are known."""
        rows = self._reader.user(user, time.time_ns() // 1000).stats
        values = {c.name: float(rows.column(c.name)[0]) for c in rows.view.columns}
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def _two_users(self) -> tuple[str, str]:
        """Two active users whose lists differ most among a few, for a telling picture."""
        lists = {user: set(_ids(self._client.recommend(user, k=K).items)) for user in self._users[:8]}
        pairs = [(a, b) for a in lists for b in lists if a < b]
        return min(pairs, key=lambda pair: len(lists[pair[0]] & lists[pair[1]]))

    def _other_category(self, items: list[RankedItem]) -> tuple[str, list[str]]:
        """Pick a category that a list lacks, and three popular items of it."""
        shown = {self._category.get(item.item_id, "") for item in items}
        popular = _ids(self._client.popular(k=500).items)
        for wanted in (lambda c: c not in shown, lambda c: True):
            found = self._by_category(popular, wanted, set(_ids(items)))
            if found:
                return next(iter(found.items()))
        raise LarderError("the catalogue is too small for the demo: no three items of one category")

    def _by_category(self, item_ids: list[str], wanted: Callable[[str], bool], taken: set[str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for item in item_ids:
            category = self._category.get(item, "")
            if category and wanted(category) and item not in taken:
                groups.setdefault(category, []).append(item)
        return {category: members[:3] for category, members in groups.items() if len(members) >= 3}


def _ids(items: list[RankedItem]) -> list[str]:
    return [item.item_id for item in items]


def _active_users(settings: Settings) -> list[str]:
    """Users with some history, the same ones every time."""
    users = read_events(settings, columns=["user_id"])["user_id"].value_counts().to_pylist()
    known = sorted(entry["values"] for entry in users if 15 <= entry["counts"] <= 300)
    rng = np.random.default_rng(settings.seed)
    return [str(user) for user in rng.permutation(known)[:200]]
