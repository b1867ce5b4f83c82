"""The fields and the log the rollout's controller reads: failures by assigned arm, and a shadow's comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from serving.impression_log import ShadowLog
from serving.impressions import ShadowRecord, read_impressions, read_shadow, to_record
from tests.test_impressions import NOW_US, answer


def compared(time_us: int = NOW_US, request_id: str = "r") -> ShadowRecord:
    return ShadowRecord(
        request_id, time_us, "ü", "c" * 32, "b" * 32, 3, 20, 0.5, -1.0, 0.125, 4.5, 3.5, None, True, "full", "tea"
    )  # fmt: skip


def test_a_failure_and_its_epoch_come_back(tmp_path: Path) -> None:
    one = to_record(replace(answer(None), latency_ms=61.5, failure="timeout", epoch=7))
    (tmp_path / "2026-09-21").mkdir()
    (tmp_path / "2026-09-21" / "1-1.jsonl").write_bytes(msgspec.json.encode(one))
    assert list(read_impressions(tmp_path)) == [one]


def test_records_from_before_rollouts_are_read(tmp_path: Path) -> None:
    old = msgspec.to_builtins(to_record(answer(None)))
    for name in ("latency_ms", "failure", "epoch"):
        del old[name]
    (tmp_path / "2026-09-21").mkdir()
    (tmp_path / "2026-09-21" / "1-1.jsonl").write_bytes(msgspec.json.encode(old))
    (record,) = read_impressions(tmp_path)
    assert (record.request_id, record.latency_ms, record.failure, record.epoch) == ("r", None, None, 0)


def test_comparisons_are_kept_by_day_and_read_from_a_time_on(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path, lambda lost: pytest.fail(f"{lost} lost"))
    log.start()
    sent = [compared(NOW_US + n, f"r{n}") for n in range(3)] + [compared(NOW_US + 86_400_000_000, "later")]
    for record in sent:
        log.append(record)
    log.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-09-21", "2026-09-22"]
    assert list(read_shadow(tmp_path)) == sent
    assert [record.request_id for record in read_shadow(tmp_path, NOW_US + 2)] == ["r2", "later"]
