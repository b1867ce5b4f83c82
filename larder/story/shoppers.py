"""Simulated people who use the running API: they ask, look at the list, and click by the shop's hidden truth."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from feature_repo.errors import BadInputError
from feature_repo.event_log import read_report
from feature_repo.settings import Settings
from feature_repo.simulator.world import Simulator
from larder_client.answers import Event, Recommendations

K: Final = 10
#: How long people look before they click.
LOOK_S: Final = 1.0
#: Requests under way at once; people above it find the shop full, which is counted.
_AT_ONCE: Final = 256
_TIMEOUT_S: Final = 5.0
_OK: Final = 200
#: What becomes of each event is in the answer.
_TAKEN: Final = (200, 202)
_HEADERS: Final = {"content-type": "application/json"}
_DECODER: Final = msgspec.json.Decoder(Recommendations)


@dataclass
class Visits:
    """What people met.

    Attributes
    ----------
    latency_ms
        From the moment a visit was due to its answer.
    outcomes
        How often an answer was `ok`, of what status it was otherwise, or `unanswered`.
    clicks
        Items clicked.
    lost_events
        How often what they did could not be told.
    """

    latency_ms: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    clicks: int = 0
    lost_events: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """How many visits got no good answer."""
        return self.outcomes.total() - self.outcomes["ok"]

    def figures(self) -> dict[str, float]:
        """Figures by name."""
        p50, p95, p99 = np.quantile(self.latency_ms, [0.5, 0.95, 0.99]) if self.latency_ms else (np.nan,) * 3
        return {
            "visits": float(self.outcomes.total()),
            "failed": float(self.failed),
            "server_errors": float(sum(n for name, n in self.outcomes.items() if name.startswith("5"))),
            "clicks": float(self.clicks),
            "lost_events": float(self.lost_events),
            "rps": self.outcomes.total() / max(self.seconds, 1e-9),
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
        }


class Shoppers:
    """The people of a project's simulated shop.

    Parameters
    ----------
    settings
        A project whose data are the simulator's.
    rate
        Visits a second, as a Poisson process that does not wait for answers.
    seed
        Who comes when, and what luck they have.
    exclude
        Items they ask not to be shown.
    """

    def __init__(self, settings: Settings, rate: float, *, seed: int = 0, exclude: tuple[str, ...] = ()) -> None:
        report = read_report(settings)
        if report.name != "simulator":
            raise BadInputError(
                f"project {settings.project} holds {report.name}: what people like is known of the simulator's only"
            )
        self._shop = Simulator(seed=settings.seed, shift_weeks=report.shift_weeks)
        self._rng = np.random.default_rng([settings.seed, 41, seed])
        self._rate = rate
        self._exclude = exclude
        self.visits = Visits()

    def run(self, base_url: str, seconds: float, ended: Callable[[], bool] = lambda: False) -> Visits:
        """Visit for some time, or until `ended`."""
        return asyncio.run(self._run(base_url, seconds, ended))

    async def _run(self, base_url: str, seconds: float, ended: Callable[[], bool]) -> Visits:
        start = due = time.perf_counter()
        under_way: set[asyncio.Task[None]] = set()
        users = self._shop.users.ids
        # aiohttp takes a third of httpx's time: people must not use the core that serves them.
        timeout, connector = aiohttp.ClientTimeout(_TIMEOUT_S), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(base_url, timeout=timeout, connector=connector) as http:
            while (due := due + self._rng.exponential(1.0 / self._rate)) < start + seconds and not ended():
                await asyncio.sleep(max(due - time.perf_counter(), 0.0))
                if len(under_way) >= _AT_ONCE:
                    self.visits.outcomes["full"] += 1
                    continue
                user = users[int(self._rng.integers(len(users)))]
                task = asyncio.create_task(self._visit(http, user, due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            if under_way:
                await asyncio.wait(under_way, timeout=_TIMEOUT_S)
        self.visits.seconds = time.perf_counter() - start
        return self.visits

    async def _visit(self, http: aiohttp.ClientSession, user_id: str, due: float) -> None:
        wish = {"user_id": user_id, "k": K, "exclude": self._exclude}
        status, body = await _post(http, "/v1/recommendations", wish)
        self.visits.outcomes["ok" if status == _OK else str(status or "unanswered")] += 1
        if status != _OK:
            return
        self.visits.latency_ms.append((time.perf_counter() - due) * 1e3)
        answer = _DECODER.decode(body)
        items = [item.item_id for item in answer.items]
        events = self._shop.respond(user_id, items, datetime.now(UTC), self._rng, answer.request_id)
        self.visits.clicks += sum(one["event_type"] == "view" for one in events)
        if events:
            await asyncio.sleep(LOOK_S)
            status, _ = await _post(http, "/v1/events", {"events": [_as_sent(one) for one in events]})
            self.visits.lost_events += status not in _TAKEN


async def _post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, bytes]:
    """Return status and body of an answer; status 0 where none came."""
    try:
        async with http.post(path, data=msgspec.json.encode(body), headers=_HEADERS) as answer:
            return answer.status, await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return 0, b""


def _as_sent(event: Mapping[str, Any]) -> Event:
    """Return an event as a client sends it, at the time it is sent: the simulator's people take longer to look."""
    return Event(**{**event, "event_timestamp": datetime.now(UTC)})
