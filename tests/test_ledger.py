"""The ledger's chain: whatever is changed, cut off or put back is found and named, and nothing is built on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerBrokenError, NewEntry
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from serving.plan import encode_plan
from tests.store_moves import KEY, NOW, arm, commit, sql

COLUMNS = (
    "entry", "at", "who", "action", "why", "epoch", "bundle_id", "model_version", "previous_version", "body",
    "previous_hash", "hash", "signature",
)  # fmt: skip


def five_entries(place: Settings) -> ControlStore:
    store = ControlStore(place, KEY)
    commit(store, 1, 0)
    commit(store, 2, 1)
    store.append(NewEntry("gate", "verdict", "judged", arm(3).bundle_id, "3", {"verdict": {"passed": True}}), NOW)
    commit(store, 3, 2)
    store.append(NewEntry("me", "pause", "lunch"), NOW)
    return store


@pytest.fixture(scope="module")
def ledger_of_five(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, bytes]:
    """A database with five entries, and its bytes."""
    place = Settings(home=tmp_path_factory.mktemp("ledger"), project="shop")
    five_entries(place)
    sql(place, "PRAGMA wal_checkpoint(TRUNCATE)")
    return place, place.platform_uri.read_bytes()


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_change_of_an_entry_is_found(ledger_of_five: tuple[Settings, bytes], data: st.DataObject) -> None:
    """Any field of any entry, changed to anything else the database takes, is found and the entry named."""
    place, content = ledger_of_five
    place.platform_uri.write_bytes(content)
    number = data.draw(st.integers(1, 5))
    column = data.draw(st.sampled_from(COLUMNS))
    (old,) = sql(place, f"SELECT {column} FROM larder_ledger WHERE entry = :n", n=number)[0]  # noqa: S608
    if isinstance(old, int):
        new: Any = data.draw(st.integers(6, 2**40) if column == "entry" else st.integers(-5, 2**40))
    else:
        edits = st.sampled_from([old + " ", old[1:], old.swapcase(), old.replace("1", "2"), "", "{}", "null"])
        new = data.draw(edits | st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    if new == old:
        return
    sql(place, f"UPDATE larder_ledger SET {column} = :new WHERE entry = :n", new=new, n=number)  # noqa: S608
    with pytest.raises(LedgerBrokenError, match=rf"\b{number}\b"):
        ControlStore(place, KEY).verify()


def test_a_changed_entry_decides_nothing(place: Settings) -> None:
    """The verdict that is used is the one that was written; the rest can still be read, and is marked."""
    store = five_entries(place)
    sql(place, "UPDATE larder_ledger SET body = '{}' WHERE project = :project AND entry = 3")
    with pytest.raises(LedgerBrokenError, match="entry 3"):
        store.verdict(arm(3).bundle_id)
    assert [e.entry for e in store.ledger() if not e.intact] == [3]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM larder_ledger WHERE project = :project AND entry = 5", "entry 5 .* missing"),
        ("DELETE FROM larder_ledger WHERE project = :project AND entry > 2", "entry 3 .* missing"),
        ("DELETE FROM larder_ledger WHERE project = :project AND entry = 1", "entry 1 .* missing"),
        ("DELETE FROM larder_ledger WHERE project = :project", "entry 1 .* missing"),
        ("DELETE FROM larder_ledger_head WHERE project = :project", "no signed head"),
        ("UPDATE larder_ledger_head SET entries = 4 WHERE project = :project", "signature"),
        ("DELETE FROM larder_plan WHERE project = :project", "epoch 0"),
        ("UPDATE larder_plan SET body = '{}' WHERE project = :project", "not what was committed"),
    ],
)
def test_what_is_cut_off_is_missed(place: Settings, statement: str, says: str) -> None:
    store = five_entries(place)
    sql(place, statement)
    with pytest.raises(LedgerBrokenError, match=says):
        store.verify()


def test_nothing_is_appended_to_a_ledger_without_its_end(place: Settings) -> None:
    """Appending would sign the gap away."""
    store = five_entries(place)
    sql(place, "DELETE FROM larder_ledger WHERE project = :project AND entry = 5")
    with pytest.raises(LedgerBrokenError, match="ends with entry 4"):
        commit(store, 1, 3)


def test_an_old_plan_put_back_does_not_fit_the_ledger(place: Settings) -> None:
    """A plan that was signed once is found where it is not the newest."""
    store = ControlStore(place, KEY)
    first = commit(store, 1, 0)
    commit(store, 2, 1)
    body = encode_plan(first, KEY).decode()
    sql(place, "UPDATE larder_plan SET epoch = 1, body = :body WHERE project = :project", body=body)
    with pytest.raises(LedgerBrokenError, match="entry 2 made epoch 2"):
        store.verify()


def test_another_key_forges_nothing(place: Settings) -> None:
    commit(ControlStore(place, b"x" * 32), 1, 0)
    store = ControlStore(place, KEY)
    with pytest.raises(BadInputError, match="signature"):
        store.plan()
    with pytest.raises(LedgerBrokenError):
        store.verify()
    with pytest.raises(LedgerBrokenError):
        commit(store, 1, 0)
