"""The simulated shop's items: category, hidden style and appeal, price, arrival, words of the title. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.events import ITEM_SCHEMA
from feature_repo.simulator.params import BASE_END, SimulatorParams

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

# fmt: off
_CONSUMABLES = (
    "Tea", "Coffee", "Candles", "Soap", "Honey", "Chocolate", "Olives", "Pasta", "Spices", "Shampoo", "Jam", "Oil",
    "Biscuits", "Incense",
)
_DURABLES = (
    "Lamp", "Mug", "Notebook", "Scarf", "Backpack", "Kettle", "Cushion", "Poster", "Planter", "Blanket", "Umbrella",
    "Watch", "Wallet", "Vase", "Mirror", "Clock", "Basket", "Teapot", "Glass", "Plate", "Knife", "Apron", "Towel",
    "Rug", "Stool", "Shelf", "Speaker", "Headphones", "Puzzle", "Tent", "Gloves", "Hat", "Belt", "Ring",
)
# fmt: on
#: One word pair per end of a style dimension: what a title says follows the hidden style.
_STYLE_WORDS = (
    ("Rustic", "Modern"),
    ("Colourful", "Plain"),
    ("Floral", "Geometric"),
    ("Vintage", "Futuristic"),
    ("Playful", "Elegant"),
    ("Natural", "Metallic"),
    ("Bold", "Soft"),
    ("Nordic", "Tropical"),
)
_TIERS = ("Basic", "Classic", "Select", "Premium")


@dataclass(frozen=True)
class Catalogue:
    """Items as arrays over the item's index; days count from the start of the simulated span.

    Attributes
    ----------
    category
        Index of the category, shape (n_items,).
    style
        Hidden unit vectors, shape (n_items, style_dims).
    price_level
        Standardised log price within the category, shape (n_items,).
    appeal, season_phase
        Hidden log appeal and phase of the item's season in radians, shape (n_items,).
    created_day, retired_day
        When the item arrives and leaves (infinity: never), shape (n_items,).
    consumable
        Whether the category is bought again and again, shape (n_categories,).
    """

    ids: list[str]
    category: Ints
    category_names: list[str]
    category_weight: Floats
    consumable: Mask
    style: Floats
    price: Ints
    price_level: Floats
    appeal: Floats
    season_phase: Floats
    created_day: Floats
    retired_day: Floats

    def table(self, params: SimulatorParams, shift_weeks: int) -> pa.Table:
        """Return the public side of the catalogue as `ITEM_SCHEMA`, times moved by whole weeks."""
        start = BASE_END - timedelta(days=params.span_days) + timedelta(weeks=shift_weeks)
        rows = []
        for i, item_id in enumerate(self.ids):
            noun = self.category_names[self.category[i]]
            strongest = np.argsort(-np.abs(self.style[i]))[:2]
            words = [_style_word(dim, self.style[i, dim]) for dim in strongest]
            tier = _TIERS[int(np.clip(np.floor(self.price_level[i] / 0.9 + 2), 0, 3))]
            consumable = bool(self.consumable[self.category[i]])
            rows.append(
                {
                    "item_id": item_id,
                    "title": f"{tier} {' '.join(words)} {noun} {i % 97 + 1}",
                    "category": noun.lower(),
                    "price": int(self.price[i]),
                    "created_at": start + timedelta(microseconds=int(self.created_day[i] * 86_400e6)),
                    "tags": [word.lower() for word in words] + ([tier.lower()] + ["refill"] * consumable),
                    "description": f"{words[0]}, {words[1].lower()} {noun.lower()} of our {tier.lower()} "
                    f"range{', to be used up and bought again' if consumable else ''}.",
                    "image": None,
                    "available": bool(self.retired_day[i] > params.span_days),
                }
            )
        return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def make_catalogue(params: SimulatorParams, rng: np.random.Generator) -> Catalogue:
    """Draw the items of a shop."""
    n, categories = params.n_items, params.n_categories
    weight = np.arange(1, categories + 1.0) ** -params.category_zipf
    weight = rng.permutation(weight / weight.sum())
    # every category has a first item that is there from the start and never leaves
    category = np.r_[np.arange(categories), rng.choice(categories, n - categories, p=weight**0.5 / (weight**0.5).sum())]
    style = _unit(
        rng.normal(size=(n, params.style_dims)) + 0.8 * rng.normal(size=(categories, params.style_dims))[category]
    )
    price_level = rng.normal(size=n)
    base_price = rng.normal(np.log(1500), 0.7, size=categories)
    price = np.maximum(np.round(np.exp(base_price[category] + 0.5 * price_level) / 5) * 5 - 1, 49).astype(np.int64)
    late = rng.random(n) >= params.items_at_start
    late[:categories] = False
    created = np.where(late, rng.random(n) * params.span_days, -rng.random(n) * 90.0)
    leaves = rng.random(n) < params.retired_share
    leaves[:categories] = False
    retired = np.where(leaves, np.maximum(created, 0) + rng.random(n) * 1.5 * params.span_days, np.inf)
    consumable = rng.permutation(np.arange(categories) < round(params.consumable_share * categories))
    return Catalogue(
        ids=[f"i{i:05d}" for i in range(n)],
        category=category.astype(np.int64),
        category_names=_category_names(consumable),
        category_weight=weight,
        consumable=consumable,
        style=style,
        price=price,
        price_level=price_level,
        appeal=rng.normal(0.0, params.appeal_sigma, size=n),
        season_phase=rng.random(n) * 2 * np.pi,
        created_day=created,
        retired_day=retired,
    )


def _category_names(consumable: Mask) -> list[str]:
    """Return a noun per category, numbered where a shop has more categories than we have nouns."""
    nouns = {True: iter(_numbered(_CONSUMABLES, len(consumable))), False: iter(_numbered(_DURABLES, len(consumable)))}
    return [next(nouns[bool(flag)]) for flag in consumable]


def _numbered(words: tuple[str, ...], count: int) -> list[str]:
    return [words[i % len(words)] + (f" {i // len(words) + 1}" if i >= len(words) else "") for i in range(count)]


def _style_word(dim: int, value: float) -> str:
    word = _STYLE_WORDS[dim % len(_STYLE_WORDS)][int(value > 0)]
    return word if dim < len(_STYLE_WORDS) else f"{word}-{dim // len(_STYLE_WORDS) + 1}"


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
