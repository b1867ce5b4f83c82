"""The shop simulator's parameters, frozen: claims are made with them, on seeds they were not tuned on. PURE."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime

from feature_repo.errors import BadInputError

#: The simulated history ends here, a Sunday at midnight; data sets are moved from it by whole weeks.
BASE_END = datetime(2025, 1, 6, tzinfo=UTC)


@dataclass(frozen=True)
class SimulatorParams:
    """How the shop, its users and their behaviour are made. docs/simulator.md explains each group."""

    # The shop
    n_users: int = 3_000
    n_items: int = 2_000
    n_categories: int = 40
    span_days: int = 180
    category_zipf: float = 1.3  # category popularity ~ rank ** -category_zipf
    appeal_sigma: float = 2.0  # spread of the items' log appeal: the long tail of popularity
    style_dims: int = 6  # latent style shared by all categories: item-to-item structure
    consumable_share: float = 0.25  # share of categories whose items are bought again
    retired_share: float = 0.08  # share of items that leave the shop
    # Arrivals
    items_at_start: float = 0.6
    users_at_start: float = 0.55
    # Taste (hidden truth)
    liked_categories: int = 4
    taste_concentration: float = 1.2  # Dirichlet over the liked categories; smaller is more concentrated
    explore_share: float = 0.2  # part of the taste that follows the shop's popularity
    focus_share: float = 0.35  # part of the taste that is this month's favourite category
    focus_days: int = 28
    style_weight: float = 2.0
    price_weight: float = 0.7
    novelty_weight: float = 0.8
    novelty_days: float = 21.0
    launch_boost: float = 0.8  # everybody looks at new items a little more
    season_amplitude: float = 0.9
    season_days: float = 91.0
    # Behaviour
    activity_sigma: float = 0.8  # spread of log sessions per day among users
    lifetime_days: float = 300.0  # mean time until a user leaves
    views_per_session: float = 5.0
    stay_in_category: float = 0.75  # chance that a view stays in the session's category
    cart_bias: float = -2.4  # log odds of a cart after a view, at average fit
    cart_fit: float = 1.3  # how much fit to the user raises them
    buy_given_cart: float = 0.5
    durable_again: float = 0.12  # chance that a durable item somebody already has is bought again
    refill_share: float = 0.35  # chance that a consumable purchase is followed by another
    refill_days: float = 21.0
    cancel_share: float = 0.03
    cancel_days: float = 2.0
    # Answers to recommendations
    position_bias: float = 0.7  # chance to see rank r = r ** -position_bias
    click_bias: float = -3.4  # log odds of a click on a seen item of average lift
    click_slope: float = 0.55  # per unit of log lift

    def __post_init__(self) -> None:
        for name, least in (("n_users", 2), ("n_categories", 2), ("n_items", self.n_categories), ("span_days", 14)):
            if getattr(self, name) < least:
                raise BadInputError(f"simulator: {name} must be at least {least}, not {getattr(self, name)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_share", "_at_start")) and not 0 <= value <= 1:
                raise BadInputError(f"simulator: {field.name} must be between 0 and 1, not {value}")
