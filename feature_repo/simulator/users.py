"""The simulated users: hidden tastes for categories, style, price and novelty; when and how active. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from feature_repo.simulator.catalogue import Catalogue, Floats, Ints
from feature_repo.simulator.params import SimulatorParams


@dataclass(frozen=True)
class Users:
    """Users as arrays over the user's index; all of it is hidden from a recommender.

    Attributes
    ----------
    taste
        Long-term share of interest in each category, rows sum to 1, shape (n_users, n_categories).
    focus
        The favourite category of each period of `focus_days`, shape (n_users, n_periods); periods repeat.
    style
        What the user likes to look at, unit vectors, shape (n_users, style_dims).
    price_level, novelty
        Preferred standardised price, and pull towards new items, shape (n_users,).
    arrival_day, leaving_day
        When the user comes and goes, days from the start of the span, shape (n_users,).
    activity
        Sessions per day, up to a common factor, shape (n_users,).
    """

    ids: list[str]
    taste: Floats
    focus: Ints
    style: Floats
    price_level: Floats
    novelty: Floats
    arrival_day: Floats
    leaving_day: Floats
    activity: Floats

    def index_of(self, user_id: str) -> int:
        """Return the user's index; an unknown id gets somebody's taste, always the same person's."""
        number = user_id[1:]
        if user_id[:1] == "u" and number.isascii() and number.isdigit() and len(number) <= 9:
            index = int(number)
            if index < len(self.ids) and self.ids[index] == user_id:
                return index
        return int.from_bytes(blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % len(self.ids)


def make_users(params: SimulatorParams, catalogue: Catalogue, rng: np.random.Generator) -> Users:
    """Draw the users of a shop."""
    n, categories = params.n_users, params.n_categories
    liked_count = min(params.liked_categories, categories)
    # the largest keys of log weight + Gumbel are a draw without replacement by weight
    keys = 0.7 * np.log(catalogue.category_weight) + rng.gumbel(size=(n, categories))
    liked = np.argsort(-keys, axis=1)[:, :liked_count]
    shares = rng.dirichlet(np.full(liked_count, params.taste_concentration), size=n)
    taste = np.repeat(params.explore_share * catalogue.category_weight[None, :], n, axis=0)
    taste[np.arange(n)[:, None], liked] += (1 - params.explore_share) * shares
    periods = 2 * (params.span_days // params.focus_days + 1)
    favourite = (rng.random((n, periods, 1)) > np.cumsum(shares, axis=1)[:, None, :]).sum(axis=2)
    focus = np.take_along_axis(liked, np.minimum(favourite, liked_count - 1), axis=1)
    style = rng.normal(size=(n, params.style_dims))
    late = rng.random(n) >= params.users_at_start
    arrival = np.where(late, np.sqrt(rng.random(n)) * params.span_days, 0.0)  # more and more come
    return Users(
        ids=[f"u{i:05d}" for i in range(n)],
        taste=taste,
        focus=focus.astype(np.int64),
        style=style / np.linalg.norm(style, axis=1, keepdims=True),
        price_level=rng.normal(0.0, 0.9, size=n),
        novelty=rng.normal(0.3, 1.0, size=n),
        arrival_day=arrival,
        leaving_day=arrival + rng.exponential(params.lifetime_days, size=n),
        activity=rng.lognormal(0.0, params.activity_sigma, size=n),
    )
