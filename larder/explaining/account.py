"""The account of one answer: what the model saw of each item, who brought it, and what made its place. From the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.errors import LarderError
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from larder.explaining.replayed import Replayed
from larder.explaining.steps import steps_of
from monitoring.find_request import Found
from monitoring.request_outcome import Outcome, outcomes_of
from serving.answers import REASONS
from serving.bundle import Bundle, load_bundle
from serving.cascade.explanation import Contribution, explain_row, explain_unscored
from serving.impressions import NOT_READ, ImpressionRecord, ShadowRecord

#: A history's own counters may begin at 0; a `seq` of a real time is later than 2001.
_REAL_TIME_MS = 10**12


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a view that was used: `state` is "used", "none" (there was none) or "not read" (Redis did not say).

    `age_s` is the time from the row's last event to the request.
    """

    state: str
    seq: int
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Brought:
    """A generator that had an item in its list, its rank there (from 1), and the score it gave."""

    generator: str
    rank: int
    score: float | None


@dataclass(slots=True)
class Line:
    """One item of the list.

    Attributes
    ----------
    source
        The generator that ranked it highest, as the answer said.
    brought
        All generators that had it in their lists; empty where no model ranked it or its bundle is gone.
    rows
        View to the row used.
    features
        What the model saw, by name; None is unknown.
    contributions
        All that moved the score most; empty where no model scored it or its bundle is gone.
    """

    item_id: str
    rank: int
    score: float
    source: str
    slot: str | None
    summary: str
    brought: list[Brought] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    features: dict[str, float | None] = field(default_factory=dict)
    contributions: list[Contribution] = field(default_factory=list)


@dataclass(slots=True)
class Account:
    """Everything known of one answer.

    Attributes
    ----------
    known
        What is said, and what cannot be: sentences on the model, the list's order and the log.
    reproduced
        Whether the bundle gives the logged scores again for what was logged; None where that cannot be tried.
    """

    project: str
    request_id: str
    at: str
    user_id: str
    k: int
    arm: str
    level: str
    reasons: dict[str, str]
    bundle_id: str | None
    model_version: str | None
    epoch: int
    latency_ms: float | None
    failure: str | None
    feature_age_s: float | None
    service: str | None
    user_rows: dict[str, Row]
    lines: list[Line]
    steps: list[str]
    known: list[str]
    reproduced: bool | None
    outcome: list[Outcome]
    shadow: ShadowRecord | None
    log: str
    other_answers: int
    replayed: Replayed | None = None


def account_of(settings: Settings, found: Found) -> tuple[Account, Bundle | None]:
    """Make the account of a record, and return the bundle that made the list where it is still here."""
    record, known = found.record, list[str]()
    bundle = _bundle(settings, record, known)
    lines = [_unscored(item) for item in record.items]
    reproduced = _fill(record, bundle, lines, known)
    account = Account(
        project=settings.project,
        request_id=record.request_id,
        at=datetime.fromtimestamp(record.time_us / 1e6, UTC).isoformat(timespec="milliseconds"),
        user_id=record.user_id,
        k=record.k,
        arm=record.assigned_arm,
        level=record.level,
        reasons={reason: dict(REASONS).get(reason, "") for reason in record.reasons},  # type: ignore[call-overload]
        bundle_id=record.served_bundle,
        model_version=record.model_version,
        epoch=record.epoch,
        latency_ms=record.latency_ms,
        failure=record.failure,
        feature_age_s=record.feature_age_s,
        service=None if record.seen is None else record.seen.service,
        user_rows={"user_stats": _row(record.user_seq, record), "user_recent_items": _row(record.recent_seq, record)},
        lines=lines,
        steps=steps_of(record, None if bundle is None else bundle.recommender.policy),
        known=known,
        reproduced=reproduced,
        outcome=outcomes_of(settings, record),
        shadow=found.shadow,
        log=f"{_below(settings.home, found.file)}, byte {found.offset}",
        other_answers=found.others,
    )
    return account, bundle


def _below(home: Path, file: Path) -> str:
    return file.relative_to(home).as_posix() if file.is_relative_to(home) else str(file)


def _bundle(settings: Settings, record: ImpressionRecord, known: list[str]) -> Bundle | None:
    if record.served_bundle is None:
        known.append("No model made this list.")
        return None
    try:
        bundle = load_bundle(settings.bundles_dir / record.served_bundle)
    except LarderError as error:
        known.append(
            f"The bundle {record.served_bundle} is not in the content store any more, or does not load ({error}): "
            "what the model saw is from the log, contributions cannot be computed."
        )
        return None
    return bundle


def _row(seq: int, record: ImpressionRecord) -> Row:
    if seq == NOT_READ:
        return Row("not read", seq, None)
    ms = seq >> SEQ_COUNTER_BITS
    age_s = round(record.time_us / 1e6 - ms / 1e3, 3) if ms > _REAL_TIME_MS else None
    return Row("used" if seq else "none", seq, age_s if seq else None)


def _unscored(item: Any) -> Line:
    return Line(item.item_id, item.rank, item.score, item.source, item.slot, explain_unscored(item.source).summary)


def _fill(record: ImpressionRecord, bundle: Bundle | None, lines: list[Line], known: list[str]) -> bool | None:
    """Say of each line what the model saw; return whether the scores come out again."""
    seen = record.seen
    if seen is None:
        known.append("No model ranked anything, so nothing was seen of the items.")
        return None
    try:
        matrix, seqs, category = seen.unpack()
    except ValueError as error:
        known.append(f"What the model saw is damaged in the log: {error}.")
        return None
    place = {item_id: i for i, item_id in enumerate(seen.candidates)} if seen.candidates else None
    columns, generators = _columns(record, bundle, matrix.shape[1], known)
    features = len(columns) - 2 * len(generators)
    affinity = np.array([*seen.affinity_seq, 0])
    which = [place.get(line.item_id, -1) if place else (i if i < len(matrix) else -1) for i, line in enumerate(lines)]
    for line, at in zip(lines, which, strict=True):
        if at < 0:
            continue
        values = matrix[at]
        line.summary = "A model scored it."
        line.features = {name: _number(values[i]) for i, name in enumerate(columns[:features])}
        line.brought = _brought(generators, values[features:])
        named = zip(("item_stats", "item_catalog", "user_item_interactions"), seqs[:, at], strict=True)
        line.rows = {view: _row(int(seq), record) for view, seq in named}
        line.rows["user_category_affinity"] = (
            _row(NOT_READ, record) if record.user_seq == NOT_READ else _row(int(affinity[category[at]]), record)
        )
    scored = [(line, at) for line, at in zip(lines, which, strict=True) if line.features]
    if bundle is None or not scored:
        return None
    rows = np.ascontiguousarray(matrix[[at for _, at in scored]])
    try:
        ranker = bundle.recommender.ranker
        again, shap = ranker.probability(ranker.score(rows)), ranker.contributions(rows)
    except LarderError as error:
        known.append(f"The bundle cannot score what the log has: {error}.")
        return None
    for (line, _), values, parts in zip(scored, rows, shap, strict=True):
        why = explain_row(columns, values, parts)
        line.summary, line.contributions = why.summary, why.contributions
    return bool(np.array_equal(again, np.array([line.score for line, _ in scored])))


def _columns(
    record: ImpressionRecord, bundle: Bundle | None, width: int, known: list[str]
) -> tuple[Sequence[str], list[str]]:
    """Return the names of the matrix' columns, and the generators whose scores and ranks are the last of them."""
    seen = record.seen
    assert seen is not None  # noqa: S101 - the caller asked
    if bundle is not None and len(bundle.recommender.columns) == width:
        return bundle.recommender.columns, [one.name for one in bundle.recommender.generators]
    try:
        names = feature_list(seen.service)
    except LarderError:
        names = ()
    if seen.service_hash != (service_hash(seen.service) if names else None):
        known.append(f"The features of {seen.service} are defined otherwise today: columns have numbers, not names.")
        return [f"column {i}" for i in range(width)], []
    known.append("Without its bundle, the generators' scores and ranks in the log have no names.")
    return [*names, *(f"column {i}" for i in range(len(names), width))], []


def _brought(generators: Sequence[str], values: Any) -> list[Brought]:
    scores, ranks = values[0::2], values[1::2]
    found = [
        Brought(name, int(ranks[g]), _number(scores[g])) for g, name in enumerate(generators) if not np.isnan(ranks[g])
    ]
    return sorted(found, key=lambda one: one.rank)


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(f"{value:.7g}")
