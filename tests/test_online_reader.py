"""The packed read: one round trip per call, sync and async alike, and never an exception for a damaged row."""

from dataclasses import replace

import numpy as np
import pytest

import serving.feature_reads
from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.fold import new_state
from feature_repo.online_keys import changed_key, row_key
from feature_repo.online_reader import AsyncOnlineReader, OnlineReader
from feature_repo.packed_row import Layout, Table, pack_rows, pack_table
from feature_repo.packed_tail import CatalogItem, pack_catalog, pack_recent
from feature_repo.read_request import AllOf, RowsOf, field_of
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.rows import RecentEvents
from feature_repo.views import (
    CATALOG_VIEW,
    DAY_US,
    ITEM_STATS,
    NULL_INT,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
)
from serving.feature_reads import FeatureReads
from serving.metrics import Metrics
from serving.redis_client import RedisGuard
from tests.live_shop import assert_rows_equal

NOW = 1_700_000_000_000_000


@pytest.fixture
def client(settings):
    with connect(settings) as client:
        yield client


@pytest.fixture
def reader(settings, client):
    return OnlineReader(client, settings.project)


def packed(view, *, age_us=0, seq=1, views=0):
    state = new_state(view, 1)
    state.ints[:, :2] = NOW - age_us, seq
    state.ints[:, view.ints.index(f"{view.prefix}_views")] = views
    return pack_rows(view, state.ints, state.floats)[0]


def fill(client, project):
    """A user with a row, two categories (one past its age), recent events and two pairs (one past its age)."""
    client.set(row_key(project, USER_STATS.name, "u"), packed(USER_STATS, views=7))
    old = 731 * DAY_US
    categories = {"tea": packed(USER_CATEGORY, views=2), "cups": packed(USER_CATEGORY, age_us=old)}
    client.hset(row_key(project, USER_CATEGORY.name, "u"), mapping=categories)
    pairs = {"a": packed(USER_ITEM, views=3), "b": packed(USER_ITEM, age_us=old, views=4)}
    client.hset(row_key(project, USER_ITEM.name, "u"), mapping=pairs)
    recent = RecentEvents(["a", "b"], np.array([1, 3], np.int8), np.array([NOW - 2, NOW - 1]), 9)
    client.set(row_key(project, RECENT_VIEW, "u"), pack_recent([recent])[0])


def test_a_user_and_its_pairs_are_read_with_the_age_rule(reader, client, settings):
    fill(client, settings.project)
    user = reader.user("u", NOW)
    assert user.known
    assert user.stats.column("user_views").tolist() == [7]
    assert user.categories == ["cups", "tea"]
    assert user.affinities.present.tolist() == [False, True]
    assert user.affinities.column("affinity_views")[1] == 2
    assert (user.recent.item_ids, user.recent.types.tolist(), user.recent.seq) == (["a", "b"], [1, 3], 9)
    pairs = reader.pairs("u", ["b", "x", "a"], NOW)
    assert pairs.present.tolist() == [False, False, True]
    assert np.isnan(pairs.column("pair_views")[:2]).all()
    assert reader.pairs("u", ["b"], NOW - DAY_US).present.all()  # as of a day before it was not too old
    assert reader.malformed == 0


def test_unknown_users_and_no_items_are_answers(reader):
    user = reader.user("nobody", NOW)
    assert not user.known
    assert (user.categories, user.recent.item_ids, len(user.affinities)) == ([], [], 0)
    assert len(reader.pairs("nobody", [], NOW)) == 0
    assert not reader.pairs("nobody", ["a"], NOW).present.any()
    rows, entries = reader.read_items([])
    assert (len(rows), entries) == (0, [])
    assert reader.watermark() == 0
    assert reader.changed_items(0) == []


LINES = Layout("lines", ("user_id", "shop_id", "item_id"), (("n", "int64"), ("flag", "bool"), ("note", "string")))


def packed_line(n, flag, note, age_us):
    nulls = np.array([[n is None, flag is None, note is None]])
    ints = np.array([[NULL_INT if value is None else int(value) for value in (n, flag)]])
    time, tails = np.array([NOW - age_us]), [[None if note is None else note.encode()]]
    return pack_table(Table(LINES, time, np.array([5]), ints, np.empty((1, 0)), nulls, tails, np.ones(1, np.bool_)))[0]


def test_one_read_brings_rows_of_any_views_in_the_order_asked(reader, client, settings):
    fill(client, settings.project)
    lines = {
        field_of(("s", "a:1")): packed_line(1, True, "☃", 7),
        field_of(("s", "b")): packed_line(None, None, None, 70),
    }
    client.hset(row_key(settings.project, "lines", "u"), mapping=lines)
    client.hset(row_key(settings.project, "lines", "v"), mapping={field_of(("s", "b")): packed_line(2, False, "", 8)})
    fields = [field_of(further) for further in (("s", "a:1"), ("s", "b"), ("s", "b"), ("s", "b"), ("s", "?"))]
    requests = [
        RowsOf(LINES, ["u", "v", "u", "v", "u"], fields, max_age_us=60),
        RowsOf(USER_STATS, ["x", "u"]),
        RowsOf(USER_ITEM, "u", []),
        AllOf(USER_CATEGORY, "u"),
        AllOf(LINES, "u"),
        RowsOf(USER_ITEM, "u", ["a", "b"]),
    ]
    before = client.info("stats")["total_reads_processed"]
    some, stats, none, categories, every, pairs = reader.read(requests, NOW)
    assert client.info("stats")["total_reads_processed"] - before == 2  # INFO itself is the second read of the socket
    assert some.present.tolist() == [True, True, False, True, False]  # the third is past its age
    assert some.age_us.tolist() == [7, 8, NULL_INT, 8, NULL_INT]
    assert some.values("n") == [1, 2, None, 2, None]
    assert some.values("flag") == [True, False, None, False, None]
    assert some.values("note") == ["☃", "", None, "", None]
    assert stats.seq.tolist() == [NULL_INT, 1]
    assert stats.values("user_views") == [None, 7]
    assert stats.values("user_time") == [None, NOW]
    assert (len(none), none.values("pair_views")) == (0, [])
    assert (categories.entities, categories.present.tolist()) == (["cups", "tea"], [False, True])
    assert every.entities == sorted(lines)
    assert every.values("n") == [None, 1]
    assert_rows_equal(pairs.rows(USER_ITEM), reader.pairs("u", ["a", "b"], NOW))
    with pytest.raises(KeyError, match="'nothing'"):
        pairs.values("nothing")


async def test_the_async_reader_reads_the_same(reader, client, settings):
    fill(client, settings.project)
    client.zadd(changed_key(settings.project), {"a": 5, "b": 7})
    async with connect_async(settings) as own:
        other = AsyncOnlineReader(own, settings.project)
        ours, theirs = reader.user("u", NOW), await other.user("u", NOW)
        assert_rows_equal(ours.stats, theirs.stats)
        assert_rows_equal(ours.affinities, theirs.affinities)
        assert ours.recent.item_ids == theirs.recent.item_ids
        assert_rows_equal(reader.pairs("u", ["a", "b"], NOW), await other.pairs("u", ["a", "b"], NOW))
        (theirs,) = await other.read([RowsOf(USER_ITEM, "u", ["b", "a"])], NOW)
        assert_rows_equal(theirs.rows(USER_ITEM), reader.pairs("u", ["b", "a"], NOW))
        assert await other.changes(6) == reader.changes(6)
        assert (await other.read_items(["a"]))[1] == [None]
        assert await other.watermark() == 0
        assert await other.changed_items(0) == ["a", "b"]


def test_each_call_is_one_round_trip(reader, client, settings):
    fill(client, settings.project)
    reads = {"user": lambda: reader.user("u", NOW), "pairs": lambda: reader.pairs("u", ["a"] * 300, NOW)}
    for name, read in reads.items():
        read()
        before = client.info("stats")["total_reads_processed"]
        read()
        # INFO itself is the second read of the socket.
        assert client.info("stats")["total_reads_processed"] - before == 2, name


def test_damaged_foreign_and_mistyped_rows_are_missing_and_counted(reader, client, settings):
    project = settings.project
    client.set(row_key(project, USER_STATS.name, "u"), b"x" * 500)
    client.set(row_key(project, USER_CATEGORY.name, "u"), b"no hash")
    client.set(row_key(project, RECENT_VIEW, "u"), packed(USER_STATS))
    user = reader.user("u", NOW)
    assert not user.known
    assert user.categories == []
    assert reader.malformed == 3
    client.set(row_key(project, USER_ITEM.name, "u"), b"no hash")
    client.hset(row_key(project, USER_ITEM.name, "v"), mapping={"a": b"", "b": packed(USER_ITEM)})
    assert not reader.pairs("u", ["a"], NOW).present.any()
    assert reader.pairs("v", ["a", "b"], NOW).present.tolist() == [False, True]
    assert reader.malformed == 5
    client.set(row_key(project, CATALOG_VIEW, "a"), b"short")
    assert reader.read_items(["a"])[1] == [None]
    assert reader.malformed == 6
    damaged = pack_catalog([CatalogItem("a", "Tea")], np.array([NOW]))[0].replace(b"Tea", b"T\xff\xff")
    client.set(row_key(project, CATALOG_VIEW, "a"), damaged)
    assert reader.read_items(["a"])[1] == [None]
    assert reader.malformed == 7


def test_items_come_with_their_catalogue_in_the_order_asked_for_however_many(reader, client, settings):
    project = settings.project
    items = [f"i{k}" for k in range(2_500)]
    rows = {row_key(project, ITEM_STATS.name, item): packed(ITEM_STATS, views=k) for k, item in enumerate(items)}
    entries = [CatalogItem(item, f"Title of {item}", "tea", 199, None, available=False) for item in items]
    packed_entries = pack_catalog(entries, np.full(len(items), NOW))
    rows |= {row_key(project, CATALOG_VIEW, item): row for item, row in zip(items, packed_entries, strict=True)}
    client.mset(rows)
    backwards = items[::-1]
    stats, found = reader.read_items([*backwards, "new"])
    assert stats.column("item_views")[:-1].tolist() == list(range(2_499, -1, -1))
    assert not stats.present[-1]
    assert found == [*entries[::-1], None]


def test_redis_away_is_one_clear_error(settings):
    with connect(replace(settings, redis_port=9, redis_timeout_ms=100)) as away:
        reader = OnlineReader(away, settings.project)
        for read in (lambda: reader.user("u", NOW), lambda: reader.read_items(["a"]), reader.watermark):
            with pytest.raises(UnavailableError, match="Redis did not answer"):
                read()


def test_a_project_name_that_could_reach_into_another_one_is_refused(client):
    for name in ("", "shop:fs"):
        with pytest.raises(BadInputError, match="project name"):
            OnlineReader(client, name)


async def test_a_user_brings_all_pairs_along(reader, client, settings):
    """Rows taken from the first read are those a second one brings: missing, past their age, asked for twice."""
    fill(client, settings.project)
    asked, table = ["b", "x", "a", "a"], ["x", "a", "q", "b"]
    async with connect_async(settings) as own:
        known = (await AsyncOnlineReader(own, settings.project).user("u", NOW, with_pairs=True)).pairs
        nobody = (await AsyncOnlineReader(own, settings.project).user("nobody", NOW, with_pairs=True)).pairs
    assert (len(known), len(nobody)) == (2, 0)
    assert_rows_equal(known.of(asked), reader.pairs("u", asked, NOW))
    assert_rows_equal(nobody.of(asked), reader.pairs("nobody", asked, NOW))
    indices = np.array([table.index(item) if item in table else -1 for item in known.item_ids])
    rows = known.at(indices, np.array([table.index(item) for item in asked]), len(table))
    assert_rows_equal(rows, reader.pairs("u", asked, NOW))
    lacking = known.at(np.full(2, -1), np.array([0, 1]), 2)  # the table has none of the user's items
    assert not lacking.present.any()
    assert reader.user("u", NOW).pairs is None


async def test_who_has_very_many_pairs_is_asked_for_the_candidates(client, settings, monkeypatch):
    fill(client, settings.project)
    monkeypatch.setattr(serving.feature_reads, "MANY_PAIRS", 1)
    async with connect_async(settings) as own:
        reads = FeatureReads(AsyncOnlineReader(own, settings.project), RedisGuard(1.0), Metrics())
        first = await reads.user("u", NOW)
        again = await reads.user("u", NOW)
        assert first is not None and again is not None
        assert (first.pairs is None, again.pairs is None) == (False, True)
        asked = ["b", "x", "a"]
        assert_rows_equal(await reads.pairs(first, asked, NOW), await reads.pairs(again, asked, NOW))
