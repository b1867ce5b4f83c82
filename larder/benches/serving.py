"""The API under open-loop load, beside a bare server of the same model and one that reads by Feast's SDK."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import psutil

from feature_repo.settings import Settings
from larder.benches.open_loop import post
from larder.benches.serving_load import Point, capacity, family, generator_is_fit, measure
from larder.benches.serving_plots import plot
from larder.benches.serving_shop import K, Shop, make_shop, publish
from larder.services.ports import any_free_port
from larder.services.process import Service
from larder.services.stack import Stack, project_service, settings_env

RATE: Final = 200.0
EVENTS_PER_S: Final = 100.0
_WARM_S: Final = 4.0
_STAGES: Final = ("user_read", "retrieve", "pair_read", "rank", "encode")
TARGETS: Final[dict[str, tuple[str, float]]] = {
    "p95_ms_at_200": ("<=", 10.0),
    "p99_ms_at_200": ("<=", 20.0),
    "capacity_rps": (">=", 350.0),
    "capacity_times_bare": (">=", 0.9),
    "capacity_times_sdk": (">=", 20.0),
    "ready_s": ("<", 10.0),
    "generator_fit": ("==", 1.0),
}


@dataclass(frozen=True)
class Running:
    """A server under test."""

    port: int
    pid: int
    ready_s: float

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self.pid)


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Measure everything in one go, on one machine, one after the other."""
    figures: dict[str, float] = {}
    curves: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(
            settings, home=Path(work), project="bench_serving", redis_port=any_free_port(), api_port=any_free_port()
        )
        with Stack(own, mlflow=False) as stack:
            shop = make_shop(stack.settings, Path(work))
            publish(shop, rollout=False)
            stack.start(project_service(shop.settings, "ingest", ["ingest", "run"], ready=lambda _port: True))
            users = {"warm": shop.warm, "cold": shop.cold, "mixed": mixed(shop)}
            with api(stack, shop, 1) as server:
                figures["ready_s"] = server.ready_s
                for name, some in users.items():
                    _tell(figures, name, measure(server.port, asking(some), RATE, server.pids))
                figures |= stages(server, asking(users["mixed"]))
                curves["one worker"] = _capacity(figures, "", server, users["mixed"])
                figures["memory_mb"] = memory_mb(server.pids)
            with api(stack, shop, 2) as server:
                curves["two workers"] = _capacity(figures, "two_workers_", server, users["mixed"])
                figures["memory_mb_two_workers"] = memory_mb(server.pids)
            publish(shop, rollout=True)
            with api(stack, shop, 1) as server, _events(stack, shop, server):
                time.sleep(5.0)  # the candidate's process comes up beside
                _tell(figures, "rollout", measure(server.port, asking(users["mixed"]), RATE, server.pids))
                curves["with canary, shadow, events"] = _capacity(figures, "rollout_", server, users["mixed"])
            for name, start in (("bare", RATE), ("sdk", 8.0)):
                with rival(stack, shop, name) as server:
                    curves[name] = _capacity(figures, f"{name}_", server, users["warm"], start)
    # The SDK's server misses the objective at every rate: it is given all that its one core can do without any.
    figures["sdk_most_rps"] = 1e3 / min(one.cpu_ms for one in curves["sdk"])
    figures["capacity_times_sdk"] = figures["capacity_rps"] / figures["sdk_most_rps"]
    figures["capacity_times_bare"] = figures["capacity_rps"] / max(figures["bare_capacity_rps"], 1e-9)
    figures["worker_memory_mb"] = figures["memory_mb_two_workers"] - figures["memory_mb"]
    figures["generator_fit"] = float(all(generator_is_fit(points) for points in curves.values()))
    plot(curves, settings.results_dir / "serving.png")
    kept = {name: [asdict(one) for one in points] for name, points in curves.items()}
    settings.results_dir.mkdir(parents=True, exist_ok=True)
    (settings.results_dir / "serving_curves.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return figures, TARGETS


def mixed(shop: Shop) -> tuple[str, ...]:
    """Nine of ten users are known."""
    return tuple(shop.cold[i // 10] if i % 10 == 9 else shop.warm[i] for i in range(min(len(shop.warm), 4_000)))


def asking(users: Sequence[str]) -> list[bytes]:
    """Return one request for each user."""
    return [post("/v1/recommendations", json.dumps({"user_id": user, "k": K}).encode()) for user in users]


@contextmanager
def api(stack: Stack, shop: Shop, workers: int, name: str = "api") -> Iterator[Running]:
    """Run the API; ready when it says so."""
    command = ["-m", "larder.cli", "serve", "--workers", str(workers), "--port"]
    with _server(stack, shop.settings, f"{name}{workers}", command, "/readyz") as server:
        yield server


@contextmanager
def rival(stack: Stack, shop: Shop, kind: str) -> Iterator[Running]:
    """Run one of what it is compared with."""
    directory = str(shop.settings.bundles_dir / shop.bundle_id)
    command = ["-m", "larder.benches.serving_rivals", kind, "{port}", directory]
    with _server(stack, shop.settings, kind, command, "/") as server:
        yield server


@contextmanager
def _server(stack: Stack, settings: Settings, name: str, command: list[str], path: str) -> Iterator[Running]:
    def ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def arguments(port: int) -> list[str]:
        filled = [text.replace("{port}", str(port)) for text in command]
        return [sys.executable, *filled, *([] if "{port}" in command else [str(port)])]

    began = time.perf_counter()
    running = stack.start(Service(name, arguments, ready=ready, port=any_free_port(), env=settings_env(settings)))
    server = Running(running.port, running.pid, time.perf_counter() - began)
    try:
        yield server
    finally:
        running.stop()


@contextmanager
def _events(stack: Stack, shop: Shop, server: Running) -> Iterator[None]:
    """Let a steady stream of events come in meanwhile."""
    settings = replace(shop.settings, api_port=server.port)
    command = [sys.executable, "-m", "larder.benches.serving_events", str(server.port), f"{EVENTS_PER_S:g}"]
    running = stack.start(
        Service("events", lambda _port: command, ready=lambda _port: True, env=settings_env(settings))
    )
    try:
        yield
    finally:
        running.stop()


def _capacity(
    figures: dict[str, float], prefix: str, server: Running, users: Sequence[str], start: float = RATE
) -> list[Point]:
    requests = asking(users)
    measure(server.port, requests, min(start, 50.0), server.pids, _WARM_S)
    found, points = capacity(server.port, requests, start, server.pids)
    figures[f"{prefix}capacity_rps"] = found
    carried = [one for one in points if one.carried]
    figures[f"{prefix}cpu_ms_per_request"] = carried[-1].cpu_ms if carried else float("nan")
    for one in points:
        _say(prefix or "one_worker_", one)
    return points


def _tell(figures: dict[str, float], name: str, point: Point) -> None:
    prefix = "" if name == "mixed" else f"{name}_"
    figures |= {f"{prefix}p50_ms_at_200": point.p50, f"{prefix}p95_ms_at_200": point.p95}
    figures |= {f"{prefix}p99_ms_at_200": point.p99, f"{prefix}failed_at_200": point.failed}
    _say(f"{name}_", point)


def _say(what: str, point: Point) -> None:
    print(
        f"  {what:<20} {point.rps:7.1f}/s: p50 {point.p50:.1f}, p95 {point.p95:.1f}, p99 {point.p99:.1f} ms, "
        f"{point.cpu_ms:.2f} ms of processor a request, {point.failed:.1%} failed",
        flush=True,
    )


def stages(server: Running, requests: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds of each stage at a rate without queues."""
    before = _sums(server)
    measure(server.port, requests, 50.0, server.pids)
    after = _sums(server)
    return {
        f"stage_{name}_ms": 1e3 * (after[name][0] - before[name][0]) / max(after[name][1] - before[name][1], 1.0)
        for name in (*_STAGES, "request")
    }


def _sums(server: Running) -> dict[str, tuple[float, float]]:
    text = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=10.0).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    out = {}
    for name in (*_STAGES, "request"):
        labels = '{route="/v1/recommendations"}' if name == "request" else f'{{stage="{name}"}}'
        metric = "larder_request_seconds" if name == "request" else "larder_stage_seconds"
        out[name] = (float(values[f"{metric}_sum{labels}"]), float(values[f"{metric}_count{labels}"]))
    return out


def memory_mb(pids: Sequence[int]) -> float:
    """Memory of some processes; what they share counts once."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / 2.0**20
