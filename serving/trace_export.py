"""Sends finished traces to an OTLP collector by a thread of its own: no answer waits, whatever the collector does."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from feature_repo.settings import Settings, SettingsError
from serving.metrics import Metrics
from serving.tracing import Trace

if TYPE_CHECKING:
    import httpx

_LOG = logging.getLogger(__name__)
#: Traces that may wait; about 4 MB.
QUEUE_LENGTH: Final = 2_000
#: Traces of one POST, and how often there is one.
_BATCH: Final = 200
_EVERY_S: Final = 0.5
_TIMEOUT_S: Final = 5.0
#: What the last of them get when the process ends.
_LAST_S: Final = 2.0
_PATH: Final = "/v1/traces"


class TraceExporter:
    """A bounded queue and the thread that empties it.

    Parameters
    ----------
    url
        Where spans are posted to, as OTLP's protobuf over HTTP.
    share
        Share of the requests without a `traceparent` that are traced.
    metrics
        Counts what became of traces: `exported`, `dropped` (the queue was full), `failed` (the collector did not take
        them; they are not sent again, the next ones are as good).

    Raises
    ------
    SettingsError
        If the library of the extra `tracing` is not installed.
    """

    def __init__(self, url: str, share: float, project: str, metrics: Metrics, length: int = QUEUE_LENGTH) -> None:
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.proto") is None:
            raise SettingsError("setting tracing_endpoint needs OpenTelemetry: pip install 'larder[tracing]'")
        from serving.trace_spans import request_of

        self.url, self.share = url, share
        self._request_of = request_of
        self._project = project
        self._version = version("larder")
        self._traces = metrics.traces
        self._length = length
        # As in impression_log.py: nobody is woken, the thread looks by itself.
        self._waiting: deque[Trace] = deque()
        self._ending = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    @property
    def waiting(self) -> int:
        """Traces not yet taken up by the thread."""
        return len(self._waiting)

    def take(self, trace: Trace) -> None:
        """Queue a trace; drop it if the queue is full. Never waits."""
        if len(self._waiting) < self._length:
            self._waiting.append(trace)
        else:
            self._traces.labels("dropped").inc()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Export until the context ends, and then once more what waits: no request is left that could be delayed."""
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._thread.join(_LAST_S)

    def _run(self) -> None:
        import httpx

        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as http:
            ending = False
            while not ending:
                ending = self._ending.wait(_EVERY_S)
                while self._waiting and (batch := self._batch()):
                    if not self._send(http, batch) and ending:
                        return

    def _batch(self) -> list[Trace]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]

    def _send(self, http: httpx.Client, batch: list[Trace]) -> bool:
        try:
            body = self._request_of(batch, self._project, self._version)
            http.post(self.url, content=body, headers={"content-type": "application/x-protobuf"}).raise_for_status()
        except Exception as error:  # a thread that ends for good would lose all traces, and say nothing
            self._traces.labels("failed").inc(len(batch))
            if not self._away:
                _LOG.warning("traces cannot be sent to %s: %s: %s", self.url, type(error).__name__, error)
            self._away = True
            return False
        self._traces.labels("exported").inc(len(batch))
        if self._away:
            _LOG.info("traces are sent to %s again", self.url)
        self._away = False
        return True


def exporter_of(settings: Settings, metrics: Metrics) -> TraceExporter | None:
    """Return the exporter the settings ask for; None where tracing is off.

    Raises
    ------
    SettingsError
        For an endpoint that is no URL, a share outside 0 to 1, or a library that is not installed.
    """
    if not settings.tracing_endpoint:
        return None
    place = urlsplit(settings.tracing_endpoint)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise SettingsError(
            "setting tracing_endpoint must be the URL of an OTLP collector over HTTP (http://127.0.0.1:4318), not "
            f"{settings.tracing_endpoint!r}"
        )
    if not 0.0 <= settings.tracing_sample_share <= 1.0:
        raise SettingsError(
            f"setting tracing_sample_share must be between 0 and 1, not {settings.tracing_sample_share}"
        )
    url = settings.tracing_endpoint if place.path.strip("/") else f"{settings.tracing_endpoint.rstrip('/')}{_PATH}"
    return TraceExporter(url, settings.tracing_sample_share, settings.project, metrics)
