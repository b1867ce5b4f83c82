"""A shop with something to learn: four tastes that show in categories, in titles and in who takes what with what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from feature_repo.events import EventType
from feature_repo.packed_tail import CatalogItem
from feature_repo.rows import UserRows
from feature_repo.views import DAY_US
from tests.tiny_bundle import CATEGORIES, Events, Shop, fold_shop
from training.generators.contract import Past
from training.split import Log

NOW_US = 1_790_000_000_000_000
NEWCOMER = "newcomer"  #: nothing is known of this user before NOW_US
_WORDS = (
    "rye oat malt crust loaf seed",
    "brie gouda feta blue goat rind",
    "plum fig berry pip sugar jar",
    "leaf mint pot assam cup bag",
)
_TYPES = (EventType.view, EventType.cart, EventType.purchase, EventType.rating)
PER_TASTE, NEW_PER_TASTE = 12, 3
_USERS, _EVENTS_OF_USER, _LATER_OF_USER = 80, 25, 6


@dataclass(frozen=True)
class LearnableShop:
    """Events before and after a moment, and what each user takes after it.

    Attributes
    ----------
    targets, new_targets
        Items each user takes after the moment: of those known before, and of those nobody had taken.
    """

    catalog: list[CatalogItem]
    user_ids: list[str]
    events: Events
    targets: dict[str, set[str]]
    new_targets: dict[str, set[str]]

    @cached_property
    def shop(self) -> Shop:
        """The shop as of the moment."""
        return self._folded(_before(self.events))

    @cached_property
    def log(self) -> Log:
        """All events, those after the moment included."""
        names = [EventType(code).name for code in self.events.etype.tolist()]
        users, items = (np.array(ids, object) for ids in (self.user_ids, [c.item_id for c in self.catalog]))
        e = self.events
        return Log(users[e.user], items[e.item], np.array(names, object), e.time)

    def past(self, seed: int = 0) -> Past:
        """What a generator may learn from."""
        return Past(self.log.before(NOW_US), self.shop.table(), NOW_US, seed, 1)

    def user_after(self, user_id: str, item_ids: list[str]) -> UserRows:
        """A user's rows after buying some items at the moment."""
        known, n = _before(self.events), len(item_ids)
        index = {c.item_id: i for i, c in enumerate(self.catalog)}
        fresh = {
            "user": np.full(n, self.user_ids.index(user_id)),
            "item": np.array([index[i] for i in item_ids]),
            "etype": np.full(n, int(EventType.purchase), np.int8),
            "value": np.ones(n),
            "time": np.full(n, NOW_US),
        }
        more = Events(**{name: np.concatenate([getattr(known, name), values]) for name, values in fresh.items()})
        return self._folded(more).user(user_id)

    def without_later_events(self) -> LearnableShop:
        """The same shop, had it closed at the moment."""
        return replace(self, events=_before(self.events))

    def _folded(self, events: Events) -> Shop:
        return fold_shop(self.catalog, self.user_ids, events, NOW_US)


def _before(events: Events) -> Events:
    keep = events.time < NOW_US
    return Events(*(values[keep] for values in (events.user, events.item, events.etype, events.value, events.time)))


def taste_of(item_id: str) -> int:
    """The taste an item is made for."""
    return int(item_id[1])


def items_of(taste: int) -> list[str]:
    """Ids of the items of a taste that have been taken, those of its two halves side by side."""
    return [f"t{taste}-{n:02d}" for n in range(PER_TASTE)]


def make_learnable_shop(seed: int = 5) -> LearnableShop:
    """Draw users who mostly take items of their half of a taste, some of the other half, few of other tastes."""
    rng = np.random.default_rng(seed)
    catalog, chance = [], np.zeros((len(CATEGORIES) * 2, len(CATEGORIES) * PER_TASTE))
    new = []
    for taste, name in enumerate(CATEGORIES):
        words = _WORDS[taste].split()
        for n in range(PER_TASTE + NEW_PER_TASTE):
            title = f"{' '.join(rng.choice(words, 3, replace=False)).title()} No {rng.integers(10)}"
            made = CatalogItem(
                f"t{taste}-{n:02d}", title, name, int(rng.integers(100, 5000)), NOW_US - 90 * DAY_US, True
            )
            (catalog if n < PER_TASTE else new).append(made)
    for kind in range(len(chance)):
        weight = np.full(chance.shape[1], 0.1)
        weight[kind // 2 * PER_TASTE : (kind // 2 + 1) * PER_TASTE] = 1.0
        half = slice(kind * PER_TASTE // 2, (kind + 1) * PER_TASTE // 2)
        weight[half] = np.linspace(12.0, 3.0, PER_TASTE // 2)
        chance[kind] = weight / weight.sum()
    user, item, time = [], [], []
    targets, new_targets = {}, {}
    user_ids = [f"u{n:03d}" for n in range(_USERS)]
    for u, user_id in enumerate(user_ids):
        kind = u % len(chance)
        taken = rng.choice(chance.shape[1], _EVENTS_OF_USER, p=chance[kind])
        later = rng.choice(chance.shape[1], _LATER_OF_USER, p=chance[kind], replace=False)
        fresh = len(catalog) + kind // 2 * NEW_PER_TASTE + rng.choice(NEW_PER_TASTE, 2, replace=False)
        targets[user_id] = {catalog[i].item_id for i in later}
        new_targets[user_id] = {new[i - len(catalog)].item_id for i in fresh}
        everything = np.concatenate([taken, later, fresh])
        user += [u] * len(everything)
        item += everything.tolist()
        time += (NOW_US - 1 - rng.integers(0, 60 * DAY_US, len(taken))).tolist()
        time += (NOW_US + rng.integers(0, 7 * DAY_US, len(later) + len(fresh))).tolist()
    order = np.argsort(time, kind="stable")
    etype = rng.choice([int(t) for t in _TYPES], len(order), p=[0.4, 0.1, 0.4, 0.1]).astype(np.int8)
    items = np.array(item)[order]
    # Ratings tell good items from bad ones: the first of each half are the best.
    value = np.where(etype == EventType.rating, 5.0 - items % (PER_TASTE // 2) * 0.5, 100.0)
    events = Events(np.array(user)[order], items, etype, value, np.array(time, np.int64)[order])
    return LearnableShop([*catalog, *new], [*user_ids, NEWCOMER], events, targets, new_targets)
