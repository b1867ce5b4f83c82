"""The account of an answer in words, for terminal and page alike."""

from __future__ import annotations

from larder.explaining.account import Account, Brought, Row
from larder.explaining.replayed import Replayed
from monitoring.request_outcome import Outcome

_RUNGS = {
    "full": "all features",
    "item_side": "without some of the user's features",
    "popularity": "popular items, no model",
    "popularity_file": "the popularity file of the model",
}


def facts(account: Account) -> list[tuple[str, str]]:
    """Return name and value of what is known of the whole answer."""
    rows = "; ".join(f"{view}: {row_in_words(row)}" for view, row in account.user_rows.items())
    latency = "not measured" if account.latency_ms is None else f"{account.latency_ms:.1f} ms"
    age = "unknown" if account.feature_age_s is None else f"{account.feature_age_s:.1f} s"
    found = [
        ("request", account.request_id),
        ("project", account.project),
        ("answered", f"{account.at}, in {latency} (without encoding)"),
        ("user", account.user_id),
        ("asked for", f"{account.k} items, got {len(account.lines)}"),
        ("level", f"{account.level} ({_RUNGS.get(account.level, '')})"),
        ("arm", f"{account.arm}, plan epoch {account.epoch}"),
        ("bundle", f"{account.bundle_id or 'none'}, version {account.model_version or '-'}"),
        ("features", f"{account.service or 'none'}, complete up to {age} before"),
        ("user's rows", rows),
        ("scores", scores_in_words(account)),
        ("log", account.log),
    ]
    if account.failure is not None:
        found.insert(7, ("arm failed", f"{account.failure}: the stable model or popularity answered"))
    if account.other_answers:
        found.append(("note", f"{account.other_answers} more answers of that day have this id; this is the newest"))
    return found


def scores_in_words(account: Account) -> str:
    """Say whether the bundle gives the logged scores again."""
    if account.reproduced is None:
        return "cannot be computed again"
    if account.reproduced:
        return "come out again, bit for bit, from the bundle and the features logged"
    return "DO NOT come out again from the bundle and the features logged"


def row_in_words(row: Row) -> str:
    """Say which row was used, and how old it was."""
    if row.state != "used":
        return {"none": "no row", "not read": "not read in time"}[row.state]
    return f"seq {row.seq}" if row.age_s is None else f"seq {row.seq}, last event {age_in_words(row.age_s)} before"


def age_in_words(seconds: float) -> str:
    """Write a duration as people do.

    Examples
    --------
    >>> age_in_words(0.25), age_in_words(150), age_in_words(200_000)
    ('0.2 s', '2.5 min', '2.3 days')
    """
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def sources_in_words(source: str, brought: list[Brought]) -> str:
    """Say who brought an item, the best rank first."""
    if not brought:
        return source
    return ", ".join(f"{one.generator} #{one.rank}" for one in brought)


def outcome_in_words(one: Outcome) -> str:
    """Say what happened to an item."""
    how = "answers this list" if one.named else "without naming the request"
    return f"{one.event} of {one.item_id} after {age_in_words(one.after_s)} ({how})"


def shadow_in_words(account: Account) -> str | None:
    """Say what a shadow candidate would have answered; None where none was asked."""
    shadow = account.shadow
    if shadow is None:
        return None
    if shadow.error is not None:
        return f"The shadow {shadow.bundle_id} failed: {shadow.error}."
    overlap = "" if shadow.overlap is None else f" {shadow.overlap:.0%} of the items are in its list, too."
    return f"The shadow {shadow.bundle_id} was asked, too.{overlap}"


def replay_in_words(replayed: Replayed, listed: int) -> list[str]:
    """Say what the replay found."""
    same = "the same list, item by item" if replayed.same else "ANOTHER list"
    row = "the row that was used" if replayed.same_user_row else "not the row that was used"
    found = [
        f"Replayed from offline features, with the bundle's own policy: {same} ({replayed.shared} of {listed} items).",
        f"The user's row in the replay is {row}.",
        f"{replayed.unavailable:,} of {replayed.catalogue:,} items of the catalogue were unavailable or blocked; "
        f"{replayed.candidates} candidates were left to rank.",
    ]
    found += [
        f"{one.generator}: {one.listed} items, {one.unavailable} of them unavailable, {one.seen} dropped as taken "
        f"before; it ranked {one.candidates} candidates highest."
        for one in replayed.retrieved
    ]
    moved = [p for p in replayed.places if p.replayed and p.by_score and p.replayed != p.by_score]
    found.append(
        "Re-ranking moved " + ", ".join(f"{p.item_id} from {p.by_score} to {p.replayed}" for p in moved) + "."
        if moved
        else "Re-ranking moved nothing: the list is in the order of the scores."
    )
    nearly = [p for p in replayed.places if p.served is None and p.replayed is None]
    if nearly:
        found.append("Next by score: " + ", ".join(f"{p.item_id} ({p.by_score})" for p in nearly) + ".")
    return found
