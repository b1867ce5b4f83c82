"""Shifts that are injected into a simulated shop: prices, taste, broken features, a new category, lost clicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.events import EVENT_SCHEMA
from feature_repo.rows import Rows, UserRows
from larder.benches.simulated_rounds import World
from serving.candidates.contract import F32, I32
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender

#: Share of the events whose items get the new category.
_MOVED: Final = 0.12
NEW_CATEGORY: Final = "never seen before"


def _nothing(world: World, begins: datetime) -> World:
    return world


@dataclass(frozen=True)
class Shift:
    """One change of the world, or of what the model sees of it.

    Attributes
    ----------
    shows
        Prefixes of the columns of which one must be in alarm.
    change
        The world from a moment on.
    feature, wrong
        A feature, or those of a pattern (f_pair_*), and what they become on their way to the model.
    others_taste
        Everybody acts as somebody else would.
    lost_events
        Share of answers to lists that never arrive.
    visible
        Whether it is expected to be found; what is known to be invisible is shown all the same.
    """

    name: str
    shows: tuple[str, ...] = ("",)
    change: Callable[[World, datetime], World] = _nothing
    feature: str = ""
    wrong: Callable[[F32], F32] = lambda column: column
    others_taste: bool = False
    lost_events: float = 0.0
    visible: bool = True

    def world(self, world: World, begins: datetime) -> World:
        """Return the changed world."""
        changed = self.change(world, begins)
        return replace(changed, later=changed.later.cast(EVENT_SCHEMA))

    def recommender(self, recommender: Recommender) -> Recommender:
        """Return the recommender whose features are broken, if this breaks any.

        Raises
        ------
        BadInputError
            If it has none of that name.
        """
        if not self.feature:
            return recommender
        places = [place for place, name in enumerate(recommender.columns) if fnmatchcase(name, self.feature)]
        if not places:
            raise BadInputError(f"no feature {self.feature!r} to break")
        parts = {name: getattr(recommender, name) for name in recommender.__dataclass_fields__}
        return _Broken(**parts, places=places, wrong=self.wrong)

    def acts_as(self, world: World, user_id: str) -> str:
        """Whose taste a user has."""
        return _other(world, user_id) if self.others_taste else user_id


@dataclass(frozen=True, eq=False)
class _Broken(Recommender):
    places: list[int] = field(default_factory=list)
    wrong: Callable[[F32], F32] = field(default=lambda column: column)

    def matrix(self, user: UserRows, table: ItemTable, items: I32, pairs: Rows, retrieval: F32, now_us: int) -> F32:
        """Assemble the ranker's input with some columns as they should not be."""
        matrix = np.array(super().matrix(user, table, items, pairs, retrieval, now_us), order="F")
        matrix[:, self.places] = self.wrong(matrix[:, self.places])
        return matrix


def _other(world: World, user_id: str) -> str:
    """Somebody from the other end of the list."""
    ids = world.shop.users.ids
    return ids[(world.shop.users.index_of(user_id) + len(ids) // 2) % len(ids)]


def _dearer(world: World, begins: datetime) -> World:
    """Everything costs half as much again."""

    def raised(name: str, later: pa.Table) -> pa.Array:
        times = pc.multiply(later[name], 1.5)
        return pc.if_else(_after(later, begins), times, later[name]).cast(later.schema.field(name).type, safe=False)

    later = world.later
    for name in ("price", "value"):
        later = later.set_column(later.schema.names.index(name), name, raised(name, later))
    price = world.items["price"]
    items = world.items.set_column(
        world.items.schema.names.index("price"), "price", pc.round(pc.multiply(price, 1.5)).cast(price.type, safe=False)
    )
    return replace(world, later=later, items=items)


def _other_taste(world: World, begins: datetime) -> World:
    """People do what others did until then."""
    later = world.later
    users = later["user_id"].to_pylist()
    after = _after(later, begins).to_pylist()
    moved = [_other(world, user) if now else user for user, now in zip(users, after, strict=True)]
    return replace(world, later=later.set_column(later.schema.names.index("user_id"), "user_id", pa.array(moved)))


def _recategorised(world: World, begins: datetime) -> World:
    """Move some items into a category that did not exist."""
    counts = world.later["item_id"].value_counts().to_pylist()
    total, moved, taken = world.later.num_rows, set[str](), 0
    for one in sorted(counts, key=lambda one: str(one["values"]))[::3]:
        if taken > _MOVED * total:
            break
        moved.add(one["values"])
        taken += one["counts"]
    later = world.later
    ours = pc.is_in(later["item_id"], pa.array(sorted(moved)))
    category = pc.if_else(pc.and_(_after(later, begins), ours), NEW_CATEGORY, later["category"])
    later = later.set_column(later.schema.names.index("category"), "category", category)
    inside = pc.is_in(world.items["item_id"], pa.array(sorted(moved)))
    names = pc.if_else(inside, NEW_CATEGORY, world.items["category"])
    items = world.items.set_column(world.items.schema.names.index("category"), "category", names)
    return replace(world, later=later, items=items)


def _after(later: pa.Table, begins: datetime) -> pa.Array:
    time = later["event_timestamp"]
    return pc.greater_equal(time, pa.scalar(begins, time.type)).combine_chunks()


SHIFTS: Final = (
    Shift(
        "prices",
        ("features/f_item_price", "quality/event_price", "features/f_price_ratio", "quality/event_price_change"),
        _dearer,
    ),
    Shift("taste", ("outcomes/", "features/", "recommendations/"), _other_taste, others_taste=True),
    Shift(
        "feature_missing",
        ("features/f_user_hours_since_action",),
        feature="f_user_hours_since_action",
        wrong=lambda column: np.full_like(column, np.nan),
    ),
    Shift(
        "feature_in_other_units",
        ("features/f_item_days_since_purchase",),
        feature="f_item_days_since_purchase",
        wrong=lambda column: column * np.float32(24.0),
    ),
    Shift("new_category", ("quality/event_new_category", "quality/event_category"), _recategorised),
    Shift("clicks_lost", ("outcomes/clicked",), lost_events=0.7),
)
