"""The temporal split: everything in a window lies after everything it is learned from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import BadInputError
from feature_repo.views import DAY_US
from training.split import Log, Window, split_by_time


@given(st.integers(1, 6), st.floats(0.05, 0.3), st.integers(0, 10_000))
def test_windows_do_not_overlap_and_end_before_the_test(windows: int, share: float, seed: int) -> None:
    """Rolling windows follow each other and stop where the test begins."""
    time = np.random.default_rng(seed).integers(0, 300 * DAY_US, 2000)
    split = split_by_time(time, test_share=share, windows=windows)
    ends = [w.end_us for w in split.rolling]
    starts = [w.start_us for w in split.rolling]
    assert split.rolling and ends[-1] <= split.test.start_us
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert np.mean((time >= split.test.start_us) & (time < split.test.end_us)) == pytest.approx(share, abs=0.01)
    assert split.test.end_us > time.max()


def test_an_earlier_cut_is_judged_on_a_window_and_learns_from_those_before() -> None:
    time = np.random.default_rng(1).integers(0, 300 * DAY_US, 2000)
    split = split_by_time(time, test_share=0.1, windows=4)
    earlier = split.earlier(2)
    assert earlier.test == split.rolling[2]
    assert earlier.rolling == split.rolling[:2]
    assert split.earlier(0) == split
    with pytest.raises(BadInputError, match="do not reach 4 back"):
        split.earlier(4)


def test_too_little_is_said() -> None:
    """Few events, or no time before the test, is an error that says so."""
    with pytest.raises(BadInputError, match="at least 100"):
        split_by_time(np.arange(50), test_share=0.1, windows=1)
    with pytest.raises(BadInputError, match="no time"):
        split_by_time(np.array([0] * 100 + [10**12] * 100), test_share=0.9, windows=4)


def test_targets_are_what_was_taken_inside_the_window() -> None:
    """The start belongs to the window, the end does not; other event types do not count."""
    log = Log(
        np.array(["u1", "u1", "u1", "u2", "u2"], object),
        np.array(["a", "b", "c", "a", "d"], object),
        np.array(["purchase", "purchase", "purchase", "view", "purchase"], object),
        np.array([9, 10, 20, 12, 19]),
    )
    assert log.targets(Window(10, 20), "purchase") == {"u1": {"b"}, "u2": {"d"}}
    assert log.before(10).item.tolist() == ["a"]
