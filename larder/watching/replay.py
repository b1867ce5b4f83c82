"""The champion's reference: its own cascade answers the people of its test window, at moments of that window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from feature_repo.asof import AsOfReader
from feature_repo.errors import NotFoundError
from feature_repo.event_log import read_events
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.rows import FeatureReader
from feature_repo.services import service_hash
from feature_repo.settings import Settings
from monitoring.drift.columns import Answer, columns_of, draw
from monitoring.drift.reference import Reference, read_reference, write_reference
from monitoring.drift.served import Watched, answer_of, event_columns, known_until
from serving.bundle import Bundle
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender
from serving.impressions import ImpressionRecord, Impressions, Seen, to_record
from training.offline_table import offline_item_table

I64 = npt.NDArray[np.int64]

#: Moments of the test window that are looked at: enough for all hours and weekdays, few enough for a minute's work.
MOMENTS = 28
#: Length of the lists.
K = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody who came: the state is that of a moment before, the time that of their first event after it."""

    user_id: str
    state_us: int
    now_us: int


def champion_reference(
    settings: Settings, bundle: Bundle, watched: Watched, *, size: int, every_us: int, report: Progress | None = None
) -> Reference:
    """Return the champion's reference, made now if it was not made before.

    Parameters
    ----------
    size
        Rows.
    every_us
        Length of the windows that will be compared with it, µs.

    Raises
    ------
    NotFoundError
        If the bundle does not say what it was judged on, or those events are gone.
    """
    made = read_reference(settings, watched.bundle_id)
    if made is not None:
        return made
    span = bundle.manifest.get("trained_until_us"), bundle.manifest.get("test_until_us")
    if None in span:
        raise NotFoundError(
            f"bundle {watched.bundle_id} does not say which events it was judged on, so there is nothing to compare "
            "with; set drift_reference to served: its own first windows"
        )
    start_us, end_us = int(span[0] or 0), int(span[1] or 0)
    visits = draw_visits(settings, start_us, end_us, size, every_us)
    answers = replay(settings, bundle.recommender, watched, visits, report)[:size]
    if not answers:
        raise NotFoundError(f"nobody came in the test window of bundle {watched.bundle_id}: there is no reference")
    known = known_until(settings, start_us)
    columns = columns_of(answers, watched.service)
    # Nobody was served, so nobody clicked.
    replayed = {name: values for name, values in columns.items() if name not in {"clicked", "purchased"}}
    events = event_columns(settings, start_us, end_us, known, size, every_us)
    return write_reference(settings, watched.bundle_id, replayed, events, known)


def draw_visits(settings: Settings, start_us: int, end_us: int, size: int, every_us: int) -> list[Visit]:
    """Draw people who came within a window's length after a moment, as often as they did.

    Where too few came, the stretches are as long as the time between two moments.
    """
    log = read_events(
        settings,
        since_seq=((start_us // 1000) << SEQ_COUNTER_BITS) - 1,
        until=datetime.fromtimestamp(end_us / 1e6, UTC),
        columns=["user_id", "event_timestamp"],
    ).sort_by("event_timestamp")
    times, users = log["event_timestamp"].cast("int64").to_numpy(), log["user_id"].to_pylist()
    # Some are strangers and get what is popular: a few more are drawn.
    wanted = size + size // 2
    visits: list[Visit] = []
    for length in (every_us, max(every_us, (end_us - start_us) // MOMENTS)):
        visits = _visits(times, users, start_us, end_us, length)
        if len(visits) >= wanted:
            break
    return sorted(visits, key=lambda visit: draw(visit.user_id, str(visit.state_us)))[:wanted]


def _visits(times: I64, users: list[str], start_us: int, end_us: int, length_us: int) -> list[Visit]:
    """Return everybody's first event in each stretch; `times` ascend, shape (n,)."""
    last = max(end_us - length_us, start_us)
    visits: list[Visit] = []
    for moment in np.unique(np.linspace(start_us, last, MOMENTS).astype(np.int64)).tolist():
        first: dict[str, int] = {}
        for event in range(*np.searchsorted(times, [moment, moment + length_us]).tolist()):
            first.setdefault(users[event], int(times[event]))
        visits += [Visit(user, moment, now) for user, now in first.items()]
    return visits


def replay(
    settings: Settings, recommender: Recommender, watched: Watched, visits: list[Visit], report: Progress | None = None
) -> list[Answer]:
    """Answer visits as serving would have, in the order given, without those of strangers."""
    found: dict[int, Answer] = {}
    place = {visit: number for number, visit in enumerate(visits)}
    for done, moment in enumerate(moments := sorted({visit.state_us for visit in visits})):
        reader = AsOfReader(settings, moment)
        table = offline_item_table(reader, moment)
        for visit in (one for one in visits if one.state_us == moment):
            record = answered(
                recommender, reader, table, watched, visit.user_id, visit.now_us, f"replay-{place[visit]}"
            )
            if record is not None and (one := answer_of(record, watched)) is not None:
                found[place[visit]] = one
        if report:
            report(done + 1, len(moments))
    return [found[number] for number in sorted(found)]


def answered(
    recommender: Recommender,
    reader: FeatureReader,
    table: ItemTable,
    watched: Watched,
    user_id: str,
    now_us: int,
    request_id: str,
) -> ImpressionRecord | None:
    """Return the record serving would have written of one answer; None for a stranger."""
    draft = recommender.draft(reader.user(user_id, now_us), table, now_us, k=K)
    if not len(draft.candidates):
        return None
    pairs = reader.pairs(user_id, draft.item_ids, now_us)
    slate = recommender.finish(draft, pairs)
    items = draft.candidates.items[slate.ranked]
    seen = Seen(
        recommender.service,
        service_hash(recommender.service),
        None,
        slate.matrix[slate.ranked],
        table.seq[items],
        table.catalog_seq[items],
        np.where(pairs.present, np.maximum(pairs.seq, 1), 0)[slate.ranked],
        table.category_code[items],
        table.category_names,
        draft.user,
    )
    return to_record(
        Impressions(
            request_id, now_us, user_id, "stable", watched.bundle_id, "", "full", K, slate.items, 0, 0, None, [], seen
        )
    )
