"""One look of a worker: the newest window measured, kept, and held against the champion's first days."""

from __future__ import annotations

from typing import Final

from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from monitoring.live_quality.decay import Decay, ctr_decay, window_of
from monitoring.live_quality.history import add_to_history, read_history
from monitoring.live_quality.measure import Extent, measure
from monitoring.live_quality.report import QualityReport

#: Lists of so long make one window: a whole day, as mornings are not evenings.
WINDOW_US: Final = DAY_US


def look(settings: Settings, now_us: int, window_us: int = WINDOW_US) -> tuple[QualityReport, Decay | None]:
    """Measure the newest window and keep the champion's CTR in it; may be called as often as one likes.

    Parameters
    ----------
    now_us
        Time of the look, µs since the epoch.
    window_us
        Length of the window, which ends `Extent.wait_us` ago.

    Returns
    -------
    tuple
        The report, and what to say of the champion's CTR; None while there is nothing to compare.

    Raises
    ------
    NotFoundError
        If nothing was served in the window.
    """
    until = now_us - Extent().wait_us
    report = measure(settings, now_us, Extent(since_us=until - window_us, until_us=until))
    window = window_of(report)
    history = read_history(settings) if window is None else add_to_history(settings, window)
    return report, None if window is None else ctr_decay(history)
