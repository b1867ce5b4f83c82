"""Rollout controllers that are killed where a test says; imported once, then forked for each.

A controller ticks as fast as it can, with a clock that passes a second per tick, and makes the shop's traffic itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from deployment.rollout.controller import Controller
from deployment.rollout.moves import Current
from deployment.rollout.report import write_report
from deployment.store.control_store import ControlStore
from feature_repo.settings import Settings
from serving.plan import load_plan
from serving.signature import signing_key
from tests.rollout_traffic import Clock, Traffic

#: Ticks after which a child gives up.
_TICKS = 60
_REQUESTS = 120


class Controllers:
    """Runs controllers, one after the other, each a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashing_controller"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, settings: Settings, failing: float, point: str = "nowhere", visit: int = 1) -> dict[str, Any]:
        """Run one until its rollout has ended or it is killed; return `exit` (negative: a signal) and `state`."""
        order = [str(settings.home), settings.redis_port, settings.project, failing, point, visit]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=20)


def serve_orders() -> None:
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                state = main(*json.loads(line))
            except BaseException:
                state = traceback.format_exc()
            os.write(writing, state.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            state = said.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "state": state}), flush=True)


def main(home: str, redis_port: int, project: str, failing: float, point: str, visit: int) -> str:
    settings = Settings(
        home=Path(home), redis_port=redis_port, project=project, mlflow_tracking_uri="http://127.0.0.1:9"
    )
    store = ControlStore(settings, signing_key(settings))
    left = visit

    def crash_point(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    class Reports:
        def ended(self, current: Current) -> bool:
            crash_point("before_report")
            write_report(settings, current, store, None)
            crash_point("after_report")
            return True

    clock = Clock()
    controller = Controller(
        settings,
        now=clock.now,
        clock=clock,
        beside=Reports(),
        crash_point=crash_point,
        ttl_s=5.0,
        holder=f"{os.getpid()}",
    )
    traffic = Traffic(settings, failing={"canary": failing}, seed=os.getpid())
    for _ in range(_TICKS):
        plan = load_plan(settings.plan_path, signing_key(settings))  # as serving sees it
        if plan is not None and plan.release:
            traffic.serve(plan, _REQUESTS)
        clock.pass_(1)
        controller.tick()
        current = controller.moves.current()
        if current is not None and not current.rollout.active and current.kept.reported:
            return current.rollout.state
    return "unfinished"


if __name__ == "__main__":
    serve_orders()
