"""Being the one active controller: takes the lease, keeps it, and takes over one that is no longer kept.

Whether a lease is still kept is told by watching it, not by comparing its end with a clock: clocks of two machines
differ, and jump. A holder renews it again and again; one that has not done so for as long as a lease lasts is gone.
That a holder who only slept does no harm is the store's doing: every write carries the lease's token.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from deployment.store.control_store import ControlStore
from deployment.store.records import Lease
from feature_repo.errors import ConflictError

_LOG = logging.getLogger(__name__)
#: Longer than a tick can take with everything slow; how long a rollout stands still after a crash.
TTL_S: Final = 20.0


class Leadership:
    """The lease of one process.

    Parameters
    ----------
    store
        Where it is.
    now, clock
        Wall clock, aware; monotonic seconds.
    ttl_s
        How long it lasts without being renewed.
    """

    def __init__(
        self,
        store: ControlStore,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        *,
        ttl_s: float = TTL_S,
        holder: str | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._clock = clock
        self._ttl_s = ttl_s
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.lease: Lease | None = None
        self._renewed = 0.0
        self._seen: Lease | None = None
        self._seen_since = 0.0

    def hold(self) -> Lease | None:
        """Return the lease, taken or renewed where it is time; None while another controller has it.

        Raises
        ------
        UnavailableError
            If the database cannot be used; the lease, if there was one, is as it was.
        """
        if self.lease is None:
            self.lease = self._take()
            if self.lease is not None:
                self._renewed = self._clock()
                _LOG.info("controller %s is active (token %d)", self.holder, self.lease.token)
        elif self._clock() - self._renewed > self._ttl_s / 3:
            try:
                self.lease = self._store.renew_lease(self.lease, self._ttl_s, self._now())
                self._renewed = self._clock()
            except ConflictError as error:
                _LOG.warning("%s", error)
                self.lease = None
        return self.lease

    def lost(self) -> None:
        """Forget a lease that turned out to be another's."""
        self.lease = None

    def release(self) -> None:
        """Let another controller take over at once."""
        if self.lease is not None:
            self._store.release_lease(self.lease)
            self.lease = None

    def _take(self) -> Lease | None:
        found = self._store.lease()
        if found != self._seen:
            self._seen, self._seen_since = found, self._clock()
        if found is None:
            return self._store.acquire_lease(self.holder, self._ttl_s, self._now())
        if self._clock() - self._seen_since <= self._ttl_s:
            return None
        # Nobody renewed it: to the store it must look over, whatever time its end was computed from.
        over = max(self._now(), found.expires_at + timedelta(microseconds=1))
        return self._store.acquire_lease(self.holder, self._ttl_s, over)
