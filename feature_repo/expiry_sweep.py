"""Removes expired pairs and affinities from Redis, a little at a time, beside ingest.

The fold begins such a row anew (`max_age_us`), so removing it changes no feature. It is removed `MARGIN_US` later than
readers cease to count it, and by the watermark instead of the clock: an event still to be folded happened at most seven
days before it was accepted, so it would find the row expired, too.
"""

from __future__ import annotations

from collections import deque
from hashlib import sha1
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.online_keys import INDEX_BUCKETS, index_key, row_key
from feature_repo.packed_commands import ask
from feature_repo.packed_row import HEADER_BYTES
from feature_repo.redis_commands import Command
from feature_repo.redis_scripts import script_text
from feature_repo.stream import SEEN_S
from feature_repo.views import DAY_US, FOLD_VIEWS, View

MARGIN_US: Final = SEEN_S * 1_000_000 + DAY_US
#: Hashes looked at in one step, and about how many of their fields are read at a time.
_HASHES: Final = 50
_FIELDS: Final = 100
_TIME = slice(8, 16)
_VIEWS: Final = tuple(view for view in FOLD_VIEWS if view.max_age_us is not None)


class ExpirySweep:
    """Goes round the index of the views with an age rule, for ever.

    Parameters
    ----------
    client
        Client of the project's Redis for raw bytes.
    project
        Name of the project.
    start
        Where to begin: a worker that is often started again should not always sweep the same part.

    Attributes
    ----------
    removed
        Rows removed so far.
    rounds
        How often all rows were looked at.
    """

    def __init__(self, client: redis.Redis, project: str, start: int = 0) -> None:
        self._client = client
        self._project = project
        self._parts = [(view, bucket) for bucket in range(INDEX_BUCKETS) for view in _VIEWS]
        self._first = self._next = start % len(self._parts)
        self._hashes: deque[tuple[View, bytes, bytes]] = deque()  # view, key, cursor
        self._text = script_text("expiry_sweep")
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self.removed = 0
        self.rounds = 0

    def step(self, watermark: int) -> int:
        """Look at some rows and remove the expired ones; return how many were removed.

        Parameters
        ----------
        watermark
            `seq` up to which events are folded.

        Raises
        ------
        redis.exceptions.RedisError
            If Redis fails; what was not looked at is found again in the next round.
        """
        if not self._hashes:
            self._find_hashes()
        now_us = (watermark >> SEQ_COUNTER_BITS) * 1000
        looked = [self._hashes.popleft() for _ in range(min(_HASHES, len(self._hashes)))]
        answers = ask(self._client, [("HSCAN", key, cursor, "COUNT", _FIELDS) for _, key, cursor in looked])
        commands: list[Command] = []
        for (view, key, _), (cursor, words) in zip(looked, answers, strict=True):
            fields = words.items() if isinstance(words, dict) else zip(words[::2], words[1::2], strict=True)
            oldest = now_us - (view.max_age_us or 0) - MARGIN_US
            old = [field for field, row in fields if len(row) >= HEADER_BYTES and _time(row) < oldest]
            if old:
                moment = oldest.to_bytes(8, "little", signed=True)
                commands.append(("EVALSHA", self._sha, 1, key, moment, *old))
            if int(cursor):
                self._hashes.append((view, key, b"%d" % int(cursor)))
        removed: int = sum(self._run(commands))
        self.removed += removed
        return removed

    def _find_hashes(self) -> None:
        """Queue the hashes of the next part of the index; a step past many empty parts at most."""
        parts = [self._parts[(self._next + k) % len(self._parts)] for k in range(_HASHES)]
        commands = [("HKEYS", index_key(self._project, view.name, bucket)) for view, bucket in parts]
        for (view, _), entities in zip(parts, ask(self._client, commands), strict=True):
            before, self._next = self._next, (self._next + 1) % len(self._parts)
            self.rounds += (before + 1) % len(self._parts) == self._first
            self._hashes.extend((view, row_key(self._project, view.name, e.decode()), b"0") for e in entities)
            if len(self._hashes) >= _HASHES:
                return

    def _run(self, commands: list[Command]) -> list[Any]:
        try:
            return ask(self._client, commands)
        except NoScriptError:  # a new server, or somebody flushed the scripts
            self._client.script_load(self._text)
            return ask(self._client, commands)


def _time(row: bytes) -> int:
    return int.from_bytes(row[_TIME], "little", signed=True)
