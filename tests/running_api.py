"""Runs the real app over real HTTP for tests, and the small things every test of it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
import redis
import uvicorn

from feature_repo.settings import Settings
from larder.services.ports import any_free_port
from serving.app import create_app
from serving.plan import Arm, Plan, encode_plan, plan_key
from serving.protocol import EdgeProtocol
from serving.signature import signing_key
from tests.tiny_bundle import Shop, make_bundle, make_shop, write_shop


def wait_until(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


class RunningApi(AbstractContextManager["RunningApi"]):
    """The app of a project on a free port, in a thread; `http` is a client of it."""

    def __init__(self, settings: Settings, **create: Any) -> None:
        self.settings = replace(settings, api_port=any_free_port(), item_refresh_ms=50, plan_poll_ms=50)
        self.app = create_app(self.settings, **create)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.settings.api_port}", timeout=10.0)
        config = uvicorn.Config(
            self.app, port=self.settings.api_port, loop="uvloop", http=EdgeProtocol, ws="none", access_log=False,
            log_level="critical",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)  # one that does not stop fails a test

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def recommend(self, user_id: str, **fields: Any) -> dict[str, Any]:
        response = self.http.post("/v1/recommendations", json={"user_id": user_id, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def ready(self) -> dict[str, Any]:
        return self.http.get("/readyz").json()

    def metric(self, line_start: str) -> float:
        """Sum of the metric lines that begin so."""
        lines = [line for line in self.http.get("/metrics").text.splitlines() if line.startswith(line_start)]
        assert lines, f"no metric {line_start}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def plan_for(bundle_id: str, epoch: int = 1, version: str | None = None) -> Plan:
    return Plan(epoch, Arm(bundle_id, version or str(epoch)), datetime.now(UTC))


def rollout_plan(
    stable: str, epoch: int, *, canary: str | None = None, weight: int = 0, shadow: str | None = None
) -> Plan:
    """Plan of a rollout; versions are "1" for the stable bundle and "2" for the candidates."""
    arms = [None if bundle_id is None else Arm(bundle_id, "2") for bundle_id in (canary, shadow)]
    return Plan(epoch, Arm(stable, "1"), datetime.now(UTC), "rollout", "salt", arms[0], weight, arms[1])


def publish(client: redis.Redis, settings: Settings, plan: Plan) -> None:
    client.set(plan_key(settings.project), encode_plan(plan, signing_key(settings)))


def open_shop(settings: Settings, client: redis.Redis) -> tuple[Shop, str]:
    """Write a small shop and a plan with a fitted bundle; return the shop and the bundle's id."""
    shop = make_shop(time.time_ns() // 1000)
    write_shop(shop, client, settings.project)
    bundle_id = make_bundle(settings.bundles_dir, shop)
    publish(client, settings, plan_for(bundle_id))
    return shop, bundle_id
