"""What made the order of a list, in sentences: filters, the ranker, re-ranking, what filled it."""

from __future__ import annotations

from collections.abc import Sequence

from serving.cascade.recommender import Policy, RankedItem
from serving.impressions import ImpressionRecord


def steps_of(record: ImpressionRecord, policy: Policy | None) -> list[str]:
    """Return the steps, in order.

    Parameters
    ----------
    policy
        Of the bundle that made the list; None where it is gone.
    """
    items, steps = record.items, list[str]()
    if record.seen is None:
        steps.append(f"No candidates were ranked: the list is of the rung {record.level!r}.")
    else:
        steps += _filters(policy)
        steps.append(
            f"{record.seen.rows} candidates were scored; all are in the log."
            if record.seen.candidates
            else "The candidates were scored; the log keeps those of the list (all of them for the share "
            "impression_all_candidates_share of the requests)."
        )
        steps += _moves(record, policy)
    filled = items[len(ranked_of(record)) :]
    if filled and record.seen is not None:
        steps.append(f"Popular items fill ranks {filled[0].rank} to {filled[-1].rank}: the candidates were too few.")
    if len(items) < record.k:
        steps.append(f"{record.k} items were asked for, {len(items)} could be shown.")
    return steps


def _filters(policy: Policy | None) -> list[str]:
    found = ["Items that are unavailable, blocked or excluded by the request were left out; replay counts them."]
    if policy is not None:
        repeats = "dropped" if policy.repeats == "drop" else "kept"
        found.append(
            f"By the bundle's policy, items the user had taken recently are {repeats}, and the best "
            f"{policy.candidates} candidates are ranked; a request may say otherwise of repeats and diversity, which "
            "the log does not keep."
        )
    return found


def _moves(record: ImpressionRecord, policy: Policy | None) -> list[str]:
    found = []
    kind = None if policy is None else policy.diversity.kind
    moved = inversions(ranked_of(record))
    if moved:
        by = f"diversity ({kind})" if kind not in (None, "off") else "diversity the request asked for"
        ranks = ", ".join(str(item.rank) for item in moved)
        found.append(f"By score alone the items at ranks {ranks} would stand higher: {by} put others before them.")
    else:
        found.append("By score the items stand as they are shown: nothing was moved, or only out of the list.")
    found += [
        f"Rank {item.rank} is kept for a new item: {item.item_id} has it by that rule, not its score."
        for item in record.items
        if item.slot == "new"
    ]
    seen = record.seen
    if seen is not None and seen.candidates:
        left = len(seen.candidates) - len(ranked_of(record))
        found.append(f"{left} candidates are not in the list.")
    return found


def ranked_of(record: ImpressionRecord) -> list[RankedItem]:
    """Return the items a model ranked: the first ones; popular ones that no generator brought may follow."""
    if record.seen is None:
        return []
    if record.seen.candidates is None:
        return record.items[: record.seen.rows]
    scored = set(record.seen.candidates)
    return [item for item in record.items if item.item_id in scored]


def inversions(items: Sequence[RankedItem]) -> list[RankedItem]:
    """Return the items with a higher score than one that stands above them; the new item's slot aside.

    Examples
    --------
    >>> listed = [RankedItem("a", 1, 0.9, "als"), RankedItem("b", 2, 0.2, "als"), RankedItem("c", 3, 0.5, "als")]
    >>> [item.item_id for item in inversions(listed)]
    ['c']
    """
    found, least = [], float("inf")
    for item in items:
        if item.slot is not None:
            continue
        if item.score > least:
            found.append(item)
        least = min(least, item.score)
    return found
