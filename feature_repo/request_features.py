"""Request-time features: what a ranker sees, as pure vectorised functions of state and `now`. PURE.

One implementation serves the on-demand feature view (training frames) and the API, so both see the same numbers. All
inputs are float64 columns with NaN for null (rows.Rows.column); a feature that cannot be known is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_repo.views import DAY_US, FOLD_VIEWS, HOUR_US

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Columns = Mapping[str, F64]
Feature = Callable[["Ages", F64], F64]

#: Price of the catalogue, beside the state columns of the fold's views.
CATALOG_INPUTS = ("item_price", "item_created_at")

_HALF_LIVES = {c.name: (float(c.half_life_us), v.time_column) for v in FOLD_VIEWS for c in v.columns if c.half_life_us}


class Ages(Mapping[str, F64]):
    """State columns that keep what time has passed since each of their moments: many features ask for the same."""

    def __init__(self, columns: Columns, now: F64) -> None:
        self._columns, self._now = columns, now
        self._ages: dict[str, F64] = {}

    def __getitem__(self, name: str) -> F64:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def age(self, time: str) -> F64:
        """Return µs from a time column to now, at least 0."""
        found = self._ages.get(time)
        if found is None:
            found = self._ages[time] = np.maximum(self._now - self._columns[time], 0.0)
        return found


@dataclass(frozen=True, slots=True)
class Decayed:
    """A decayed counter as of now."""

    name: str
    time: str
    half_life_us: float

    def __call__(self, c: Ages, now: F64) -> F64:
        """Let the counter decay from its row's time on."""
        return c[self.name] * np.exp2(c.age(self.time) / -self.half_life_us)


@dataclass(frozen=True, slots=True)
class Raw:
    """A state column as it is."""

    name: str

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the column."""
        return c[self.name]


@dataclass(frozen=True, slots=True)
class Since:
    """Time passed since a moment."""

    time: str
    unit_us: int

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the units of time passed."""
        return c.age(self.time) / self.unit_us


@dataclass(frozen=True, slots=True)
class Ratio:
    """One column over another."""

    numerator: str
    denominator: str

    def __call__(self, c: Ages, now: F64) -> F64:
        """Divide, with NaN where the denominator is 0."""
        return _ratio(c[self.numerator], c[self.denominator])


@dataclass(frozen=True, slots=True)
class Smoothed:
    """A rate shrunk towards `prior` with the strength of `weight` observations."""

    numerator: str
    denominator: str
    prior: float
    weight: float

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the rate."""
        return (c[self.numerator] + self.prior * self.weight) / (c[self.denominator] + self.weight)


@dataclass(frozen=True, slots=True)
class MeanGap:
    """Mean time between orders in days; NaN with fewer than two."""

    first: str
    last: str
    orders: str

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the days."""
        first, last = c[self.first], c[self.last]
        return _ratio((last - first) / DAY_US, np.maximum(c[self.orders] - 1.0, 0.0))


@dataclass(frozen=True, slots=True)
class Due:
    """Time since the last order, in units of the usual gap."""

    gap: MeanGap

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the units."""
        gap = self.gap(c, now)
        return _ratio((now - c[self.gap.last]) / DAY_US, gap)


@dataclass(frozen=True, slots=True)
class Price:
    """Price the last event carried (point-in-time by construction), else the catalogue's."""

    paid: str
    listed: str

    def __call__(self, c: Ages, now: F64) -> F64:
        """Return the price, minor units."""
        return np.where(np.isnan(c[self.paid]), c[self.listed], c[self.paid])


@dataclass(frozen=True, slots=True)
class PriceRatio:
    """A price against a mean price."""

    price: Price
    mean: Ratio

    def __call__(self, c: Ages, now: F64) -> F64:
        """Divide."""
        return _ratio(self.price(c, now), self.mean(c, now))


@dataclass(frozen=True, slots=True)
class Trend:
    """A counter of a short half-life against one of a long half-life, both decayed to now and smoothed.

    `share` is what the short one is of the long one where nothing changes.
    """

    short: Decayed
    long: Decayed
    share: float

    def __call__(self, c: Ages, now: F64) -> F64:
        """Divide."""
        return (self.short(c, now) + TREND_PRIOR) / (self.long(c, now) * self.share + TREND_PRIOR)


#: Events added to both sides of a trend, so that few say little.
TREND_PRIOR: Final = 0.5


def _decayed(name: str) -> Decayed:
    half_life, time = _HALF_LIVES[name]
    return Decayed(name, time, half_life)


def _ratio(numerator: F64, denominator: F64) -> F64:
    """Divide, with NaN where the denominator is 0."""
    return numerator / np.where(denominator == 0.0, np.nan, denominator)


_PRICE = Price("item_price_paid", "item_price")
_MEAN_PRICE = Ratio("user_price_sum", "user_purchases")
_PAIR_GAP = MeanGap("pair_first_order_time", "pair_order_time", "pair_orders")

#: What each feature says, and how it is computed, by name.
FEATURES: Final[dict[str, tuple[str, Feature]]] = {
    # user
    "f_user_views_1h": ("User's views, half-life 1 hour", _decayed("user_views_1h")),
    "f_user_views_1d": ("User's views, half-life 1 day", _decayed("user_views_1d")),
    "f_user_views_7d": ("User's views, half-life 7 days", _decayed("user_views_7d")),
    "f_user_carts_1d": ("User's additions to the cart, half-life 1 day", _decayed("user_carts_1d")),
    "f_user_purchases_7d": ("User's purchase lines, half-life 7 days", _decayed("user_purchases_7d")),
    "f_user_purchases_30d": ("User's purchase lines, half-life 30 days", _decayed("user_purchases_30d")),
    "f_user_orders": ("User's orders", Raw("user_orders")),
    "f_user_hours_since_action": ("Hours since the user's last action", Since("user_action_time", HOUR_US)),
    "f_user_days_since_order": ("Days since the user's last order", Since("user_order_time", DAY_US)),
    "f_user_days_known": ("Days since the user's first event", Since("user_first_time", DAY_US)),
    "f_user_order_gap_days": (
        "Mean days between the user's orders",
        MeanGap("user_first_order_time", "user_order_time", "user_orders"),
    ),
    "f_user_mean_price": ("Mean unit price the user paid, minor units", _MEAN_PRICE),
    "f_user_lines_per_order": (
        "Purchase lines per order",
        Ratio("user_purchases", "user_orders"),
    ),
    "f_user_repurchase_rate": (
        "Share of the user's lines that repeat an item",
        Smoothed("user_repurchases", "user_purchases", 0.2, 5.0),
    ),
    "f_user_items_bought": ("Different items the user bought", Raw("user_items_bought")),
    # item
    "f_item_views_1d": ("Item's views, half-life 1 day", _decayed("item_views_1d")),
    "f_item_views_7d": ("Item's views, half-life 7 days", _decayed("item_views_7d")),
    "f_item_carts_7d": ("Item's additions to the cart, half-life 7 days", _decayed("item_carts_7d")),
    "f_item_purchases_1d": ("Item's purchase lines, half-life 1 day", _decayed("item_purchases_1d")),
    "f_item_purchases_7d": ("Item's purchase lines, half-life 7 days", _decayed("item_purchases_7d")),
    "f_item_purchases_30d": ("Item's purchase lines, half-life 30 days", _decayed("item_purchases_30d")),
    "f_item_purchases_90d": ("Item's purchase lines, half-life 90 days", _decayed("item_purchases_90d")),
    "f_item_trend": (
        "Item's last week against its last quarter",
        Trend(_decayed("item_purchases_7d"), _decayed("item_purchases_90d"), 7.0 / 90.0),
    ),
    "f_item_conversion": (
        "Purchase lines per view, smoothed",
        Smoothed("item_purchases", "item_views", 0.05, 20.0),
    ),
    "f_item_ctr": (
        "Recommendation clicks per confirmed impression, smoothed",
        Smoothed("item_clicks", "item_impressions", 0.05, 20.0),
    ),
    "f_item_buyers": ("Different users who bought the item", Raw("item_buyers")),
    "f_item_repurchase_rate": (
        "Share of the item's lines that are repeats",
        Smoothed("item_repurchases", "item_purchases", 0.2, 10.0),
    ),
    "f_item_quantity_mean": ("Units per purchase line", Ratio("item_quantity", "item_purchases")),
    "f_item_cancel_rate": (
        "Cancelled lines per purchase line, smoothed",
        Smoothed("item_cancels", "item_purchases", 0.02, 20.0),
    ),
    "f_item_price": ("Item's price, minor units", _PRICE),
    "f_item_age_days": ("Days since the item entered the catalogue", Since("item_created_at", DAY_US)),
    "f_item_days_since_purchase": ("Days since anybody bought the item", Since("item_purchase_time", DAY_US)),
    # user x item
    "f_pair_views": ("User's views of the item", Raw("pair_views")),
    "f_pair_views_7d": ("User's views of the item, half-life 7 days", _decayed("pair_views_7d")),
    "f_pair_carts": ("User's additions of the item to the cart", Raw("pair_carts")),
    "f_pair_purchases": ("User's purchase lines of the item", Raw("pair_purchases")),
    "f_pair_orders": ("User's orders with the item", Raw("pair_orders")),
    "f_pair_purchases_30d": ("User's purchase lines of the item, half-life 30 days", _decayed("pair_purchases_30d")),
    "f_pair_purchases_90d": ("User's purchase lines of the item, half-life 90 days", _decayed("pair_purchases_90d")),
    "f_pair_order_share": (
        "Share of the user's orders with the item",
        Ratio("pair_orders", "user_orders"),
    ),
    "f_pair_quantity": ("Units of the item the user bought", Raw("pair_quantity")),
    "f_pair_cancels": ("Lines of the item the user cancelled", Raw("pair_cancels")),
    "f_pair_hours_since_view": ("Hours since the user viewed the item", Since("pair_view_time", HOUR_US)),
    "f_pair_days_since_order": ("Days since the user ordered the item", Since("pair_order_time", DAY_US)),
    "f_pair_due": ("Time since the user ordered the item, in units of the usual gap", Due(_PAIR_GAP)),
    "f_pair_impressions_7d": ("Times shown to the user, half-life 7 days", _decayed("pair_impressions_7d")),
    # user x category
    "f_affinity_views_1d": ("User's views in the category, half-life 1 day", _decayed("affinity_views_1d")),
    "f_affinity_views_7d": ("User's views in the category, half-life 7 days", _decayed("affinity_views_7d")),
    "f_affinity_purchases_90d": (
        "User's purchase lines in the category, half-life 90 days",
        _decayed("affinity_purchases_90d"),
    ),
    "f_affinity_purchase_share": (
        "Share of the user's lines in the category",
        Ratio("affinity_purchases", "user_purchases"),
    ),
    "f_affinity_view_share": (
        "Share of the user's views in the category",
        Ratio("affinity_views", "user_views"),
    ),
    "f_affinity_days_since_purchase": (
        "Days since the user bought in the category",
        Since("affinity_purchase_time", DAY_US),
    ),
    # across
    "f_price_ratio": ("Item's price against the user's mean price", PriceRatio(_PRICE, _MEAN_PRICE)),
    "f_hour_of_day": ("Hour of the day, UTC", lambda c, now: np.floor((now % DAY_US) / HOUR_US)),
    "f_day_of_week": ("Day of the week, UTC, Monday 0", lambda c, now: (np.floor(now / DAY_US) + 3.0) % 7.0),
}

OUTPUTS: tuple[tuple[str, str], ...] = tuple((name, doc) for name, (doc, _) in FEATURES.items())


class _Recorder(dict[str, F64]):
    """Remembers which columns were asked for."""

    def __missing__(self, key: str) -> F64:
        self[key] = np.zeros(1)
        return self[key]


def inputs_of(names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """State columns that the named features (all if None) are computed from, found by running them once."""
    columns = _Recorder()
    asked = Ages(columns, np.zeros(1))
    for name in names if names is not None else tuple(FEATURES):
        FEATURES[name][1](asked, np.zeros(1))
    return tuple(columns)


INPUTS: tuple[str, ...] = inputs_of()


def compute(columns: Columns, now_us: npt.NDArray[np.int64], names: tuple[str, ...] | None = None) -> dict[str, F32]:
    """Compute request-time features.

    Parameters
    ----------
    columns
        State columns by name, float64 with NaN for null, shapes (n,) or (1,).
    now_us
        The moment of the request or of the label, µs since the epoch, shape (n,) or (1,).
    names
        Which features, in which order; all if None.

    Returns
    -------
    dict
        float32 arrays, shapes (n,) or (1,), by feature name.
    """
    now = now_us.astype(np.float64)
    known = Ages(columns, now)
    return {
        name: FEATURES[name][1](known, now).astype(np.float32)
        for name in (names if names is not None else tuple(FEATURES))
    }
