"""The hidden truth: what a user would look at next, and how well an item fits. PURE.

A user at a time has a taste, shares over categories. Within a category the next item is a softmax of a utility made of
the item's appeal, its season, its newness, and its closeness to the user's style and price level. The utility is a
product of two short vectors, one of the user and time, one of the item, so whole tables of it are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.simulator.catalogue import Catalogue, Floats, Ints, Mask
from feature_repo.simulator.params import SimulatorParams
from feature_repo.simulator.users import Users


@dataclass(frozen=True)
class Preferences:
    """Utilities and probabilities of one world. Times are days from the start of the span."""

    params: SimulatorParams
    catalogue: Catalogue
    users: Users

    def taste_at(self, users: Ints, days: Floats) -> Floats:
        """Return the shares over categories of users at times, shape (n, n_categories)."""
        p = self.params
        period = (np.maximum(days, 0) // p.focus_days).astype(np.int64) % self.users.focus.shape[1]
        taste: Floats = (1 - p.focus_share) * self.users.taste[users]
        taste[np.arange(len(users)), self.users.focus[users, period]] += p.focus_share
        return taste

    def user_side(self, users: Ints, days: Floats) -> Floats:
        """Return the user's and time's vector of the utility, shape (n, style_dims + 6)."""
        p, u = self.params, self.users
        angle = 2 * np.pi * days / p.season_days
        newness = (p.launch_boost + p.novelty_weight * u.novelty[users]) * np.exp(-days / p.novelty_days)
        one = np.ones(len(users))
        columns = [one, np.cos(angle), np.sin(angle), newness, 2 * p.price_weight * u.price_level[users], one]
        return np.column_stack([*columns, p.style_weight * u.style[users]])

    def item_side(self, items: Ints) -> Floats:
        """Return the item's vector of the utility, shape (n, style_dims + 6)."""
        p, c = self.params, self.catalogue
        season = p.season_amplitude * np.column_stack([np.cos(c.season_phase[items]), np.sin(c.season_phase[items])])
        newness = np.exp(np.maximum(c.created_day[items], -1e3) / p.novelty_days)
        price = c.price_level[items]
        return np.column_stack([c.appeal[items], season, newness, price, -p.price_weight * price**2, c.style[items]])

    def on_sale(self, items: Ints, days: Floats) -> Mask:
        """Return whether items (n_items,) are in the shop at times (n,), shape (n, n_items)."""
        created, retired = self.catalogue.created_day[items], self.catalogue.retired_day[items]
        present: Mask = (created[None, :] <= days[:, None]) & (days[:, None] < retired[None, :])
        return present

    def fit(self, users: Ints, items: Ints) -> Floats:
        """Return how well items suit users (style and price), about mean 0 and deviation 1 over random pairs."""
        p, u, c = self.params, self.users, self.catalogue
        style = np.einsum("ij,ij->i", u.style[users], c.style[items]) * np.sqrt(p.style_dims)
        price = (c.price_level[items] - u.price_level[users]) ** 2 / 1.8 - 1
        fit: Floats = (style - price) / np.sqrt(3.0)
        return fit

    def cart_probability(self, users: Ints, items: Ints) -> Floats:
        """Return P(cart | viewed), shape (n,)."""
        return sigmoid(self.params.cart_bias + self.params.cart_fit * self.fit(users, items))

    def next_view(self, user: int, day: float) -> Floats:
        """Return P(the user's next organic view is of item i), shape (n_items,); items not on sale have 0."""
        items = np.arange(len(self.catalogue.ids))
        when, who = np.array([day]), np.array([user])
        utility = (self.user_side(who, when) @ self.item_side(items).T)[0]
        weight = np.exp(np.where(self.on_sale(items, when)[0], utility, -np.inf))
        total = np.bincount(self.catalogue.category, weights=weight, minlength=self.params.n_categories)
        probability: Floats = self.taste_at(who, when)[0][self.catalogue.category] * weight
        return probability / total[self.catalogue.category]


def sigmoid(log_odds: Floats) -> Floats:
    """Return the probability of log odds."""
    probability: Floats = 1.0 / (1.0 + np.exp(-log_odds))
    return probability
