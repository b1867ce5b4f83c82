"""The short way to decode a user's read gives what the general way gives, or leaves what is not plainly right to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from redis.exceptions import ResponseError

from feature_repo.online_reader import _Queries, user_requests
from feature_repo.packed_commands import packed
from feature_repo.packed_row import pack_rows
from feature_repo.packed_tail import pack_recent
from feature_repo.read_request import ReadPlan
from feature_repo.rows import RecentEvents, Rows, UserRows
from feature_repo.user_read import UserRead
from feature_repo.views import DAY_US, NULL_INT, USER_CATEGORY, USER_ITEM, USER_STATS, View

PROJECT = "sh%op"
NOW = 20_000 * DAY_US
ROWS = {"few": 3, "all": 4}
NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), unique=True, max_size=5)
READ = UserRead(PROJECT)


@st.composite
def packed_rows(draw: Any, view: View, n: int) -> list[bytes]:
    """Rows of any values and nulls, some of them too old."""
    ints = draw(hnp.arrays(np.int64, (n, len(view.ints)), elements=st.integers(NULL_INT, 2**63 - 1)))
    ints[:, 0] = draw(hnp.arrays(np.int64, n, elements=st.sampled_from([NULL_INT, 0, NOW - 800 * DAY_US, NOW])))
    floats = draw(hnp.arrays(np.float64, (n, len(view.floats)), elements=st.floats()))
    floats[np.isnan(floats)] = np.nan
    return pack_rows(view, ints, floats)


@st.composite
def hashes(draw: Any, view: View) -> list[bytes]:
    """A hash as Redis sends it, in its order."""
    names = draw(NAMES)
    rows = draw(packed_rows(view, len(names)))
    return [part for name, row in zip(names, rows, strict=True) for part in (name.encode(), row)]


@st.composite
def answers(draw: Any) -> list[Any]:
    """Answers that are plainly right: all there is, or nothing of a view."""
    items = draw(NAMES)
    times = np.arange(len(items), dtype=np.int64)
    recent = pack_recent([RecentEvents(items, times.astype(np.int8), times, draw(st.integers(0, 2**62)))])
    stats = draw(packed_rows(USER_STATS, 1))
    return [
        draw(st.sampled_from([stats, [None]])),
        draw(hashes(USER_CATEGORY)),
        draw(st.sampled_from([recent, [None]])),
        draw(hashes(USER_ITEM)),
    ][: draw(st.sampled_from(list(ROWS.values())))]


def generally(replies: list[Any]) -> tuple[UserRows, int]:
    """Decode by the general way; and how many rows were malformed."""
    queries = _Queries(PROJECT)
    plan = ReadPlan(PROJECT, user_requests("u", len(replies) == ROWS["all"]))
    return queries.user_rows("u", *queries.decode(plan, replies, NOW)), queries.malformed


def numbers(rows: Rows) -> list[Any]:
    return [rows.view.name, *((a.dtype, a.shape, a.tobytes()) for a in (rows.ints, rows.floats, rows.present))]


def everything(user: UserRows) -> list[Any]:
    pairs = user.pairs
    wanted = [*sorted(pairs.item_ids), "another"] if pairs is not None else []
    found = None if pairs is None else pairs.of(wanted)
    return [
        user.user_id, numbers(user.stats), user.categories, numbers(user.affinities),
        user.recent.item_ids, user.recent.types.tolist(), user.recent.times.tolist(), user.recent.seq,
        wanted, found and numbers(found),
    ]  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(answers())
def test_what_is_plainly_right_is_decoded_alike(replies: list[Any]) -> None:
    short = READ.decoded("u", replies, NOW)
    assert short is not None
    general, malformed = generally(replies)
    assert not malformed
    assert everything(short) == everything(general)
    for one, other in ((short.stats, general.stats), (short.affinities, general.affinities)):
        np.testing.assert_array_equal(one.block(), other.block())
    if short.pairs is not None and general.pairs is not None:
        ids = [*sorted(short.pairs.item_ids), "another"]
        np.testing.assert_array_equal(short.pairs.of(ids).block(), general.pairs.of(ids).block())


@settings(deadline=None, max_examples=50)
@given(answers(), st.data())
def test_anything_else_is_left_to_the_general_way(replies: list[Any], data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(replies) - 1))
    reply = list(replies[which])
    at = data.draw(st.integers(0, max(len(reply) - 1, 0)))
    how = data.draw(st.sampled_from(["cut", "hash", "longer", "error", "text"]))
    if how == "error":
        damaged: Any = ResponseError("WRONGTYPE")
    elif not reply or reply[at] is None or (how == "text" and which in {0, 2}):
        return
    else:
        if which in {1, 3}:
            at += (how != "text") - at % 2  # a name, or else a row
        row, damaged = reply[at], reply
        reply[at] = {"cut": row[:-1], "hash": b"\xff" * 8 + row[8:], "longer": row + b"\0", "text": b"\xff"}[how]
    replies = [*replies[:which], damaged, *replies[which + 1 :]]
    assert READ.decoded("u", replies, NOW) is None
    generally(replies)  # can do it


@given(st.text(st.characters(codec="utf-8")), st.booleans())
def test_the_message_is_the_plans(user_id: str, with_pairs: bool) -> None:
    plan = ReadPlan(PROJECT, user_requests(user_id, with_pairs))
    assert READ.message(user_id, with_pairs=with_pairs) == (packed(plan.commands), len(plan.commands))
