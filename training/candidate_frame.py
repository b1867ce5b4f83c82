"""The ranker's training rows as a DataFrame, retrieval columns included: for a data scientist's own ranker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd

from feature_repo.asof import microseconds
from feature_repo.errors import BadInputError
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from serving.cascade.fusion import Fusion
from training.split import Log, Window, last_share, split_by_time
from training.train import Stopwatch, TrainConfig, read_log, window_rows


def candidate_frame(
    cut: datetime,
    service: str = "ranking_v1",
    *,
    settings: Settings,
    label_window: timedelta | None = None,
    config: TrainConfig | None = None,
    fusion: Fusion | None = None,
    number: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return what training would learn from one cut, made by the very function that training uses.

    Generators are fitted on the events before the cut, features are as of the cut, labels are what users took in the
    label window that begins there. Users are those who took anything in it; their rows are all they took, and a sample
    of negatives (`training.candidate_rows.Sampling`). Nothing after the label window has any influence.

    Parameters
    ----------
    cut
        Aware time.
    service
        Feature service of the state features.
    label_window
        Its length; None: that of the test window of `larder train`, which grows with the log. Say it where frames of
        another day are to be comparable.
    config
        Generators, quotas, sampling and target; the defaults of `larder train` if None. `config.service` is not looked
        at.
    fusion
        How the generators' lists become one: that of the champion (`bundle.recommender.fusion`), or of the window
        before; None: by reciprocal ranks, as training's first window.
    number
        Which negatives are drawn; `larder train` draws those of its first window with 1, of its second with 2, ...

    Returns
    -------
    DataFrame
        `user_id`, `item_id`, `event_timestamp` (the cut), `label` (0 or 1), `weight` (how many rows of the catalogue
        the row stands for), `group` (number of the user, ascending), the features of the service in order, and
        `r_<generator>_score` and `r_<generator>_rank` of each generator: float32, NaN for null. A model that takes all
        columns after `group` in their order can be registered and gated like Larder's own.

    Raises
    ------
    BadInputError
        For a time without zone; where the cut leaves no past or no whole label window; where nobody took anything.
    NotFoundError
        For an unknown service, or if nothing was backfilled yet.
    """
    feature_list(service)
    config = replace(config or TrainConfig(), service=service)
    log = read_log(settings)
    window = _window(log, cut, label_window, config.test_share)
    report = on_progress or (lambda done, total: None)
    made = window_rows(settings, config, log, window, number, Stopwatch(), report, fusion)
    rows = made.rows
    keys = made.keys.assign(label=rows.label, weight=rows.weight, group=rows.group)
    return pd.concat([keys, pd.DataFrame(rows.matrix, columns=list(made.columns))], axis=1)


def training_cuts(settings: Settings, windows: int = 2, *, test_share: float = 0.1) -> list[datetime]:
    """Return cuts that a model may learn from: the rolling windows `larder train` takes, oldest first.

    Label windows of the default length that begin there end before the test window of a model trained on the same
    events, so the gate judges by nothing that was learned.

    Parameters
    ----------
    windows
        How many; fewer where the past is short.

    Raises
    ------
    BadInputError
        If the events span too little time.
    """
    split = split_by_time(read_log(settings).time_us, test_share=test_share, windows=windows)
    return [datetime.fromtimestamp(window.start_us / 1e6, UTC) for window in split.rolling]


def _window(log: Log, cut: datetime, length: timedelta | None, test_share: float) -> Window:
    """Return the label window after a cut that the log covers."""
    start = microseconds(cut)
    if not len(log.time_us):
        raise BadInputError("there are no events yet; import some first")
    test = last_share(log.time_us, test_share)
    us = test.end_us - test.start_us if length is None else length // timedelta(microseconds=1)
    if us <= 0:
        raise BadInputError(f"the label window must be longer than 0, not {length}")
    first, last = int(log.time_us.min()), int(log.time_us.max())
    # The rule of training: a past shorter than the window teaches nothing but cold starts.
    if start - first < us:
        raise BadInputError(
            f"the cut {cut.isoformat()} leaves a past of {max(start - first, 0) / DAY_US:.1f} days, less than the "
            f"label window of {us / DAY_US:.1f}; the events begin {_day(first)}"
        )
    if start + us > last + 1:
        raise BadInputError(
            f"the cut {cut.isoformat()} leaves no whole label window of {us / DAY_US:.1f} days: the events end "
            f"{_day(last)}; the latest cut is {_day(last + 1 - us)}"
        )
    return Window(start, start + us)


def _day(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")
