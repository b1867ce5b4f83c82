"""Chapter of the demo that proves sameness: events stream in, lists are served, and the skew check runs meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from feature_repo.settings import Settings
from larder.skew_result import print_report, write_report
from larder.story.steps import PhaseProgress
from larder_client.answers import Event
from larder_client.client import LarderClient
from monitoring.outcomes import SkewReport
from monitoring.skew_check import Extent, check_features

#: Events are sent in small batches, about 500 events a second in all.
_BATCH = 5
_PAUSE_S = 0.01
REQUESTS = 200
#: The log of what was served is written twice a second.
_WRITTEN_S = 1.0


class _Stream:
    """Events of some users on some items, sent until told to stop."""

    def __init__(self, base_url: str, users: Sequence[str], items: Sequence[str], seed: int) -> None:
        self._base_url, self._users, self._items = base_url, users, items
        self._rng = np.random.default_rng(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo events", daemon=True)
        self.sent = 0
        self.failure: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10.0)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            with LarderClient(self._base_url, timeout_s=5.0) as client:
                while not self._stopping.wait(_PAUSE_S):
                    client.send([self._event() for _ in range(_BATCH)])
                    self.sent += _BATCH
        except Exception as error:  # shown by the thread that waits for this one
            self.failure = error

    def _event(self) -> Event:
        user = self._users[int(self._rng.integers(len(self._users)))]
        item = self._items[int(self._rng.integers(len(self._items)))]
        kind = ("view", "view", "view", "cart", "purchase")[self._rng.integers(5)]
        return Event(user_id=user, item_id=item, event_type=kind, session_id=f"demo-{user}")


@contextmanager
def _streaming(stream: _Stream) -> Iterator[None]:
    stream.start()
    try:
        yield
    finally:
        stream.stop()


def prove_sameness(settings: Settings, base_url: str, users: Sequence[str], items: Sequence[str]) -> SkewReport:
    """Send events, ask for lists, and run the skew check while both go on.

    Parameters
    ----------
    users, items
        Whose events are sent, and on what.
    """
    stream = _Stream(base_url, users, items, settings.seed)
    with _streaming(stream), LarderClient(base_url, timeout_s=5.0) as client:
        began_us = time.time_ns() // 1000
        for number in range(REQUESTS):
            client.recommend(users[number % len(users)], k=20)
        time.sleep(_WRITTEN_S)
        sent = stream.sent
        with PhaseProgress() as shown:
            report = check_features(settings, Extent(seed=settings.seed, since_us=began_us), shown)
        during = stream.sent - sent
    print(f"{sent:,} events were sent while {REQUESTS} lists were served, {during:,} more during the check.")
    print_report(report)
    write_report(settings, report)
    return report
