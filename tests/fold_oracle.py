"""The fold once more, slowly and differently: every count is taken anew from the list of an entity's events."""

import hashlib
import math
from collections import defaultdict
from typing import Any

import pyarrow as pa

from feature_repo.views import FOLD_VIEWS, ITEM_STATS, USER_CATEGORY, USER_ITEM, USER_STATS, View
from tests.event_tables import us

LIKES, DISLIKES = ("like", "confirm"), ("dislike", "reject")
Event = dict[str, Any]
#: (event types, weight) of every decayed column, by its name without half-life.
DECAYED = {"views": "view", "carts": "cart", "purchases": "purchase", "spend": "purchase", "impressions": "impression"}


def oracle(
    table: pa.Table,
    max_age: int = USER_ITEM.max_age_us,
    most: tuple[int, int] = (USER_ITEM.max_rows, USER_CATEGORY.max_rows),
) -> dict[str, dict[tuple[str, ...], dict[str, Any]]]:
    """Return the rows of all views by entity, with None for null.

    `max_age` (µs) and `most` are the age rule and the caps of pairs and affinities.
    """
    by_view: dict[str, dict[tuple[str, ...], list[Event]]] = {view.name: defaultdict(list) for view in FOLD_VIEWS}

    def row_of(view: View, entity: tuple[str, str], e: Event, cap: int) -> list[Event]:
        """Return the events of the row that `e` goes into: an empty list where it makes the row, or makes none."""
        rows, made = by_view[view.name], f"made_{view.name}"
        if entity not in rows or e["time"] - max(x["time"] for x in rows[entity]) > max_age:
            if sum(x[made] for x in by_view[USER_STATS.name][entity[0],]) == cap:
                return []
            rows[entity], e[made] = [], True
        return rows[entity]

    for raw in table.to_pylist():
        e = raw | {
            "time": max(us(raw["event_timestamp"]), us(raw["received_at"])),
            "session": session(raw["session_id"]),
        }
        e |= {f"made_{view.name}": False for view in FOLD_VIEWS} | {"most": most}
        pair = row_of(USER_ITEM, (e["user_id"], e["item_id"]), e, most[0])
        known = by_view[USER_ITEM.name].get((e["user_id"], e["item_id"])) is pair
        e["first"] = known and e["event_type"] == "purchase" and not of(pair, "purchase")
        pair.append(e)
        e["again"] = known and e["event_type"] == "purchase" and len(orders(pair)) > 1
        if e["category"] is not None and e["event_type"] in ("view", "cart", "purchase", "cancel"):
            row_of(USER_CATEGORY, (e["user_id"], e["category"]), e, most[1]).append(e)
        by_view[USER_STATS.name][e["user_id"],].append(e)
        by_view[ITEM_STATS.name][e["item_id"],].append(e)
    return {
        view.name: {entity: row(view, events) for entity, events in by_view[view.name].items()} for view in FOLD_VIEWS
    }


def session(text: str | None) -> int | None:
    if text is None:
        return None
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") // 2


def of(events: list[Event], *kinds: str) -> list[Event]:
    return [e for e in events if e["event_type"] in kinds]


def orders(events: list[Event]) -> list[Event]:
    """Return the purchases that open an order."""
    opened: list[Event] = []
    for e in of(events, "purchase"):
        if e["session"] is not None:
            new = not opened or opened[-1]["session"] != e["session"]
        else:
            new = not opened or max(o["time"] for o in opened) != e["time"]
        if new:
            opened.append(e)
    return opened


def total(events: list[Event], field: str) -> int:
    return sum(int(e[field]) for e in events if e[field] is not None)


def latest(events: list[Event]) -> int | None:
    return max((e["time"] for e in events), default=None)


def decayed(view: View, column: str, half_life: int, events: list[Event]) -> float:
    name = column.removeprefix(f"{view.prefix}_").rsplit("_", 1)[0]
    value, now = 0.0, None
    for e in events:
        now, before = max(now or e["time"], e["time"]), now
        if before is not None and now > before:
            value *= math.exp2(-(now - before) / half_life)
        if e["event_type"] != DECAYED[name] or (name == "spend" and e["value"] is None):
            continue
        weight = e["value"] if name == "spend" else 1.0
        value += weight * math.exp2(-(now - e["time"]) / half_life)
    return value


def row(view: View, events: list[Event]) -> dict[str, Any]:
    bought, paid = of(events, "purchase"), [e for e in of(events, "purchase") if e["value"] is not None]
    opened, rated = orders(events), of(events, "rating")
    gap = None
    if len(opened) > 1:
        gap = max(opened[-1]["time"] - max(o["time"] for o in opened[:-1]), 0)
    feedback = of(events, *LIKES, *DISLIKES)
    prices = [e["price"] for e in events if e["price"] is not None]
    pairs, affinities = ([e["seq"] for e in events if e[f"made_{v.name}"]] for v in (USER_ITEM, USER_CATEGORY))
    most_pairs, most_affinities = events[0]["most"]
    values = {
        "time": latest(events),
        "seq": events[-1]["seq"],
        "impressions": len(of(events, "impression")),
        "views": len(of(events, "view")),
        "carts": len(of(events, "cart")),
        "purchases": len(bought),
        "cancels": len(of(events, "cancel")),
        "likes": len(of(events, *LIKES)),
        "dislikes": len(of(events, *DISLIKES)),
        "ratings": len(rated),
        "orders": len(opened),
        "quantity": sum(1 if e["quantity"] is None else e["quantity"] for e in bought),
        "spend": total(bought, "value"),
        "revenue": total(bought, "value"),
        "cancelled_value": total(of(events, "cancel"), "value"),
        "price_sum": total(bought, "price"),
        "items_bought": sum(e["first"] for e in events),
        "buyers": sum(e["first"] for e in events),
        "repurchases": sum(e["again"] for e in events),
        "clicks": sum(e["request_id"] is not None for e in of(events, "view")),
        "value_min": min((int(e["value"]) for e in paid), default=None),
        "value_max": max((int(e["value"]) for e in paid), default=None),
        "order_session": opened[-1]["session"] if opened else None,
        "pairs": len(pairs),
        "pairs_full_seq": pairs[-1] if len(pairs) == most_pairs else None,
        "affinities": len(affinities),
        "affinities_full_seq": affinities[-1] if len(affinities) == most_affinities else None,
        "price_paid": prices[-1] if prices else None,
        "feedback": (1 if feedback[-1]["event_type"] in LIKES else -1) if feedback else None,
        "first_time": events[0]["time"],
        "action_time": latest([e for e in events if e["event_type"] != "impression"]),
        "view_time": latest(of(events, "view")),
        "cart_time": latest(of(events, "cart")),
        "purchase_time": latest(bought),
        "first_order_time": opened[0]["time"] if opened else None,
        "order_time": latest(opened),
        "order_gap": gap,
        "rating": rated[-1]["value"] if rated else None,
        "rating_sum": sum((e["value"] for e in rated), 0.0),
        "value_sq": sum((e["value"] ** 2 for e in paid), 0.0),
    }
    return {
        c.name: decayed(view, c.name, c.half_life_us, events)
        if c.half_life_us
        else values[c.name.removeprefix(f"{view.prefix}_")]
        for c in view.columns
    }
