"""Expired rows go, all of them and no others, and no feature tells whether they went."""

import time

import pytest

from feature_repo.backfill import backfill
from feature_repo.events import seq_of
from feature_repo.expiry_sweep import MARGIN_US, ExpirySweep
from feature_repo.fold import new_state
from feature_repo.ingest import IngestWorker, read_status
from feature_repo.materialize import materialize
from feature_repo.online_keys import row_key
from feature_repo.packed_row import pack_rows
from feature_repo.redis_scripts import connect
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.stream import append_events
from feature_repo.views import DAY_US, USER_CATEGORY, USER_ITEM
from tests.live_shop import a_view, assert_online_equals_offline, import_history

NOW_US = 1_800_000_000_000_000
WATERMARK = seq_of(NOW_US // 1000, 0)
LAST = NOW_US - USER_ITEM.max_age_us - MARGIN_US


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def rows_at(view, *times):
    state = new_state(view, len(times))
    state.ints[:, 0], state.ints[:, 1] = times, 1
    return pack_rows(view, state.ints, state.floats)


def swept(sweep: ExpirySweep) -> ExpirySweep:
    """Go round twice: hashes with many fields are finished in the round after they were begun."""
    while sweep.rounds < 2:
        sweep.step(WATERMARK)
    return sweep


def test_all_rows_past_the_margin_go_and_no_others(settings, client):
    users = [f"u{n}" for n in range(120)]
    for view in (USER_ITEM, USER_CATEGORY):
        many = [LAST - 1 if n % 2 else LAST for n in range(1_000)]
        write_rows(
            client,
            settings.project,
            ViewRows(view.name, ["big"] * 1_000, rows_at(view, *many), [f"x{n}" for n in range(1_000)]),
        )
        write_rows(
            client, settings.project, ViewRows(view.name, users, rows_at(view, *[LAST - 1] * 120), ["old"] * 120)
        )
        write_rows(
            client, settings.project, ViewRows(view.name, users[::2], rows_at(view, *[NOW_US] * 60), ["new"] * 60)
        )
    sweep = swept(ExpirySweep(client, settings.project, start=999))
    assert sweep.removed == 2 * (500 + 120)
    for view in (USER_ITEM, USER_CATEGORY):
        assert set(client.hkeys(row_key(settings.project, view.name, "big"))) == {
            b"x%d" % n for n in range(0, 1_000, 2)
        }
        assert client.hkeys(row_key(settings.project, view.name, "u0")) == [b"new"]
        assert not client.exists(row_key(settings.project, view.name, "u1"))


def test_a_row_that_changed_since_it_was_found_stays(settings, client):
    """As when a bulk writer comes between the look and the removal."""
    write_rows(client, settings.project, ViewRows(USER_ITEM.name, ["u"], rows_at(USER_ITEM, LAST), ["i"]))
    sweep = ExpirySweep(client, settings.project)
    key, moment = row_key(settings.project, USER_ITEM.name, "u"), LAST.to_bytes(8, "little", signed=True)
    assert sweep._run([("EVALSHA", sweep._sha, 1, key, moment, "i", "gone")]) == [0]
    later = (LAST + 1).to_bytes(8, "little", signed=True)
    assert sweep._run([("EVALSHA", sweep._sha, 1, key, later, "i", "gone")]) == [1]


def test_features_are_the_same_after_expired_rows_went(settings, client):
    now_us = time.time_ns() // 1000
    old = [a_view(f"h{n}", user, at_us=now_us - 740 * DAY_US - n) for n, user in enumerate(["ann", "bob", "ann"])]
    import_history(settings, [*old, a_view("h9", "bob", at_us=now_us - DAY_US, item_id="i2")])
    backfill(settings)
    materialize(settings)
    worker = IngestWorker(settings, client)
    worker.start()
    append_events(client, settings.project, [a_view("e1", "bob", item_id="i3")], now_us // 1000)
    worker.step()
    sweep = ExpirySweep(client, settings.project)
    while not sweep.rounds:
        sweep.step(worker.status.watermark)
    assert sweep.removed == 2
    assert not client.exists(row_key(settings.project, USER_ITEM.name, "ann"))
    append_events(client, settings.project, [a_view("e2", "ann"), a_view("e3", "bob")], now_us // 1000)
    while worker.step():
        pass
    worker.flush()
    worker.close()
    assert_online_equals_offline(settings, client, now_us + DAY_US)
    assert read_status(client, settings.project).rows_expired == 0
