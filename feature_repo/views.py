"""The feature views: which columns each view's state has, in which order, and what they mean. PURE.

This list is the single source of the fold's state layout, the Parquet schema, the Feast schema, the packed Redis row
and the generated documentation. Every view starts with `<prefix>_time` (feature time of the row, the reference of all
its decayed values) and `<prefix>_seq` (the last event the row holds).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

#: Null of an int64 state column (there is no NaN for integers); NaN is the null of float64 columns.
NULL_INT: Final = -(2**63)
#: How many recent events of a user are kept.
RECENT_EVENTS: Final = 200

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US

Kind = Literal["int64", "float64"]


@dataclass(frozen=True)
class Column:
    """One fixed-width state column."""

    name: str
    kind: Kind
    doc: str
    #: Half-life in µs of an exponentially decayed column; 0 for all others.
    half_life_us: int = 0
    #: Null until something sets it (times, extremes); counts and sums start at 0.
    nullable: bool = False


@dataclass(frozen=True)
class View:
    """One feature view keyed by one or two entities.

    A view with two entities is stored online as one hash per first entity with a field per second entity.
    """

    name: str
    prefix: str
    entities: tuple[str, ...]
    columns: tuple[Column, ...]
    doc: str
    #: Rows older than this (by feature time) count as missing, online and offline alike; an event that finds such a row
    #: begins it anew. None: never.
    max_age_us: int | None = None
    #: Rows made for one first entity over its life, those begun anew included; later events make no more. None: no cap.
    max_rows: int | None = None

    @cached_property
    def ints(self) -> tuple[str, ...]:
        """Names of the int64 columns in state order."""
        return tuple(c.name for c in self.columns if c.kind == "int64")

    @cached_property
    def floats(self) -> tuple[str, ...]:
        """Names of the float64 columns in state order."""
        return tuple(c.name for c in self.columns if c.kind == "float64")

    @cached_property
    def layout_hash(self) -> int:
        """Unsigned 64-bit hash of name, entities and columns; the first field of every packed row."""
        text = "|".join([self.name, *self.entities, *(f"{c.name}:{c.kind}" for c in self.columns)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    @property
    def time_column(self) -> str:
        """Name of the feature-time column."""
        return f"{self.prefix}_time"

    @property
    def seq_column(self) -> str:
        """Name of the column with the last applied `seq`."""
        return f"{self.prefix}_seq"


def _count(name: str, doc: str) -> Column:
    return Column(name, "int64", doc)


def _time(name: str, doc: str) -> Column:
    return Column(name, "int64", f"{doc} (µs since the epoch, UTC)", nullable=True)


def _decayed(name: str, half_life_us: int, doc: str) -> Column:
    return Column(name, "float64", f"{doc}, decayed to the row's time", half_life_us)


def _head(prefix: str) -> tuple[Column, Column]:
    return (
        _time(f"{prefix}_time", "Feature time of the row: the last event folded into it"),
        _count(f"{prefix}_seq", "`seq` of the last event folded into the row"),
    )


USER_STATS = View(
    "user_stats",
    "user",
    ("user_id",),
    (
        *_head("user"),
        _count("user_impressions", "Confirmed impressions"),
        _count("user_views", "Views"),
        _count("user_carts", "Additions to the cart"),
        _count("user_purchases", "Purchase lines"),
        _count("user_cancels", "Cancelled lines"),
        _count("user_likes", "Likes and confirmations"),
        _count("user_dislikes", "Dislikes and rejections"),
        _count("user_ratings", "Ratings"),
        _count("user_orders", "Orders: purchases that open a new session (or time, where there is no session)"),
        _count("user_quantity", "Units bought"),
        _count("user_spend", "Money spent, minor units"),
        _count("user_cancelled_value", "Money of cancelled lines, minor units"),
        _count("user_price_sum", "Sum of unit prices over purchase lines, minor units"),
        _count("user_items_bought", "Different items bought"),
        _count("user_repurchases", "Purchase lines of an item bought before in another order"),
        Column("user_value_min", "int64", "Smallest purchase line, minor units", nullable=True),
        Column("user_value_max", "int64", "Largest purchase line, minor units", nullable=True),
        Column("user_order_session", "int64", "Hash of the last order's session (internal)", nullable=True),
        _count("user_pairs", "Rows made in `user_item_interactions`"),
        Column("user_pairs_full_seq", "int64", "`seq` of the event that made the last one allowed", nullable=True),
        _count("user_affinities", "Rows made in `user_category_affinity`"),
        Column("user_affinities_full_seq", "int64", "`seq` of the event that made the last one allowed", nullable=True),
        _time("user_first_time", "First event"),
        _time("user_action_time", "Last event other than an impression"),
        _time("user_first_order_time", "First order"),
        _time("user_order_time", "Last order"),
        Column("user_order_gap", "int64", "Time between the last two orders, µs", nullable=True),
        Column("user_value_sq", "float64", "Sum of squared purchase lines"),
        Column("user_rating_sum", "float64", "Sum of ratings"),
        _decayed("user_views_1h", HOUR_US, "Views"),
        _decayed("user_views_1d", DAY_US, "Views"),
        _decayed("user_views_7d", 7 * DAY_US, "Views"),
        _decayed("user_carts_1d", DAY_US, "Additions to the cart"),
        _decayed("user_purchases_7d", 7 * DAY_US, "Purchase lines"),
        _decayed("user_purchases_30d", 30 * DAY_US, "Purchase lines"),
        _decayed("user_spend_30d", 30 * DAY_US, "Money spent"),
        _decayed("user_impressions_1d", DAY_US, "Confirmed impressions"),
    ),
    "What a user did, over all items.",
)

ITEM_STATS = View(
    "item_stats",
    "item",
    ("item_id",),
    (
        *_head("item"),
        _count("item_impressions", "Confirmed impressions"),
        _count("item_views", "Views"),
        _count("item_carts", "Additions to the cart"),
        _count("item_purchases", "Purchase lines"),
        _count("item_cancels", "Cancelled lines"),
        _count("item_likes", "Likes and confirmations"),
        _count("item_dislikes", "Dislikes and rejections"),
        _count("item_ratings", "Ratings"),
        _count("item_quantity", "Units sold"),
        _count("item_revenue", "Revenue, minor units"),
        _count("item_buyers", "Different users who bought it"),
        _count("item_repurchases", "Purchase lines by users who had bought it before in another order"),
        _count("item_clicks", "Views that answer a recommendation (they carry a request id)"),
        Column("item_price_paid", "int64", "Last unit price seen in an event, minor units", nullable=True),
        _time("item_first_time", "First event"),
        _time("item_purchase_time", "Last purchase"),
        Column("item_rating_sum", "float64", "Sum of ratings"),
        _decayed("item_views_1d", DAY_US, "Views"),
        _decayed("item_views_7d", 7 * DAY_US, "Views"),
        _decayed("item_carts_7d", 7 * DAY_US, "Additions to the cart"),
        _decayed("item_purchases_1d", DAY_US, "Purchase lines"),
        _decayed("item_purchases_7d", 7 * DAY_US, "Purchase lines"),
        _decayed("item_purchases_30d", 30 * DAY_US, "Purchase lines"),
        _decayed("item_purchases_90d", 90 * DAY_US, "Purchase lines"),
        _decayed("item_impressions_7d", 7 * DAY_US, "Confirmed impressions"),
    ),
    "What all users did with an item.",
)

USER_ITEM = View(
    "user_item_interactions",
    "pair",
    ("user_id", "item_id"),
    (
        *_head("pair"),
        _count("pair_impressions", "Confirmed impressions"),
        _count("pair_views", "Views"),
        _count("pair_carts", "Additions to the cart"),
        _count("pair_purchases", "Purchase lines"),
        _count("pair_cancels", "Cancelled lines"),
        _count("pair_orders", "Orders that contain the item"),
        _count("pair_quantity", "Units bought"),
        _count("pair_spend", "Money spent, minor units"),
        Column("pair_feedback", "int64", "Last like/confirm (1) or dislike/reject (-1)", nullable=True),
        Column("pair_order_session", "int64", "Hash of the last order's session (internal)", nullable=True),
        _time("pair_first_time", "First event"),
        _time("pair_view_time", "Last view"),
        _time("pair_cart_time", "Last addition to the cart"),
        _time("pair_first_order_time", "First order of the item"),
        _time("pair_order_time", "Last order of the item"),
        Column("pair_order_gap", "int64", "Time between the last two orders of the item, µs", nullable=True),
        Column("pair_rating", "float64", "Last rating", nullable=True),
        _decayed("pair_views_7d", 7 * DAY_US, "Views"),
        _decayed("pair_purchases_30d", 30 * DAY_US, "Purchase lines"),
        _decayed("pair_purchases_90d", 90 * DAY_US, "Purchase lines"),
        _decayed("pair_impressions_7d", 7 * DAY_US, "Confirmed impressions"),
    ),
    "What one user did with one item.",
    max_age_us=730 * DAY_US,
    max_rows=10_000,
)

USER_CATEGORY = View(
    "user_category_affinity",
    "affinity",
    ("user_id", "category"),
    (
        *_head("affinity"),
        _count("affinity_views", "Views"),
        _count("affinity_carts", "Additions to the cart"),
        _count("affinity_purchases", "Purchase lines"),
        _count("affinity_cancels", "Cancelled lines"),
        _count("affinity_spend", "Money spent, minor units"),
        _time("affinity_purchase_time", "Last purchase"),
        _decayed("affinity_views_1d", DAY_US, "Views"),
        _decayed("affinity_views_7d", 7 * DAY_US, "Views"),
        _decayed("affinity_purchases_30d", 30 * DAY_US, "Purchase lines"),
        _decayed("affinity_purchases_90d", 90 * DAY_US, "Purchase lines"),
    ),
    "What one user did in one category (the item's category at the time of the event).",
    max_age_us=730 * DAY_US,
    max_rows=500,
)

#: Views the fold keeps, in the order the fold takes their states.
FOLD_VIEWS: Final = (USER_STATS, ITEM_STATS, USER_ITEM, USER_CATEGORY)
VIEWS: Final = {view.name: view for view in FOLD_VIEWS}

#: `user_recent_items`: the last `RECENT_EVENTS` events of a user other than impressions, oldest first. Offline it is
#: the event log itself, cut at the row's time; online one packed row with three parallel lists.
RECENT_VIEW: Final = "user_recent_items"
RECENT_FIELDS: Final = ("recent_item_ids", "recent_types", "recent_times")

#: `item_catalog`: what an item is. Not folded; written when the catalogue changes.
CATALOG_VIEW: Final = "item_catalog"
CATALOG_FIELDS: Final = (
    "item_title",
    "item_category",
    "item_price",
    "item_created_at",
    "item_available",
    "item_blocked",
)
