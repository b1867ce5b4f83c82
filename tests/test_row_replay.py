"""Rows at exactly a `seq`: whatever state a request met, the log brings it back, and says what it lacked."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as quick
from hypothesis import strategies as st

from feature_repo.end_state import EndState
from feature_repo.events import LOG_SCHEMA, EventType, seq_of
from feature_repo.fold import encode_events, fold_events
from feature_repo.log_chunks import FOLD_COLUMNS, log_files
from feature_repo.settings import Settings
from feature_repo.views import FOLD_VIEWS
from monitoring.row_replay import Asked, replay
from tests.live_shop import ITEMS, USERS, random_event

NOW_MS = 1_790_000_000_000


def make_log(settings: Settings, rng: random.Random, n: int) -> pa.Table:
    """Write a log of n events, many of them with the feature time of the one before, over a few files."""
    rows, ms, counter = [], NOW_MS, 0
    for number in range(n):
        if rng.random() < 0.5:
            ms, counter = ms + rng.choice([1, 40, 3_600_000]), 0
        else:
            counter += 1
        rows.append({"seq": seq_of(ms, counter), **random_event(rng, f"e{number}", ms * 1000)})
    table = pa.Table.from_pylist(rows, schema=LOG_SCHEMA)
    cut = rng.randint(0, n)
    for part in (table.slice(0, cut), table.slice(cut)):
        if part.num_rows:
            first, last = part["seq"][0].as_py(), part["seq"][-1].as_py()
            path = settings.events_dir / "day=2026-09-21" / f"live-{first}-{last}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, path)
    return table


def states_up_to(table: pa.Table, entities: pa.Table, seq: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fold the events up to a `seq` from the start, one call, and return the entities' rows."""
    some = table.filter(pa.compute.less_equal(table["seq"], seq)).select(FOLD_COLUMNS)
    end = EndState()
    asked = end.rows(entities, np.full(entities.num_rows, EventType.view, np.int8))
    events = encode_events(some)
    rows = end.rows(some, events.etype)  # first, because it makes room in the states
    fold_events(events, end.states, rows)
    return [(end.states[v].ints[row[row >= 0]], end.states[v].floats[row[row >= 0]]) for v, row in enumerate(asked)]


@quick(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 120), chunk=st.sampled_from([7, 40, 1_000]))
def test_every_state_a_row_ever_had_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, chunk: int
) -> None:
    """For any entity and any of its events: the state right after it, and the events that came next."""
    rng = random.Random(seed)
    settings = replace(Settings(home=tmp_path_factory.mktemp("replay")), project="shop")
    table = make_log(settings, rng, n)
    events = table.to_pylist()
    lines = [rng.choice(events) for _ in range(30)]
    entities = pa.table(
        {name: pa.array([line[name] for line in lines], pa.string()) for name in ("user_id", "item_id", "category")}
    )
    used = tuple(np.array([line["seq"] for line in lines]) for _ in range(5))
    bound = np.array([rng.choice(events)["seq"] + 1 for _ in lines])
    views, recent = replay(log_files(settings), Asked(entities, used, bound), chunk_events=chunk)
    for place, line in enumerate(lines):
        expected = states_up_to(table, entities.slice(place, 1), line["seq"])
        for v, (view, traced) in enumerate(zip(FOLD_VIEWS, views, strict=True)):
            mine = [e for e in events if all(e[key] == line[key] for key in view.entities)]
            if v == 3:
                mine = [e for e in mine if e["event_type"] in ("view", "cart", "purchase", "cancel") and e["category"]]
            seqs = [e["seq"] for e in mine]
            assert traced.found[place] == (line["seq"] in seqs)
            if traced.found[place]:
                rows = traced.rows()
                assert rows.ints[place].tobytes() == expected[v][0][0].tobytes(), view.name
                assert rows.floats[place].tobytes() == expected[v][1][0].tobytes(), view.name
            later = [s for s in seqs if line["seq"] < s < bound[place]]
            assert traced.next_seq[place] == min(later, default=traced.next_seq[place])
            assert (0 < traced.next_seq[place] < bound[place]) == bool(later)
            assert traced.last_seq[place] == max((s for s in seqs if s < bound[place]), default=0)
        shown = [e["seq"] for e in events if e["user_id"] == line["user_id"] and e["event_type"] != "impression"]
        assert recent.found[place] == (line["seq"] in shown)


def test_what_the_log_does_not_know_is_not_found(tmp_path: Path) -> None:
    """An unknown user, a `seq` of another entity, no row at all."""
    settings = replace(Settings(home=tmp_path), project="shop")
    table = make_log(settings, random.Random(1), 50)
    events = table.to_pylist()
    other = next(e for e in events if e["user_id"] != USERS[0])
    entities = pa.table({"user_id": ["nobody", USERS[0], USERS[0]], "item_id": [ITEMS[0]] * 3, "category": ["tea"] * 3})
    used = tuple(np.array([events[0]["seq"], other["seq"], 0]) for _ in range(5))
    views, recent = replay(log_files(settings), Asked(entities, used, np.full(3, events[-1]["seq"] + 1)))
    assert views[0].found.tolist() == recent.found.tolist() == [False, False, False]
    assert views[0].rows().present.tolist() == [False, False, False]
    assert views[0].next_seq[0] == 0
    assert views[0].next_seq[2] == min(e["seq"] for e in events if e["user_id"] == USERS[0])
