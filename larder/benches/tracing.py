"""What tracing costs: processor time per request with traces off, of 1 % and of all requests, by turns."""

from __future__ import annotations

import http.server
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from feature_repo.settings import Settings
from larder.benches.serving import Running, api, asking, mixed
from larder.benches.serving_load import Point, measure
from larder.benches.serving_shop import make_shop, publish
from larder.progress import progress
from larder.services.ports import HOST, any_free_port
from larder.services.stack import Stack

#: Name of a server to the share it traces; None: tracing is off. The second server without shows the noise.
MODES: Final[dict[str, float | None]] = {"off": None, "off_again": None, "one_percent": 0.01, "all": 1.0}
RATE: Final = 120.0
ROUNDS: Final = 10
_SECONDS: Final = 4.0
_WARM_S: Final = 4.0
TARGETS: Final[dict[str, tuple[str, float]]] = {
    "ratio_one_percent": ("<=", 1.05),
    "failed": ("==", 0.0),
    "traces_received_all": (">=", 0.99),
}


class Collector(http.server.ThreadingHTTPServer):
    """Counts the bytes and spans' requests it is sent, and decodes nothing."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Post)
        self.bytes_taken = 0


class _Post(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a batch."""
        assert isinstance(self.server, Collector)  # noqa: S101 - for the type checker
        self.server.bytes_taken += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Serve one shop by four processes and ask them by turns."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work, ExitStack() as opened:
        own = replace(settings, home=Path(work), project="bench_serving", redis_port=any_free_port())
        stack = opened.enter_context(Stack(own, mlflow=False))
        shop = make_shop(stack.settings, Path(work))
        publish(shop, rollout=False)
        collector = opened.enter_context(_collector())
        url = f"http://{HOST}:{collector.server_address[1]}"
        servers: dict[str, Running] = {}
        for name, share in MODES.items():
            traced = {} if share is None else {"tracing_endpoint": url, "tracing_sample_share": share}
            these = replace(shop, settings=replace(shop.settings, api_port=any_free_port(), **traced))
            servers[name] = opened.enter_context(api(stack, these, 1, name))
        requests = asking(mixed(shop))
        points: dict[str, list[Point]] = {name: [] for name in MODES}
        for server in servers.values():
            measure(server.port, requests, RATE, server.pids, _WARM_S)
        collector.bytes_taken = 0
        with progress("rounds", ROUNDS) as bar:
            for number in range(ROUNDS):
                # Each round begins with another one, so that what changes slowly meets all of them.
                order = list(MODES)[number % len(MODES) :] + list(MODES)[: number % len(MODES)]
                for name in order:
                    points[name].append(measure(servers[name].port, requests, RATE, servers[name].pids, _SECONDS))
                bar.advance()
        taken = _exported(servers["all"].port)
    asked = _WARM_S * RATE + sum(round(_SECONDS * RATE) for _ in points["all"])
    return figures(points, taken / asked, collector.bytes_taken / max(taken, 1.0)), TARGETS


def figures(points: dict[str, list[Point]], received: float, size: float) -> dict[str, float]:
    """Compare each way with the first, round by round: what slows a round down slows all of its servers."""
    cpu = {name: np.array([one.cpu_ms for one in some]) for name, some in points.items()}
    found = {f"cpu_ms_{name}": float(np.median(some)) for name, some in cpu.items()}
    for name, some in cpu.items():
        if name != "off":
            low, middle, high = np.quantile(some / cpu["off"], (0.25, 0.5, 0.75))
            found |= {f"ratio_{name}": float(middle), f"ratio_{name}_q25": float(low), f"ratio_{name}_q75": float(high)}
    failed = max(one.failed for some in points.values() for one in some)
    return found | {"failed": failed, "traces_received_all": received, "bytes_a_trace": size, "rounds": float(ROUNDS)}


def _exported(port: int) -> float:
    """Return how many traces a server has sent, once no more come."""
    time.sleep(2.0)
    text = httpx.get(f"http://{HOST}:{port}/metrics", timeout=10.0).text
    line = next(line for line in text.splitlines() if line.startswith('larder_traces_total{result="exported"}'))
    return float(line.rpartition(" ")[2])


@contextmanager
def _collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
