"""What tracing costs: processor time per request with traces off, of 1 % and of all requests, by turns."""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import httpx
import numpy as np
import numpy.typing as npt

from feature_repo.settings import Settings
from larder.benches.serving import Running, api, mixed
from larder.benches.serving_shop import K, make_shop, publish
from larder.progress import progress
from larder.services.ports import HOST, any_free_port
from larder.services.stack import Stack

F64 = npt.NDArray[np.float64]
#: Name of a server to the share it traces; None: tracing is off. The second server without shows the noise.
MODES: Final[dict[str, float | None]] = {"off": None, "off_again": None, "one_percent": 0.01, "all": 1.0}
#: Short turns, many of them: what slows the machine down for a second meets all servers alike.
ROUNDS: Final = 50
REQUESTS: Final = 40
_WARM: Final = 300
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
        shop = make_shop(stack.settings, Path(work), bundles=1)
        publish(shop, rollout=False)
        collector = opened.enter_context(_collector())
        url = f"http://{HOST}:{collector.server_address[1]}"
        servers: dict[str, Running] = {}
        for name, share in MODES.items():
            # Waits of a busy machine must not make lists cheaper.
            off = replace(shop.settings, api_port=any_free_port(), request_budget_ms=0, redis_timeout_ms=1_000)
            on = off if share is None else replace(off, tracing_endpoint=url, tracing_sample_share=share)
            these = replace(shop, settings=on)
            servers[name] = opened.enter_context(api(stack, these, 1, name))
        bodies = [json.dumps({"user_id": user, "k": K}).encode() for user in mixed(shop)]
        asked = {name: opened.enter_context(_Asking(server, bodies)) for name, server in servers.items()}
        for one in asked.values():
            one.turn(_WARM)
        cpu = {name: np.empty(ROUNDS) for name in MODES}
        with progress("rounds", ROUNDS) as bar:
            for number in range(ROUNDS):
                first = number % len(MODES)
                for name in [*list(MODES)[first:], *list(MODES)[:first]]:
                    cpu[name][number] = asked[name].turn(REQUESTS)
                bar.advance()
        taken = _exported(servers["all"].port)
    failed = float(sum(one.failed for one in asked.values()))
    received = {"traces_received_all": taken / asked["all"].sent, "bytes_a_trace": collector.bytes_taken / taken}
    return figures(cpu) | {"failed": failed} | received, TARGETS


def figures(cpu: dict[str, F64]) -> dict[str, float]:
    """Compare each way with the first, round by round.

    Parameters
    ----------
    cpu
        Milliseconds of processor time per request, by way, shape (rounds,).
    """
    rng = np.random.default_rng(7)
    drawn = rng.integers(0, len(cpu["off"]), (2_000, len(cpu["off"])))
    found = {f"cpu_ms_{name}": float(np.median(some)) for name, some in cpu.items()}
    for name, some in cpu.items():
        if name != "off":
            ratio = some / cpu["off"]
            low, high = np.quantile(np.median(ratio[drawn], axis=1), (0.025, 0.975))
            found |= {f"ratio_{name}": float(np.median(ratio)), f"ratio_{name}_low": float(low)}
            found[f"ratio_{name}_high"] = float(high)
    return found | {"rounds": float(len(cpu["off"]))}


class _Asking:
    """One connection to a server, on which requests follow each other; the server's processor time by the kernel."""

    def __init__(self, server: Running, bodies: Sequence[bytes]) -> None:
        self._http = http.client.HTTPConnection(HOST, server.port, timeout=10.0)
        self._server, self._bodies = server, itertools.cycle(bodies)
        self.sent = self.failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def turn(self, requests: int) -> float:
        """Send some requests; return milliseconds of processor time per request, of all threads."""
        self._http.connect()  # a server closes connections that idle while others are asked
        before = _cpu_ns(self._server.pids)
        for _ in range(requests):
            self._http.request("POST", "/v1/recommendations", next(self._bodies), {"content-type": "application/json"})
            answer = self._http.getresponse()
            answer.read()
            self.sent += 1
            self.failed += answer.status != httpx.codes.OK
        took_ns = _cpu_ns(self._server.pids) - before
        self._http.close()
        return took_ns / 1e6 / requests


def _cpu_ns(pids: Sequence[int]) -> int:
    """Time on a processor, ns: `schedstat` counts it exactly, /proc/<pid>/stat in hundredths of a second."""
    return sum(
        int(thread.read_text("ascii").split()[0])
        for pid in pids
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


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
