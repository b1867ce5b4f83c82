"""What the API and a candidate's process say to each other, what a process refuses, and how lists are compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from feature_repo.settings import Settings
from serving.answers import Recommendations
from serving.bundle import write_manifest
from serving.cascade.recommender import RankedItem
from serving.child_scorer.child import CandidateError, ChildScorer
from serving.child_scorer.messages import (
    LENGTH,
    Array,
    PackedRows,
    PackedUser,
    Refused,
    Reply,
    WholeTable,
    decode_question,
    decode_reply,
    frame,
)
from serving.child_scorer.ranking import Asked
from serving.child_scorer.scoring import serve
from serving.feature_reads import FeatureReads
from serving.item_table_source import ItemTableSource
from serving.metrics import Metrics
from serving.plan import Arm
from serving.redis_client import RedisGuard
from serving.shadow import Shadow, compare
from serving.state import Release
from tests.running_api import plan_for
from tests.tiny_bundle import make_bundle, make_shop

SHOP = make_shop(1_790_000_000_000_000)


def test_tables_and_users_arrive_bit_for_bit() -> None:
    table = SHOP.table()
    sent = decode_question(frame(WholeTable.of(table))[LENGTH.size :])
    assert isinstance(sent, WholeTable)
    got = sent.unpack()
    assert (got.ids, got.titles, got.category, got.as_of_us) == (
        table.ids,
        table.titles,
        table.category,
        table.as_of_us,
    )
    for name in ("inputs", "available", "seq", "catalog_seq"):
        theirs, ours = getattr(got, name), getattr(table, name)
        assert (theirs.dtype, theirs.shape, theirs.tobytes()) == (ours.dtype, ours.shape, ours.tobytes())
        assert theirs.flags.writeable and theirs.flags.c_contiguous
    for user_id in SHOP.user_ids:
        user = SHOP.user(user_id)
        back = msgspec.msgpack.decode(msgspec.msgpack.encode(PackedUser.of(user)), type=PackedUser).unpack()
        assert (back.user_id, back.categories, back.recent.item_ids) == (user_id, user.categories, user.recent.item_ids)
        for theirs, ours in ((back.stats, user.stats), (back.affinities, user.affinities)):
            assert msgspec.msgpack.encode(PackedRows.of(theirs)) == msgspec.msgpack.encode(PackedRows.of(ours))
        assert back.recent.times.tolist() == user.recent.times.tolist()


@pytest.mark.parametrize(
    "array", [Array("|O", (1,), b"12345678"), Array("<f8", (2,), b"12345678"), Array("<f8", (-1, 3), b"12345678")]
)
def test_arrays_that_are_none_are_refused(array: Array) -> None:
    with pytest.raises(ValueError, match=r"arrays of type|reshape"):
        array.unpack()


@run_settings(deadline=None)
@given(st.binary(max_size=200))
def test_nonsense_from_a_process_is_a_named_error(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        assert isinstance(decode_reply(data), Reply)


def test_a_bundle_whose_scores_are_no_numbers_is_refused_by_its_process(tmp_path: Path) -> None:
    """Its files are as sealed, its golden rows score as they did: only its probabilities are NaN."""
    bundle = tmp_path / make_bundle(tmp_path, SHOP)
    knots = dict(np.load(bundle / "calibration.npz"))
    np.savez(bundle / "calibration.npz", score=knots["score"], probability=np.full_like(knots["probability"], np.nan))
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    del manifest["files"], manifest["format"]
    sealed = tmp_path / write_manifest(bundle, manifest)
    shutil.move(bundle, sealed)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=serve, args=(theirs, sealed))
        thread.start()
        ours.sendall(frame(WholeTable.of(SHOP.table())))
        ours.settimeout(30)
        length = LENGTH.unpack(ours.recv(LENGTH.size, socket.MSG_WAITALL))[0]
        reply = decode_reply(ours.recv(length, socket.MSG_WAITALL))
        thread.join(10)
    assert isinstance(reply, Refused)
    assert "not numbers" in reply.reason


def items(*ids: str, score: float = 0.5) -> list[RankedItem]:
    return [RankedItem(item_id, rank, score, "history") for rank, item_id in enumerate(ids, start=1)]


def test_lists_are_compared_item_by_item() -> None:
    assert compare(items(*"abcd"), items(*"abcd", score=0.75)) == (1.0, 1.0, 0.25)
    assert compare(items(*"abcd"), items(*"dcba")) == (1.0, -1.0, 0.0)
    assert compare(items(*"abcd"), items(*"axyz")) == (0.25, None, 0.0)
    assert compare(items(*"abcd"), items(*"xyb")) == (0.25, None, 0.0)
    assert compare(items(*"ab"), []) == (None, None, None)
    # Of a, c, b in both: ranks 0 1 2 there are 0 2 1 here; 1 - 6 * 2 / 24.
    assert compare(items(*"aXcbY"), items(*"apbqc")) == (0.6, 0.5, 0.0)


async def test_a_shadow_that_is_too_slow_sees_a_sample_and_nobody_waits(settings: Settings) -> None:
    metrics = Metrics()
    shadow = Shadow(settings, None, FeatureReads(None, RedisGuard(1.0), metrics), metrics, length=2)  # type: ignore[arg-type]
    child: Any = SimpleNamespace(began=True, table=None)
    release = Release(plan_for("a" * 32), None, None, child)  # type: ignore[arg-type]
    asked = Asked(SHOP.user(SHOP.user_ids[0]), True, SHOP.now_us, 5, [])
    answer = Recommendations("r", "u", "1", "a" * 32, "stable", "full", [], None, None, items(*"abcde"))
    for _ in range(5):  # nobody takes them up
        shadow.ask(release, asked, answer, 1.0)
    assert b'larder_shadow_total{result="dropped"} 3.0' in metrics.exposition()


def test_an_answer_that_came_while_the_api_was_busy_is_not_late(tmp_path: Path) -> None:
    """A loop held up by others' work finds answer and end of the wait at once; the candidate was in time."""
    bundle_id = make_bundle(tmp_path, SHOP)

    async def run() -> None:
        source = ItemTableSource(None, lambda: SHOP.now_us)  # type: ignore[arg-type]
        source._table = SHOP.table()
        child = ChildScorer(Arm(bundle_id, "1"), tmp_path, source, pytest.fail)
        child.start()
        while child.ready is None:
            await asyncio.sleep(0.02)
        user, loop = SHOP.user(SHOP.user_ids[0]), asyncio.get_running_loop()
        for held_s in (0.0, 0.4):
            loop.call_later(0.0005, time.sleep, held_s)
            drafted = await child.draft(user, SHOP.now_us, 0.2, k=5, exclude=[], repeats=None, diversity=None)
            assert len(drafted.items.unpack()) > 0
        os.kill(child.pid or 0, signal.SIGSTOP)
        with pytest.raises(CandidateError, match="timeout"):
            await child.draft(user, SHOP.now_us, 0.05, k=5, exclude=[], repeats=None, diversity=None)
        await child.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_the_clock_of_deadlines_is_shared_by_processes() -> None:
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"
