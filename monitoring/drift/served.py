"""Draws a window's sample from the impression log and the event log: one request per user, one row per request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from feature_repo.errors import NotFoundError
from feature_repo.event_log import read_events
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from monitoring.drift.columns import DEPTH, EVENT_ITEM, EVENT_USER, POPULAR, Answer, Values, columns_of, draw
from serving.impressions import ImpressionRecord

#: What people do by themselves; other types are confirmations and opinions.
_ACTIONS: Final = ("view", "cart", "purchase")
_HALF_YEAR_US: Final = 180 * DAY_US


@dataclass(frozen=True, slots=True)
class Watched:
    """The champion, as far as watching it needs.

    Attributes
    ----------
    popular
        Its most popular items.
    """

    bundle_id: str
    service: str
    popular: frozenset[str]

    @classmethod
    def of(cls, bundle_id: str, service: str, popular: Iterable[str]) -> Watched:
        """Take what is needed of a bundle."""
        return cls(bundle_id, service, frozenset(list(popular)[:POPULAR]))


@dataclass(frozen=True, slots=True)
class Known:
    """What there was when the champion was trained.

    Attributes
    ----------
    prices
        Last price of each item, minor units.
    """

    categories: frozenset[str]
    prices: dict[str, float]


def answer_of(record: ImpressionRecord, watched: Watched) -> Answer | None:
    """Return what one answer adds; None where no model of the champion's feature list ranked it.

    A user's rows are alike, so one of the first places is drawn, by the request's id.

    Raises
    ------
    ValueError
        If the record is damaged.
    """
    seen = record.seen
    if seen is None or seen.service_hash != service_hash(watched.service) or not record.items:
        return None
    matrix, seqs, category = seen.unpack()
    if seen.candidates is None:
        places = list(range(min(seen.rows, len(record.items))))
    else:
        row = {item: i for i, item in enumerate(seen.candidates)}
        places = [row[item.item_id] for item in record.items if item.item_id in row]
    first = places[:DEPTH]
    if not first:
        return None
    items = record.items[: len(first)]
    drawn = draw(record.request_id) % len(first)
    features = matrix[first[drawn], : len(feature_list(watched.service))].astype(np.float64)
    return Answer(
        request_id=record.request_id,
        user_id=record.user_id,
        item_id=items[drawn].item_id,
        features=features,
        missing_share=float(np.isnan(features).mean()),
        scores=np.array([item.score for item in items]),
        score=items[drawn].score,
        source=items[drawn].source,
        category=seen.categories[category[first[drawn]]],
        categories=len({int(category[place]) for place in first}),
        popular_share=float(np.mean([item.item_id in watched.popular for item in items])),
        known_share=float(np.mean(seqs[2, first] > 0)),
        level=record.level,
    )


@dataclass
class UserSample:
    """Keeps the `size` users whose hash is smallest, and of each the request whose hash is smallest.

    Every user is as likely as any other, however often they ask, and memory does not grow with traffic. Requests of
    one user are alike: counted as several they would make chance look like drift.
    """

    size: int
    salt: str
    users: dict[str, tuple[int, int, ImpressionRecord]] = field(default_factory=dict)
    _limit: int = 2**64

    def offer(self, record: ImpressionRecord) -> None:
        """Consider one request."""
        user = draw(self.salt, record.user_id)
        if user > self._limit:
            return
        request, kept = draw(record.request_id), self.users.get(record.user_id)
        if kept is None or request < kept[1]:
            self.users[record.user_id] = (user, request, record)
        if len(self.users) > 4 * self.size:
            self._shrink()

    def records(self) -> list[ImpressionRecord]:
        """Return the sample, of at most `size` users."""
        self._shrink()
        return [record for _, _, record in self.users.values()]

    def _shrink(self) -> None:
        best = sorted(self.users.items(), key=lambda pair: pair[1][0])[: self.size]
        self.users = dict(best)
        if len(best) == self.size:
            self._limit = best[-1][1][0]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A window's sample.

    Attributes
    ----------
    answers
        Of lists the champion made with all features.
    levels
        Of one answer per user, whatever made it.
    enough
        Whether so many users were answered as the rules ask for.
    """

    answers: list[Answer]
    levels: list[str]
    enough: bool


def draw_window(records: Iterable[ImpressionRecord], watched: Watched, start_us: int, end_us: int, size: int) -> Drawn:
    """Draw the sample of the answers given from `start_us` to before `end_us`."""
    salt = str(start_us)
    made, all_of_them = UserSample(size, salt), UserSample(size, salt)
    for record in records:
        if not start_us <= record.time_us < end_us:
            continue
        if record.assigned_arm != "canary":
            all_of_them.offer(record)
        if record.served_bundle == watched.bundle_id and record.level == "full" and record.seen is not None:
            made.offer(record)
    answers = [one for record in made.records() if (one := answer_of(record, watched)) is not None]
    return Drawn(answers, [record.level for record in all_of_them.records()], len(answers) >= size)


def with_outcomes(settings: Settings, answers: list[Answer], start_us: int, end_us: int) -> list[Answer]:
    """Say of each answer whether its list was clicked, and bought from, until `end_us`."""
    asked = {answer.request_id for answer in answers}
    clicked, purchased = set[str](), set[str]()
    for row in _events(settings, start_us, end_us, ("request_id", "event_type")):
        if row["request_id"] in asked:
            {"view": clicked, "purchase": purchased}.get(row["event_type"], set()).add(row["request_id"])
    return [replace(one, clicked=one.request_id in clicked, purchased=one.request_id in purchased) for one in answers]


def event_columns(
    settings: Settings, start_us: int, end_us: int, known: Known, size: int, every_us: int
) -> dict[str, Values]:
    """Draw what people did by themselves: one event per user and stretch of time, `size` of them.

    Parameters
    ----------
    known
        What existed when the champion was trained.
    every_us
        Length of the stretches: that of a window, for the reference too.
    """
    best: dict[tuple[str, int], tuple[int, dict[str, object]]] = {}
    columns = ("event_id", "user_id", "item_id", "event_type", "category", "price", "request_id", "event_timestamp")
    for row in _events(settings, start_us, end_us, columns):
        if row["request_id"] is not None or row["event_type"] not in _ACTIONS:
            continue
        key = (str(row["user_id"]), int(row["event_timestamp"].timestamp() * 1e6) // every_us)
        place = draw(str(row["event_id"]))
        if key not in best or place < best[key][0]:
            best[key] = (place, row)
    drawn = [row for _, row in sorted(best.values(), key=lambda pair: pair[0])[:size]]
    prices = [np.nan if row["price"] is None else float(str(row["price"])) for row in drawn]
    new = [row["category"] is not None and row["category"] not in known.categories for row in drawn]
    before = np.array([known.prices.get(str(row["item_id"]), np.nan) for row in drawn], np.float64)
    return {
        EVENT_USER: np.array([f"{draw(str(row['user_id'])):016x}" for row in drawn], object),
        EVENT_ITEM: np.array([row["item_id"] for row in drawn], object),
        "event_type": np.array([row["event_type"] for row in drawn], object),
        "event_price": np.array(prices, np.float64),
        "event_price_change": np.array(prices, np.float64) / np.where(before > 0, before, np.nan),
        "event_category": np.array([row["category"] or "" for row in drawn], object),
        "event_new_category": np.array(new, np.float64),
    }


def known_until(settings: Settings, end_us: int) -> Known:
    """Return the categories, and each item's last price, of the events of the half year before a time."""
    columns = ("item_id", "category", "price")
    rows = _events(settings, max(end_us - _HALF_YEAR_US, 0), end_us, columns)
    prices = {str(row["item_id"]): float(str(row["price"])) for row in rows if row["price"] is not None}
    return Known(frozenset(str(row["category"]) for row in rows if row["category"]), prices)


def window_columns(drawn: Drawn, service: str, events: dict[str, Values]) -> dict[str, Values]:
    """Put a window's columns together."""
    return columns_of(drawn.answers, service) | {"level": np.array(drawn.levels, object)} | events


def _events(settings: Settings, start_us: int, end_us: int, columns: tuple[str, ...]) -> list[dict]:  # type: ignore[type-arg] # rows of the log
    try:
        table = read_events(
            settings,
            since_seq=((start_us // 1000) << SEQ_COUNTER_BITS) - 1,
            until=datetime.fromtimestamp(end_us / 1e6, UTC),
            columns=list(columns),
        )
    except NotFoundError:
        return []
    rows: list[dict[str, object]] = table.to_pylist()
    return rows
