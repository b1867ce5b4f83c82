"""Steady load on the API while faults happen: every answer with its moment, status, wait and rung of the ladder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import numpy as np
import psutil
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from tests.fault_processes import Shop, api_service, fault_settings
from tests.fault_proxy import Proxy
from tests.running_api import open_shop
from tests.tiny_bundle import Shop as SmallShop

#: Status of a request nobody accepted a connection for, and of one that was sent and never answered.
REFUSED, FAILED = -1, 0
#: In the one read of a request, and in nothing that runs beside requests.
USER_READ = b":fs:user_stats:"
RATE = 50.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was due (monotonic seconds), how long it took, and what came."""

    at: float
    seconds: float
    status: int
    level: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def marked(self) -> bool:
        return self.level != "full" and bool(self.reasons)


class SteadyLoad:
    """Recommendations of known users at a fixed rate, open loop, from a thread. Use it as a context manager."""

    def __init__(self, port: int, users: Sequence[str], *, rps: float = RATE) -> None:
        self.answers: list[Answer] = []
        self._url, self._users, self._rps = f"http://{HOST}:{port}/v1/recommendations", users, rps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "requests hang"

    def since(self, begin: float, end: float = float("inf")) -> list[Answer]:
        """Return what was due from one moment to another, in that order."""
        return sorted((one for one in tuple(self.answers) if begin <= one.at < end), key=lambda one: one.at)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(timeout=10.0, limits=limits) as http, asyncio.TaskGroup() as group:
            due, number = time.monotonic(), 0
            while not self._stop.is_set():
                group.create_task(self._ask(http, self._users[number % len(self._users)], due))
                number, due = number + 1, due + 1 / self._rps
                await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _ask(self, http: httpx.AsyncClient, user: str, due: float) -> None:
        # From when it left: that this process was late is not the server's fault.
        began = time.monotonic()
        try:
            response = await http.post(self._url, json={"user_id": user, "k": 10})
        except httpx.TransportError as error:
            status = REFUSED if isinstance(error, httpx.ConnectError) else FAILED
            self.answers.append(Answer(due, time.monotonic() - began, status))
            return
        seconds, body = time.monotonic() - began, response.json()
        level, reasons = body.get("level", ""), tuple(body.get("reasons", ()))
        self.answers.append(Answer(due, seconds, response.status_code, level, reasons))


def wait_ms(answers: Sequence[Answer], q: float) -> float:
    """Quantile of the waits in ms."""
    return float(np.quantile([answer.seconds for answer in answers], q, method="higher")) * 1e3


def statuses(answers: Sequence[Answer]) -> set[int]:
    return {answer.status for answer in answers}


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds of the system."""

    threads: int
    descriptors: int
    memory_mb: float


def held(process: psutil.Process) -> Held:
    return Held(process.num_threads(), process.num_fds(), process.memory_info().rss / 1e6)


class ServedShop:
    """A small shop with a model: Redis, a proxy in front of it, and `larder serve` as processes."""

    def __init__(self, processes: Shop, proxy: Proxy, client: redis.Redis, small: SmallShop, bundle_id: str) -> None:
        self.processes, self.proxy, self.client, self.small, self.bundle_id = (
            processes, proxy, client, small, bundle_id,
        )  # fmt: skip
        self.settings = processes.settings
        self.url = f"http://{HOST}:{self.settings.api_port}"
        self.http = httpx.Client(base_url=self.url, timeout=10.0)

    @property
    def api(self) -> psutil.Process:
        return psutil.Process(self.processes.running["api"].pid)

    @property
    def redis(self) -> psutil.Process:
        return psutil.Process(self.processes.running["redis"].pid)

    def load(self, **options: float) -> SteadyLoad:
        return SteadyLoad(self.settings.api_port, self.small.user_ids, **options)

    def one(self, user_id: str = "u00001") -> Answer:
        """Ask once."""
        began = time.monotonic()
        response = self.http.post("/v1/recommendations", json={"user_id": user_id, "k": 10})
        body = response.json()
        seconds = time.monotonic() - began
        return Answer(began, seconds, response.status_code, body.get("level", ""), tuple(body.get("reasons", ())))

    def wait_full(self, seconds: float = 30.0) -> float:
        """Wait until an answer is complete; return the seconds it took."""
        began = time.monotonic()
        self.processes.wait_until("answers are complete", lambda: self.one().level == "full", seconds)
        return time.monotonic() - began

    def wait_open(self, seconds: float) -> float:
        """Wait until Redis is left alone; return the seconds it took."""
        began = time.monotonic()

        def left_alone() -> bool:
            return any(text.startswith("Redis does not answer") for text in self.http.get("/readyz").json()["problems"])

        self.processes.wait_until("Redis is left alone", left_alone, seconds)
        return time.monotonic() - began

    def kill_redis(self) -> None:
        """kill -9, and nobody starts it again."""
        self.processes.stopped.add("redis")
        self.redis.kill()
        self.processes.running["redis"]._child.wait()
        self.processes.running["redis"].stop()

    def start_redis(self) -> None:
        self.processes.start("redis").wait()


@contextmanager
def served_shop(home: Path, **fields: object) -> Iterator[ServedShop]:
    """Start everything and wait until answers are complete; all is gone afterwards."""
    port = any_free_port()
    with Proxy(port, delay_s=2.0, watch=USER_READ) as proxy:
        settings: Settings = fault_settings(home / "home", redis_port=proxy.port, **fields)
        processes = Shop(settings, redis_port=port, api=api_service(settings))
        with processes, closing(redis.Redis(HOST, port)) as client:
            small, bundle_id = open_shop(settings, client)
            processes.start_all()
            served = ServedShop(processes, proxy, client, small, bundle_id)
            with closing(served.http):
                served.wait_full()
                yield served
