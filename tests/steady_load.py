"""Requests at a steady rate, whatever becomes of earlier ones, with what each answer said of itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
import numpy as np

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """One request; `status` is 0 where no answer came, `error` says why."""

    sent_s: float  #: by `time.monotonic`
    took_s: float
    status: int
    level: str = ""
    reasons: tuple[str, ...] = ()
    error: str = ""


@dataclass
class SteadyLoad:
    """Asks for lists from a thread of its own until it is left."""

    port: int
    users: Sequence[str]
    rps: float = 50.0
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_TIMEOUT_S + 5)
        assert not self._thread.is_alive()

    def between(self, begin_s: float, end_s: float) -> list[Answer]:
        """Answers to what was sent between two moments."""
        return [one for one in self.answers if begin_s <= one.sent_s < end_s]

    async def _run(self) -> None:
        timeout, connections = aiohttp.ClientTimeout(total=_TIMEOUT_S), aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(timeout=timeout, connector=connections) as session:
            tasks: set[asyncio.Task[None]] = set()
            due, number = time.monotonic(), 0
            while not self._stop.is_set():
                task = asyncio.create_task(self._ask(session, self.users[number % len(self.users)]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due, number = due + 1.0 / self.rps, number + 1
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, user: str) -> None:
        sent = time.monotonic()
        body = {"user_id": user, "k": 10}
        try:
            async with session.post(f"http://127.0.0.1:{self.port}/v1/recommendations", json=body) as response:
                said = await response.json()
                level, reasons = said.get("level", ""), tuple(said.get("reasons", ()))
                answer = Answer(sent, time.monotonic() - sent, response.status, level, reasons)
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = Answer(sent, time.monotonic() - sent, 0, error=f"{type(error).__name__}: {error}")
        self.answers.append(answer)


def quantile_ms(answers: Sequence[Answer], q: float) -> float:
    """Latency quantile in ms."""
    return 1e3 * float(np.quantile([one.took_s for one in answers], q))
