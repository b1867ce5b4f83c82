"""Traces of requests: what a real OTLP receiver gets from a real API, and what happens where nobody receives."""

from __future__ import annotations

import doctest
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from feature_repo.settings import Settings, SettingsError
from larder.services.ports import HOST, any_free_port
from larder_client.client import LarderClient
from serving import tracing
from serving.app import create_app
from serving.metrics import Metrics
from serving.trace_export import TraceExporter, exporter_of
from serving.tracing import Trace, parent_of, samples, stages_between, trace_id_of
from tests.running_api import RunningApi, open_shop, wait_until

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Receiver(http.server.ThreadingHTTPServer):
    """Takes what an OpenTelemetry collector takes, and keeps it."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def spans(self) -> list[Span]:
        return [
            span
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def roots(self) -> list[Span]:
        return [span for span in self.spans() if span.kind == Span.SPAN_KIND_SERVER]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/x-protobuf"
        if self.server.status == 200:
            self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def traced_api(settings: Settings, endpoint: str, share: float) -> Iterator[RunningApi]:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    with RunningApi(replace(settings, tracing_endpoint=endpoint, tracing_sample_share=share)) as api:
        wait_until(lambda: api.http.get("/readyz").status_code == 200)
        yield api


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def test_a_request_becomes_spans_of_its_stages(settings: Settings, receiver: Receiver) -> None:
    with traced_api(settings, receiver.url, 1.0) as api:
        answer = api.recommend("u00001", k=5, explain=True)
        api.http.get("/livez")
        (root,) = wait_until(receiver.roots)
    path, request = receiver.requests[0]
    assert path == "/v1/traces"
    about = {one.key: one.value.string_value for one in request.resource_spans[0].resource.attributes}
    assert (about["service.name"], about["service.namespace"]) == ("larder-api", settings.project)
    said = attributes(root)
    assert root.name == "POST /v1/recommendations"
    assert (said["http.response.status_code"], said["larder.k"], said["larder.level"]) == (200, 5, "full")
    assert said["larder.request_id"] == answer["request_id"] == root.trace_id.hex()
    assert (said["larder.bundle_id"], said["larder.arm"]) == (answer["bundle_id"], "stable")
    assert int(str(said["larder.candidates"])) >= 5
    assert "u00001" not in str(request), "no user's id leaves"
    stages = [span for span in receiver.spans() if span.parent_span_id == root.span_id]
    assert [span.name for span in stages] == [
        "admission", "user_read", "retrieve", "pair_read", "rank", "explain", "log", "encode", "answer"
    ]  # fmt: skip
    assert {span.trace_id for span in stages} == {root.trace_id}
    assert len({span.span_id for span in receiver.spans()}) == len(stages) + 1
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < 60
    at = root.start_time_unix_nano
    for span in stages:  # without a gap that matters, and inside of the request
        assert at <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
        at = span.end_time_unix_nano


def test_a_caller_s_trace_goes_on_and_its_word_counts(settings: Settings, receiver: Receiver) -> None:
    with traced_api(settings, receiver.url, 0.0) as api:
        api.recommend("u00001")
        with LarderClient(str(api.http.base_url), traceparent=lambda: CALLER) as client:
            client.recommend("u00001")
            client.score([("u00001", "i00001")])
        with LarderClient(str(api.http.base_url), traceparent=lambda: CALLER[:-1] + "0") as client:
            client.recommend("u00001")
        assert api.http.post("/v1/recommendations", json={}, headers={"traceparent": CALLER}).status_code == 422
        roots = wait_until(lambda: len(receiver.roots()) >= 3 and receiver.roots())
    assert {span.trace_id.hex() for span in roots} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert {span.parent_span_id.hex() for span in roots} == {"00f067aa0ba902b7"}
    found = [(span.name, attributes(span)["http.response.status_code"]) for span in roots]
    assert found == [("POST /v1/recommendations", 200), ("POST /v1/score", 200), ("POST /v1/recommendations", 422)]


def test_a_pipeline_s_next_request_is_not_in_the_trace_before_it(settings: Settings, receiver: Receiver) -> None:
    """The server begins it inside of the one before, so what a task knows would go on."""
    with traced_api(settings, receiver.url, 0.0) as api:
        body = b'{"user_id": "u00001", "request_id": "number %d"}'
        head = b"POST /v1/recommendations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: %d\r\ntraceparent: %b\r\n\r\n"
        bodies = [body % n for n in range(2)]
        flags = [CALLER.encode(), CALLER[:-1].encode() + b"0"]
        with socket.create_connection((HOST, api.settings.api_port)) as raw:
            raw.sendall(b"".join(head % (len(b), f) + b for b, f in zip(bodies, flags, strict=True)))
            answers = b""
            while answers.count(b'"request_id"') < 2:
                answers += raw.recv(65_536)
        (root,) = wait_until(receiver.roots)
    assert attributes(root)["larder.request_id"] == "number 0"
    assert len(receiver.roots()) == 1


@pytest.mark.parametrize("kind", ["refuses connections", "takes none"])
def test_a_collector_that_is_away_costs_traces_only(settings: Settings, kind: str) -> None:
    """Also one that accepts a connection and then says nothing: the stop of the API does not wait for it long."""
    with socket.create_server((HOST, 0)) as silent:
        url = {
            "refuses connections": f"http://{HOST}:{any_free_port()}",
            "takes none": f"http://{HOST}:{silent.getsockname()[1]}",
        }[kind]
        with traced_api(settings, url, 1.0) as api:
            start = time.monotonic()
            for _ in range(30):
                assert len(api.recommend("u00001", k=5)["items"]) == 5
            assert time.monotonic() - start < 4.0, "answers do not wait for the collector"
            if kind != "takes none":
                wait_until(lambda: api.metric('larder_traces_total{result="failed"}') >= 30)
            assert api.metric('larder_traces_total{result="exported"}') == 0
            before = time.monotonic()
        assert time.monotonic() - before < 10.0


def a_trace() -> Trace:
    return Trace("0" * 31 + "1", "1" * 16, None, "r", "POST", "/v1/score", 0.0, 0)


def test_what_a_collector_refuses_is_lost_and_the_next_is_sent(receiver: Receiver) -> None:
    metrics = Metrics()

    def count(result: str) -> bool:
        return f'larder_traces_total{{result="{result}"}} 1.0'.encode() in metrics.exposition()

    receiver.status = 503
    exporter = TraceExporter(f"{receiver.url}/v1/traces", 1.0, "shop", metrics)
    with exporter.running():
        exporter.take(a_trace())
        wait_until(lambda: count("failed"))
        receiver.status = 200
        exporter.take(a_trace())
        wait_until(lambda: count("exported"))
    assert len(receiver.roots()) == 1


def test_a_full_queue_drops_and_counts() -> None:
    metrics = Metrics()
    exporter = TraceExporter(f"http://{HOST}:9/v1/traces", 1.0, "shop", metrics, length=3)
    for _ in range(5):
        exporter.take(a_trace())
    assert exporter.waiting == 3
    assert b'larder_traces_total{result="dropped"} 2.0' in metrics.exposition()


def test_off_means_that_nothing_is_there(settings: Settings) -> None:
    """Nor is OpenTelemetry imported: test_architecture.py holds that one file of ours does, and `exporter_of` that."""
    assert exporter_of(settings, Metrics()) is None
    assert "TracedApp" not in str(create_app(settings).user_middleware)
    on = replace(settings, tracing_endpoint="http://collector:4318")
    assert "TracedApp" in str(create_app(on).user_middleware)


@pytest.mark.parametrize(
    ("endpoint", "share", "complaint"),
    [("collector:4318", 0.1, "must be the URL"), ("http://collector:4318", 1.5, "between 0 and 1")],
)
def test_wrong_settings_are_said(endpoint: str, share: float, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        exporter_of(Settings(tracing_endpoint=endpoint, tracing_sample_share=share), Metrics())


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.trace_export.find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"larder\[tracing\]"):
        exporter_of(Settings(tracing_endpoint="http://collector:4318"), Metrics())


@pytest.mark.parametrize(
    "header",
    [
        "", "00", CALLER[:-3], CALLER + "-more", CALLER.upper(), "ff" + CALLER[2:], CALLER.replace("-", "_"),
        "00-" + "0" * 32 + CALLER[35:], CALLER[:36] + "0" * 16 + "-01",
    ],
)  # fmt: skip
def test_headers_that_the_standard_tells_to_ignore(header: str) -> None:
    assert parent_of([(b"traceparent", header.encode())]) is None
    assert parent_of([(b"traceparent", CALLER.encode())] * 2) is None
    assert parent_of([(b"traceparent", b"01" + CALLER[2:].encode() + b"-more")]) is not None, "of a later version"


@given(st.text(), st.floats(0, 1))
def test_every_request_has_a_trace_id_and_sampling_is_of_the_trace(request_id: str, share: float) -> None:
    trace_id = trace_id_of(request_id)
    assert len(bytes.fromhex(trace_id)) == 16
    assert not samples(trace_id, 0.0)
    assert samples(trace_id, 1.0)
    assert not samples(trace_id, share) or samples(trace_id, min(1.0, share * 1.1))


def test_the_share_is_the_share() -> None:
    found = sum(samples(trace_id_of(f"request {n}"), 0.1) for n in range(5_000))
    assert 420 < found < 580


def test_stages_are_named_as_the_examples_say() -> None:
    assert doctest.testmod(tracing).attempted == 2
    assert doctest.testmod(tracing).failed == 0
    assert [name for name, _, _ in stages_between((1.0, 2.0, 2.5, 3.0, 4.0, 5.0), None)] == [
        "user_read", "canary", "retrieve", "pair_read", "rank"
    ], "a canary that did not answer took the time between"  # fmt: skip
    assert [name for name, _, _ in stages_between((1.0, 2.0), None)] == ["user_read"]
    assert stages_between((), None) == ()
