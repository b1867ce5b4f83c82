"""The temporal split: one cut in time for everybody, rolling label windows before it. PURE.

Train, tune and test are separated by time alone. The test window is the last part of the events; the ranker learns
from rolling windows of the same length that end before the test begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.views import DAY_US

WEEK_US = 7 * DAY_US

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Features as of `start_us`; labels from [start_us, end_us)."""

    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Split:
    """Rolling windows for the ranker (oldest first) and the test window."""

    rolling: tuple[Window, ...]
    test: Window

    def earlier(self, windows: int) -> Split:
        """Return the split whose test is that many rolling windows before this one's, and whose later ones are unseen.

        Raises
        ------
        BadInputError
            If no window to learn from is left before it.
        """
        if windows >= len(self.rolling):
            raise BadInputError(
                f"{len(self.rolling)} rolling windows do not reach {windows} back with one to learn from"
            )
        return self if not windows else Split(self.rolling[:-windows], self.rolling[-windows])


@dataclass(frozen=True)
class Log:
    """The columns of the event log that splitting and fitting need, in seq order."""

    user: npt.NDArray[np.object_]
    item: npt.NDArray[np.object_]
    event_type: npt.NDArray[np.object_]
    time_us: I64

    @classmethod
    def of(cls, table: pa.Table) -> Log:
        """Take the columns of a `LOG_SCHEMA` table."""
        happened, learned = (table[name].cast(pa.int64()) for name in ("event_timestamp", "received_at"))
        return cls(
            table["user_id"].to_numpy(zero_copy_only=False),
            table["item_id"].to_numpy(zero_copy_only=False),
            table["event_type"].to_numpy(zero_copy_only=False),
            pc.max_element_wise(happened, learned).to_numpy(zero_copy_only=False),
        )

    def before(self, cut_us: int) -> Log:
        """Events that were known strictly before a moment."""
        keep = self.time_us < cut_us
        return Log(self.user[keep], self.item[keep], self.event_type[keep], self.time_us[keep])

    def targets(self, window: Window, event_type: str) -> dict[str, set[str]]:
        """Items each user took in a window: user -> items, users in order of first event."""
        keep = (self.time_us >= window.start_us) & (self.time_us < window.end_us) & (self.event_type == event_type)
        found: dict[str, set[str]] = {}
        for user, item in zip(self.user[keep], self.item[keep], strict=True):
            found.setdefault(user, set()).add(item)
        return found


def drawn(targets: dict[str, set[str]], users: int, seed: list[int]) -> dict[str, set[str]]:
    """Draw some of the users of a window, in their order; all if there are no more."""
    if len(targets) <= users:
        return targets
    chosen = np.random.default_rng(seed).choice(len(targets), users, replace=False)
    names = list(targets)
    return {names[i]: targets[names[i]] for i in np.sort(chosen)}


def last_share(time_us: I64, share: float) -> Window:
    """Return the window of the last `share` of the events: the test window of the protocol."""
    return Window(int(np.quantile(time_us, 1.0 - share, method="lower")), int(time_us.max()) + 1)


def split_by_time(time_us: I64, *, test_share: float, windows: int, stride: float = 1.0) -> Split:
    """Cut the events by time.

    Parameters
    ----------
    time_us
        Event times in µs, any order, shape (n,).
    test_share
        Share of the *events* that lie in the test window.
    windows
        How many rolling windows to learn from.
    stride
        Distance between the starts of neighbouring windows, in window lengths.

    Raises
    ------
    BadInputError
        If the events span too little time.
    """
    if len(time_us) < 100:
        raise BadInputError(f"{len(time_us)} events are too few to split; at least 100 are needed")
    test = last_share(time_us, test_share)
    cut, end = test.start_us, test.end_us
    first = int(time_us.min())
    length = end - cut
    starts = [cut - length - round(i * stride * length) for i in range(windows)]
    # A window whose past is shorter than itself teaches nothing but cold starts.
    starts = [start for start in starts if start - first >= length]
    if not starts:
        raise BadInputError(
            f"the events span {(end - first) / DAY_US:.1f} days; with {length / DAY_US:.1f} days for the test no time "
            "is left to learn from"
        )
    return Split(tuple(Window(s, s + length) for s in sorted(starts)), test)


def split_by_horizon(time_us: I64, *, horizon_us: int | None, test_share: float, windows: int) -> Split:
    """Cut for labels of one horizon: `horizon_us` after a cut, at the test as on all rolling windows before it.

    Cuts lie whole weeks apart, the fewest that keep label windows from overlapping: all rows of a data set share one
    weekday and hour, so that a model cannot tell cuts apart by the clock.

    Parameters
    ----------
    time_us
        Event times in µs, any order, shape (n,).
    horizon_us
        Length of a label window; None: the time the last `test_share` of the events took.
    windows
        How many rolling windows at most; fewer where the past is short.

    Raises
    ------
    BadInputError
        If the events span too little time for two rolling windows: one to learn from, one to choose by.
    """
    if len(time_us) < 100:
        raise BadInputError(f"{len(time_us)} events are too few to split; at least 100 are needed")
    first, end = int(time_us.min()), int(time_us.max()) + 1
    length = horizon_us or end - int(np.quantile(time_us, 1.0 - test_share, method="lower"))
    stride = -(-length // WEEK_US) * WEEK_US
    starts = [end - length - i * stride for i in range(1, windows + 1)]
    starts = [start for start in starts if start - first >= length]  # as in split_by_time
    if len(starts) < 2:
        raise BadInputError(
            f"the events span {(end - first) / DAY_US:.1f} days, too few for a horizon of {length / DAY_US:.1f} days: "
            f"test, selection and one training window need {(2 * stride + 2 * length) / DAY_US:.1f}; take a shorter one"
        )
    return Split(tuple(Window(s, s + length) for s in sorted(starts)), Window(end - length, end))
