"""How simulated users answer a recommendation list: the position-biased click model. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from feature_repo.simulator.catalogue import Floats
from feature_repo.simulator.params import SimulatorParams
from feature_repo.simulator.preferences import sigmoid

#: Seconds between one look at the list and the next, and from a view to its cart and its purchase.
_LOOK_S, _CART_S, _BUY_S = 2.0, 0.7, 1.4


def seen_probability(params: SimulatorParams, rank: Floats) -> Floats:
    """Return P(the user looks at this rank), 1-based: rank ** -position_bias."""
    seen: Floats = rank**-params.position_bias
    return seen


def click_probability(params: SimulatorParams, lift: Floats) -> Floats:
    """Return P(click | seen) of items by lift: how much likelier than a random item it would be the next view."""
    return sigmoid(params.click_bias + params.click_slope * np.log(np.maximum(lift, 1e-12)))


def answer(
    params: SimulatorParams,
    click: Floats,
    cart: Floats,
    *,
    user_id: str,
    item_ids: Sequence[str],
    prices: Sequence[int],
    now: datetime,
    request_id: str,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the events with which a user answers a list, in order of time.

    Parameters
    ----------
    click, cart
        P(click | seen) and P(cart | click) per rank, shape (k,).
    now
        When the list is shown; answers follow seconds later.

    Returns
    -------
    list of dict
        Views (a click is a view with `request_id` and `rank`), carts and purchases as a client would send them.
    """
    k = len(item_ids)
    seen = seen_probability(params, np.arange(1, k + 1, dtype=np.float64))
    draws = rng.random((k, 3))
    clicked = draws[:, 0] < seen * click
    carted = clicked & (draws[:, 1] < cart)
    bought = carted & (draws[:, 2] < params.buy_given_cart)
    events: list[dict[str, Any]] = []
    for i in np.flatnonzero(clicked).tolist():
        steps = [("view", 0.0)] + [("cart", _CART_S)] * bool(carted[i]) + [("purchase", _BUY_S)] * bool(bought[i])
        for event_type, wait_s in steps:
            events.append(
                {
                    "event_id": f"{request_id}-{i + 1}-{event_type}",
                    "user_id": user_id,
                    "item_id": item_ids[i],
                    "event_type": event_type,
                    "value": float(prices[i]) if event_type == "purchase" else None,
                    "quantity": 1 if event_type == "purchase" else None,
                    "event_timestamp": now + timedelta(seconds=_LOOK_S * (i + 1) + wait_s),
                    "session_id": f"r-{request_id}"[:128],
                    "request_id": request_id,
                    "rank": i + 1,
                }
            )
    return events
