"""A champion is watched: reference by replay, windows, a broken feature, restarts, rows that retraining can act on."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from deployment.store.signals import SignalStore
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.event_log import read_events
from feature_repo.settings import Settings
from larder.benches.drift_shifts import Shift
from larder.watching import replay
from larder.watching.drift_check import DriftCheck
from monitoring.drift.reference import read_reference, reference_dir
from monitoring.drift.served import Watched
from monitoring.drift.state import read_state, write_state
from monitoring.signals import Signal, ctr_decay
from tests.drifting_shop import RULES, WINDOW_MINUTES, DriftingShop, make_drifting_shop

BROKEN = Shift("broken", feature="f_item_days_since_purchase", wrong=lambda column: np.full_like(column, np.nan))
SUBJECT = "features/f_item_days_since_purchase"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DriftingShop:
    home = tmp_path_factory.mktemp("drift")
    settings = Settings(home=home, project="shop", drift_window_minutes=WINDOW_MINUTES, threads=1)
    shop = make_drifting_shop(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "MOMENTS", 6)
        watched = Watched.of(shop.bundle.bundle_id, shop.bundle.recommender.service, shop.bundle.popular)
        replay.champion_reference(
            settings, shop.bundle, watched, size=RULES.reference, every_us=round(WINDOW_MINUTES * 60e6)
        )
    return shop


@pytest.fixture
def shop(trained: DriftingShop, tmp_path: Path) -> DriftingShop:
    """The trained shop, before anybody was served."""
    shutil.copytree(trained.settings.home, tmp_path / "home")
    return replace(trained, settings=replace(trained.settings, home=tmp_path / "home"))


def check_of(shop: DriftingShop, **fields) -> DriftCheck:
    settings = replace(shop.settings, **fields)
    return DriftCheck(settings, SignalStore(settings), reports=False, rules=RULES)


def test_a_broken_feature_is_found_and_a_restart_changes_nothing(shop: DriftingShop) -> None:
    store = SignalStore(shop.settings)
    for window in range(4):
        shop.serve(window, BROKEN if window in (2, 3) else None)
    check = check_of(shop)
    assert check.run(shop.end_us(1) - 60_000_000) == [], "clicks come after the list: it is not settled"
    (first,) = check.run(shop.end_us(1))
    assert first.state.last is not None
    assert first.state.last.requests == RULES.sample
    assert len({one.column.group for one in first.findings}) == 4, "outcomes have no reference yet"
    assert check.run(shop.end_us(1)) == [], "a window is judged once"
    (second,) = check_of(shop).run(shop.end_us(2))  # another process
    # Here lists are asked for by anybody at any time, not by who comes: recent views may differ from the replay's.
    assert SUBJECT not in {one.column.subject for one in second.findings if one.hit}
    assert SUBJECT not in {row.subject for row in store.open_alarms()}
    third, fourth = check_of(shop).run(shop.end_us(4))
    hits = [{one.column.subject for one in judged.findings if one.hit} for judged in (third, fourth)]
    assert SUBJECT in hits[0] & hits[1]
    assert SUBJECT not in {one.column.subject for one in third.findings if one.alarm}
    alarm = {row.subject: row for row in store.open_alarms()}[SUBJECT]
    assert (alarm.kind, alarm.bundle_id, alarm.window_s) == ("drift", shop.bundle.bundle_id, 3600.0)
    assert alarm.effect == alarm.value > alarm.threshold
    assert alarm.p_value is not None
    assert alarm.p_value < RULES.alpha
    assert alarm.details["rows"][1] == RULES.sample
    before = store.newest(10_000)
    # Killed between rows and state: the window is judged again, and says the same.
    state = read_state(shop.settings)
    assert state is not None
    shop.serve(4, BROKEN)
    (fifth,) = check_of(shop).run(shop.end_us(5))
    after = store.newest(10_000)

    write_state(shop.settings, state)
    (again,) = check_of(shop).run(shop.end_us(5))
    assert [(f.effect, f.p_value, f.alarm) for f in again.findings] == [
        (f.effect, f.p_value, f.alarm) for f in fifth.findings
    ]
    assert store.newest(10_000) == after
    assert len(after) > len(before)
    page = (shop.settings.reports_dir / "index.html").read_text("utf-8")
    assert SUBJECT in page
    assert json.loads((shop.settings.monitoring_dir / "drift.json").read_text())["windows"] == 5


def test_the_reference_is_bounded_the_same_again_and_names_nobody(
    shop: DriftingShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_reference(shop.settings, shop.bundle.bundle_id)
    assert first is not None
    assert 50 < len(first.columns["score"]) <= RULES.reference
    assert "clicked" not in first.columns
    assert first.known.prices
    shutil.rmtree(shop.settings.monitoring_dir)
    monkeypatch.setattr(replay, "MOMENTS", 6)
    shop.serve(0)
    check_of(shop).run(shop.end_us(1))
    second = read_reference(shop.settings, shop.bundle.bundle_id)
    assert second is not None
    assert second.known == first.known
    assert all(
        np.array_equal(values, second.columns[name], equal_nan=values.dtype != object)
        for name, values in first.columns.items()
    )
    users = set(read_events(shop.settings, columns=["user_id"])["user_id"].to_pylist())
    assert not users & set(first.columns["_user"])
    (reference_dir(shop.settings, shop.bundle.bundle_id) / "events.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInputError, match="delete it"):
        read_reference(shop.settings, shop.bundle.bundle_id)


def test_a_quiet_shop_waits_until_enough_came(shop: DriftingShop) -> None:
    shop.serve(0, users=40)
    assert check_of(shop).run(shop.end_us(1)) == []
    shop.serve(1, users=60)
    (one,) = check_of(shop).run(shop.end_us(2))
    assert one.state.last is not None
    assert one.state.last.end_us - one.state.last.start_us == 2 * 3600 * 10**6


def test_compared_with_itself_and_after_a_new_champion(shop: DriftingShop) -> None:
    for window in range(2):
        shop.serve(window)
    judged = check_of(shop, drift_reference="served").run(shop.end_us(2))
    assert len(judged[0].findings) == 0
    assert len(judged[1].findings) > 50
    assert not {"event_new_category", "clicked"} & {one.column.name for one in judged[1].findings if one.alarm}
    assert len(check_of(shop).run(shop.end_us(2))) == 2, "another reference is another watch"
    with pytest.raises(BadInputError, match="drift_reference"):
        check_of(shop, drift_reference="yesterday")


def test_nothing_to_watch(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project="empty")
    with pytest.raises(NotFoundError, match="no champion"):
        DriftCheck(settings, SignalStore(settings)).run(10**15)


def test_a_database_from_before_there_were_signals_gets_the_table(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project="shop")
    SignalStore(settings).add([])
    with sqlite3.connect(settings.platform_uri) as database:
        database.execute("DROP TABLE larder_signal")
        database.execute("UPDATE larder_schema SET version_num = 'm0001'")
    database.close()
    SignalStore(settings).add([Signal(datetime(2026, 1, 1, tzinfo=UTC), "skew", "served", 1.0, 0.0, True)])
    assert len(SignalStore(settings).open_alarms()) == 1


def test_rows_close_by_a_later_window_or_another_champion(shop: DriftingShop) -> None:

    store, at = SignalStore(shop.settings), shop.since
    hour = timedelta(hours=1)
    rows = [
        Signal(at, "drift", "features/a", 0.5, 0.1, True, "old", 0.001, 0.5),
        Signal(at, "drift", "features/b", 0.5, 0.1, True, "old"),
        Signal(at + hour, "drift", "features/b", 0.01, 0.1, False, "old"),
        Signal(at, "freshness", "features", float("inf"), 60.0, True),
        ctr_decay(at, "old", ctr=0.01, floor=0.02, alarm=True, window_s=3600.0, details={"users": 100}),
    ]
    store.add(rows)
    store.add(rows)  # a retry
    assert {(row.kind, row.subject) for row in store.open_alarms()} == {
        ("drift", "features/a"), ("freshness", "features"), ("ctr_decay", "old"),
    }  # fmt: skip
    store.add([Signal(at + hour, "drift", "features/c", 0.0, 0.1, False, "new")])
    assert {row.kind for row in store.open_alarms()} == {"freshness", "ctr_decay"}
    assert [row.subject for row in store.newest(2, "drift")] == ["features/b", "features/c"]
    assert store.prune(at + hour) == 4
    assert SignalStore(replace(shop.settings, project="other")).newest() == []
