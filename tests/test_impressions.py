"""The record of an answer: what the model saw comes back bit for bit, whatever it was; old days go, others stay."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_repo.rows import NO_RECENT_EVENTS, Rows, UserRows, null_rows
from feature_repo.views import USER_CATEGORY, USER_STATS
from serving.cascade.recommender import RankedItem
from serving.impression_log import ImpressionLog
from serving.impressions import NOT_READ, Impressions, Seen, keeps_all_candidates, read_impressions, to_record

NOW_US = 1_790_000_000_000_000
CATEGORIES = ("", "bread", "ü <b>", "tea")


def user_with(affinities: dict[str, int]) -> UserRows:
    rows = null_rows(USER_CATEGORY, len(affinities))
    rows.ints[:, 1] = list(affinities.values())
    known = Rows(USER_CATEGORY, rows.ints, rows.floats, np.ones(len(affinities), np.bool_))
    return UserRows("ü", null_rows(USER_STATS, 1), list(affinities), known, NO_RECENT_EVENTS)


def answer(seen: Seen | None, time_us: int = NOW_US, request_id: str = "r") -> Impressions:
    items = [RankedItem("i</script>", 1, 0.25, "history")]
    return Impressions(request_id, time_us, "ü", "stable", "b", "1", "full", 20, items, 7, NOT_READ, None, [], seen)


@settings(deadline=None)
@given(
    matrix=hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 12)), elements=st.floats(width=32)),
    seq=st.lists(st.sampled_from([0, NOT_READ, 2**62, 1_790_000_000_000 << 20 | 3]), min_size=8, max_size=8),
    category=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    affinities=st.dictionaries(st.sampled_from(CATEGORIES), st.integers(1, 2**62)),
)
def test_what_the_model_saw_comes_back(
    matrix: np.ndarray, seq: list[int], category: list[int], affinities: dict[str, int]
) -> None:
    """Every bit of every feature, NaN payloads included, through the line of JSON."""
    n = len(matrix)
    item_seq, pair_seq, codes = (np.array(values[:n]) for values in (seq, seq[::-1], category))
    codes = codes.astype(np.int32)
    seen = Seen("s", "h", None, matrix, item_seq, item_seq + 1, pair_seq, codes, CATEGORIES, user_with(affinities))
    line = msgspec.json.encode(to_record(answer(seen)))
    record = msgspec.json.decode(line, type=type(to_record(answer(None)))).seen
    assert record is not None
    saw, (items, entries, pairs), places = record.unpack()
    assert saw.tobytes() == matrix.tobytes()
    assert items.tolist() == item_seq.tolist()
    assert entries.tolist() == (item_seq + 1).tolist()
    assert pairs.tolist() == pair_seq.tolist()
    names = [record.categories[place] for place in places]
    assert names == [CATEGORIES[code] for code in codes]
    held = [record.affinity_seq[place] for place in places]
    assert held == [affinities.get(name, 0) for name in names]


def test_a_damaged_record_is_an_error_not_other_features(tmp_path: Path) -> None:
    matrix = np.ones((2, 3), np.float32)
    zero = np.zeros(2, np.int64)
    seen = Seen("s", "h", None, matrix, zero, zero, zero, np.zeros(2, np.int32), ("",), user_with({}))
    record = to_record(answer(seen)).seen
    assert record is not None
    with pytest.raises(ValueError, match="expected"):
        msgspec.structs.replace(record, rows=3).unpack()


def test_all_candidates_are_kept_for_a_fixed_share_of_ids() -> None:
    ids = [f"request {n}" for n in range(20_000)]
    kept = [name for name in ids if keeps_all_candidates(name, 0.01)]
    assert 120 < len(kept) < 280
    assert kept == [name for name in ids if keeps_all_candidates(name, 0.01)]
    assert set(kept) < {name for name in ids if keeps_all_candidates(name, 0.02)}
    assert not any(keeps_all_candidates(name, 0.0) for name in ids)
    assert all(keeps_all_candidates(name, 1.0) for name in ids)


def test_old_days_are_removed_and_records_are_read_from_a_time_on(tmp_path: Path) -> None:
    """Only directories of days go; half a line at the end of a file costs nobody else."""
    for name in ("2026-09-01", "2026-09-18", "2026-09-19", "keep me"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1-1.jsonl").write_bytes(msgspec.json.encode(to_record(answer(None, 5))) + b'\n{"request_')
    log = ImpressionLog(tmp_path, lambda lost: pytest.fail(f"{lost} lost"), keep_days=2)
    log.start()
    for n in range(4):
        log.append(answer(None, NOW_US + n, f"r{n}"))  # of 2026-09-21
    log.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-09-19", "2026-09-21", "keep me"]
    assert [record.request_id for record in read_impressions(tmp_path, NOW_US + 2)] == ["r2", "r3"]
    assert len(list(read_impressions(tmp_path))) == 6
