"""What is read of the logs: tails of files, clicks of the live log, users counted once a step."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.rollout import user_table
from deployment.rollout.arm_counts import Answer, ArmCounts
from deployment.rollout.histogram import BUCKETS, bucket_of, quantile
from deployment.rollout.log_tail import LogTail, positions
from deployment.rollout.outcome_log import newest_seq, outcomes_after
from deployment.rollout.shadow_sums import ShadowSums
from deployment.rollout.user_table import UserTable
from feature_repo.live_files import MERGED_FILES
from tests.rollout_traffic import Traffic, begin, first_champion


def test_a_tail_reads_every_line_once_over_restarts_and_torn_ends(tmp_path):
    rng, written, read = random.Random(4), [], []
    files = [tmp_path / "2026-03-01" / "1-7.jsonl", tmp_path / "2026-03-01" / "1-8.jsonl"]
    files[0].parent.mkdir()
    tail, waiting = LogTail(tmp_path, {}), dict.fromkeys(files, b"")
    for n in range(200):
        file = rng.choice(files)
        line = f"{n}:".encode() + b"x" * rng.randrange(200)
        written.append(line)
        waiting[file] += line + b"\n"
        cut = rng.randrange(len(waiting[file]) + 1)  # what has reached the disk, perhaps half a line
        with file.open("ab") as out:
            out.write(waiting[file][:cut])
        waiting[file] = waiting[file][cut:]
        if rng.random() < 0.3:
            read += tail.look()
        if rng.random() < 0.2:
            tail = LogTail(tmp_path, tail.offsets)
    for file in files:
        with file.open("ab") as out:
            out.write(waiting[file])
    new = tmp_path / "1999-01-01" / "1-9.jsonl"  # a clock far off
    new.parent.mkdir()
    new.write_bytes(b"new\nhalf a li")
    read += tail.look()
    assert sorted(read) == sorted([*written, b"new"])
    assert list(tail.look()) == []
    again = LogTail(tmp_path, {})
    assert sorted(again.look_until(tail.offsets)) == sorted(read)
    assert again.offsets == tail.offsets


def test_a_tail_survives_files_that_vanish(tmp_path):
    file = tmp_path / "2026-03-01" / "1-7.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"one\n")
    offsets = positions(tmp_path)
    file.unlink()
    tail = LogTail(tmp_path, {})
    assert list(tail.look_until(offsets)) == []
    assert not tail.more
    assert list(LogTail(tmp_path / "none", {}).look()) == []


def test_clicks_come_once_from_small_files_and_merged_ones(settings):
    first_champion(settings)
    plan = begin(settings).rollout
    assert outcomes_after(settings.events_dir, 0) == ([], 0)
    traffic = Traffic(settings, click={"stable": 1.0, "canary": 1.0, "baseline": 1.0})
    from deployment.rollout.moves import Moves
    from deployment.store.control_store import ControlStore
    from serving.signature import signing_key

    store = ControlStore(settings, signing_key(settings))
    assert Moves(settings, store, signing_key(settings)).current().rollout == plan
    seq, found = 0, []
    for _ in range(5):
        traffic.serve(store.plan(), 7)
        some, seq = outcomes_after(settings.events_dir, seq)
        found += some
    assert [one.request_id for one in found] == [f"r0-{n + 1}" for n in range(35)]
    assert {one.outcome for one in found} == {"click"}
    assert seq == newest_seq(settings.events_dir)
    assert outcomes_after(settings.events_dir, seq) == ([], seq)
    assert outcomes_after(settings.events_dir, 0)[0] == found
    assert MERGED_FILES > 5


def test_a_user_counts_once_a_step_whatever_they_do():
    table = UserTable(horizon_us=1_000)
    for n in range(3):
        table.serve(f"r{n}", "ann", "canary", 0, n, ["error", "slow"])
        table.answer(f"r{n}", "click", n + 5)
    table.serve("r3", "ann", "canary", 1, 10)
    table.serve("r4", "bob", "canary", 1, 10)
    assert table.strata("canary", "click") == {"0": (1, 1), "1": (2, 0)}
    assert table.of(0)["canary"].by_name["error"] == 1
    assert table.distinct == {"canary": 2, "baseline": 0}


def test_clicks_may_come_before_their_request_but_not_too_late():
    table = UserTable(horizon_us=100)
    table.answer("r1", "conversion", 50)
    table.answer("r2", "click", 500)
    table.serve("r1", "ann", "canary", 0, 40)
    table.serve("r2", "ann", "canary", 0, 60)
    assert table.strata("canary", "conversion") == {"0": (1, 1)}
    assert table.strata("canary", "click") == {"0": (1, 0)}


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(user_table, "MAX_REQUESTS", 50)
    monkeypatch.setattr(user_table, "MAX_WAITING", 20)
    table = UserTable(horizon_us=10**9)
    for n in range(500):
        table.serve(f"r{n}", f"u{n % 5}", "baseline", 0, n)
        table.answer(f"elsewhere{n}", "click", n)
    assert (len(table._requests), len(table._waiting)) == (50, 20)
    table.answer("r10", "click", 500)
    table.answer("r480", "click", 500)
    assert table.strata("baseline", "click") == {"0": (5, 1)}


@pytest.mark.parametrize(
    ("record", "guardrails"),
    [
        ({}, []),
        ({"failure": "timeout"}, ["error"]),
        ({"failure": "a word of tomorrow"}, ["error"]),
        ({"failure": "non_finite", "latency_ms": 150.0}, ["non_finite", "slow"]),
        ({"failure": "empty", "latency_ms": 99.0}, ["empty"]),
        ({"failure": "fallback", "latency_ms": None}, ["fallback"]),
    ],
)
def test_what_a_record_fails(record, guardrails):
    line = msgspec.json.encode({"request_id": "r", "time_us": 1, "user_id": "u", "assigned_arm": "canary", **record})
    answer = msgspec.json.decode(line, type=Answer)
    assert answer.failed(100.0) == guardrails
    counts = ArmCounts()
    counts.add(answer, guardrails)
    assert {name for name, count in counts.failures.items() if count} == set(guardrails)


@given(st.lists(st.floats(1.0, 10_000.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 1.0]))
def test_quantiles_of_the_histogram_are_within_five_percent(latencies, share):
    counts = [0] * BUCKETS
    for ms in latencies:
        counts[bucket_of(ms)] += 1
    exact = sorted(latencies)[max(-(-int(len(latencies) * share * 1000) // 1000) - 1, 0)]
    found = quantile(counts, share)
    neighbours = sorted(latencies)
    assert min(abs(found / one - 1) for one in neighbours) < 0.051
    assert found <= neighbours[-1] * 1.051
    assert share < 1.0 or abs(found / exact - 1) < 0.051
    assert quantile([0] * BUCKETS, 0.5) is None


def test_segments_of_the_shadow_that_differ_most_come_first():
    sums = ShadowSums()
    for n in range(200):
        record = {
            "overlap": 0.2 if n % 4 == 0 else 0.9,
            "known": n % 4 != 0,
            "level": "full",
            "category": f"c{n}",
            "dropped": n % 2,
        }
        sums.add(
            {
                **record,
                "dropped": n % 2,
                "latency_ms": 10.0 * (n % 20),
                "served_latency_ms": 5.0,
                "score_shift": float("nan"),
            },
            100.0,
        )
    sums.add({"error": "timeout", "overlap": None, "latency_ms": None}, 100.0)
    status = msgspec.json.decode(msgspec.json.encode(sums), type=ShadowSums).status()
    assert next(iter(status.segments.items())) == ("known no", pytest.approx(0.2))
    assert set(status.segments) == {"known no", "known yes", "level full"}
    assert status.dropped == status.compared // 2
    assert (status.compared, status.errors, sums.evidence().slow) == (201, 1, 90)
    assert status.score_shift is None
