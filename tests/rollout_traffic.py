"""A made-up shop for tests of rollouts: writes the logs that the API would write, by several processes."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import redis

from deployment.rollout.collector import collected_from_here
from deployment.rollout.moves import Current, Moves
from deployment.rollout.profile import RolloutProfile, read_profile
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.events import EVENT_SCHEMA, LOG_SCHEMA, seq_of
from feature_repo.ingest_log import LiveLog
from feature_repo.settings import Settings
from feature_repo.stream import StreamBatch
from serving.assignment import assign
from serving.plan import Arm, Plan, decode_plan, plan_key
from serving.signature import signing_key

STABLE, CANDIDATE = Arm("1" * 32, "1"), Arm("2" * 32, "2")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def tiny_profile(**changes: Any) -> RolloutProfile:
    """Two steps, wide margins, no shadow unless asked for: a rollout of seconds."""
    values: dict[str, Any] = {
        "description": "for tests",
        "latency_objective_ms": 100.0,
        "alpha": 0.01,
        "ratio_alpha": 0.001,
        "click_alpha": 0.01,
        "window_s": 1.0,
        "max_hold_minutes": 2.0,
        "shadow": {"comparisons": 0, "minutes": 0, "error_share": 0.05, "slow_share": 0.2, "overlap_floor": 0.1},
        "steps": [
            {"weight": 2000, "requests": 100, "minutes": 0.05},
            {"weight": 5000, "requests": 200, "minutes": 0.05},
        ],
        "margins": dict.fromkeys(("error", "fallback", "slow", "non_finite", "empty"), 0.2),
        "clicks": {
            "users": 400, "looks": 2, "minutes": 10, "margins": {"ctr": 0.5, "conversion": 0.9}, "required": [],
        },
    }  # fmt: skip
    return read_profile("tiny", values | changes)


def first_champion(settings: Settings) -> ControlStore:
    """Commit a plan with a champion; return the store."""
    store = ControlStore(settings, signing_key(settings))
    entry = NewEntry("test", "promote", "the first", STABLE.bundle_id, STABLE.model_version)
    store.commit(lambda _: Plan(0, STABLE, START), expected_epoch=0, entry=entry, now=START)
    return store


def begin(settings: Settings, profile: RolloutProfile | None = None) -> Current:
    """Start a rollout of the candidate against the champion."""
    moves = Moves(settings, ControlStore(settings, signing_key(settings)), signing_key(settings))
    return moves.start(
        CANDIDATE,
        profile or tiny_profile(),
        collected_from_here(settings),
        who="test",
        why="try it",
        now=START,
        body={},
    )


@dataclass
class Traffic:
    """Users who ask, and what the API logs of them under a plan.

    `failing`, `slow` and `click` are probabilities by arm; a request is logged by one of `processes` files.
    """

    settings: Settings
    seed: int = 0
    n_users: int = 3_000
    failing: dict[str, float] = field(default_factory=dict)
    failure: str = "error"
    slow: dict[str, float] = field(default_factory=dict)
    click: dict[str, float] = field(default_factory=dict)
    time_us: int = int(START.timestamp() * 1e6)
    processes: int = 2

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.sent = 0
        self.encoder = msgspec.json.Encoder()

    def serve(self, plan: Plan, n: int) -> None:
        """Answer so many requests under a plan and log them, with the shadow's answers and the users' clicks."""
        lines: list[list[bytes]] = [[] for _ in range(self.processes)]
        shadows: list[bytes] = []
        clicks: list[tuple[str, str]] = []
        for _ in range(n):
            self.sent += 1
            self.time_us += 3_000
            user = f"u{self.rng.randrange(self.n_users)}"
            arm = assign(plan, user)
            request_id = f"r{self.seed}-{self.sent}"
            lines[self.sent % self.processes].append(self.encoder.encode(self._answer(request_id, user, arm, plan)))
            if plan.shadow is not None:
                shadows.append(self.encoder.encode(self._shadow(request_id, user, plan)))
            if self.rng.random() < self.click.get(arm, 0.2):
                clicks.append((request_id, user))
        for process, some in enumerate(lines):
            self._append(self.settings.impressions_dir, process, some)
        self._append(self.settings.shadow_dir, 0, shadows)
        if clicks:
            self._click(clicks)

    def _answer(self, request_id: str, user: str, arm: str, plan: Plan) -> dict[str, Any]:
        failed = self.rng.random() < self.failing.get(arm, 0.0)
        is_slow = self.rng.random() < self.slow.get(arm, 0.0)
        return {
            "request_id": request_id,
            "time_us": self.time_us,
            "user_id": user,
            "assigned_arm": arm,
            "latency_ms": 250.0 if is_slow else self.rng.uniform(5, 20),
            "failure": self.failure if failed else None,
            "epoch": plan.epoch,
            "items": [],
            "seen": None,
        }

    def _shadow(self, request_id: str, user: str, plan: Plan) -> dict[str, Any]:
        known = self.rng.random() < 0.8
        failed = self.rng.random() < self.failing.get("shadow", 0.0)
        return {
            "request_id": request_id,
            "user_id": user,
            "bundle_id": plan.shadow.bundle_id,
            "k": 10,
            "overlap": 0.8 if known else 0.3,
            "rank_correlation": 0.7,
            "score_shift": 0.01,
            "latency_ms": 250.0 if self.rng.random() < self.slow.get("shadow", 0.0) else 15.0,
            "served_latency_ms": 10.0,
            "error": "timeout" if failed else None,
            "known": known,
        }

    def _append(self, directory: Path, process: int, lines: list[bytes]) -> None:
        if not lines:
            return
        day = directory / f"{datetime.fromtimestamp(self.time_us / 1e6, UTC):%Y-%m-%d}"
        day.mkdir(parents=True, exist_ok=True)
        with (day / f"1-{process}.jsonl").open("ab") as file:
            file.write(b"\n".join(lines) + b"\n")

    def _click(self, clicks: list[tuple[str, str]]) -> None:
        at = START + timedelta(microseconds=self.time_us - int(START.timestamp() * 1e6))
        rows = []
        for n, (request_id, user) in enumerate(clicks):
            row = dict.fromkeys(EVENT_SCHEMA.names) | {
                "seq": seq_of(self.time_us // 1000, n), "event_id": f"e{request_id}", "user_id": user, "item_id": "i",
                "event_type": "view", "event_timestamp": at, "received_at": at, "request_id": request_id,
            }  # fmt: skip
            rows.append(row)
        table = pa.Table.from_pylist(rows, schema=LOG_SCHEMA)
        with contextlib.closing(LiveLog(self.settings)) as log:
            log.append(StreamBatch(table, [], [], table["seq"][-1].as_py()))


def published(settings: Settings, client: redis.Redis) -> Plan | None:
    """The plan as serving sees it."""
    data = client.get(plan_key(settings.project))
    return decode_plan(data, signing_key(settings)) if data else None


class Clock:
    """Monotonic seconds and a wall clock that tests move."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.wall = START

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.wall

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds)
