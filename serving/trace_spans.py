"""Makes OTLP spans of a finished trace; the only file that knows OpenTelemetry's messages."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from serving.tracing import Stage, Trace

Value = str | int | float | bool | Sequence[str]
_SERVER_ERROR: Final = 500


def request_of(traces: Sequence[Trace], project: str, version: str) -> bytes:
    """Encode traces as the body of a POST to `/v1/traces`."""
    about = {
        "service.name": "larder-api",
        "service.namespace": project,
        "service.version": version,
        "service.instance.id": str(os.getpid()),
    }
    message = ExportTraceServiceRequest()
    resource: ResourceSpans = message.resource_spans.add()
    resource.resource.attributes.extend(_attributes(about))
    scope: ScopeSpans = resource.scope_spans.add()
    scope.scope.name, scope.scope.version = "larder.serving", version
    for trace in traces:
        scope.spans.extend(spans_of(trace))
    return bytes(message.SerializeToString())


def spans_of(trace: Trace) -> Iterator[Span]:
    """Yield the span of a request, then those of its stages, in the order of their beginnings."""
    trace_id, root = bytes.fromhex(trace.trace_id), bytes.fromhex(trace.span_id)
    attributes = _about(trace)
    yield Span(
        trace_id=trace_id,
        span_id=root,
        parent_span_id=b"" if trace.parent_id is None else bytes.fromhex(trace.parent_id),
        name=f"{trace.method} {trace.route}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=_ns(trace, trace.arrived),
        end_time_unix_nano=_ns(trace, trace.ended),
        attributes=_attributes(attributes),
        status=Status(code=Status.STATUS_CODE_ERROR if trace.status >= _SERVER_ERROR else Status.STATUS_CODE_UNSET),
    )
    for name, start, end in stages_of(trace):
        yield Span(
            trace_id=trace_id,
            span_id=random.getrandbits(64).to_bytes(8, "big"),
            parent_span_id=root,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=_ns(trace, start),
            end_time_unix_nano=_ns(trace, max(start, end)),
        )


def stages_of(trace: Trace) -> list[Stage]:
    """Return the stages of a request, in order: what came before the service, its own, and what came after."""
    if trace.recorded is None:
        return []
    if trace.stages:
        begun, listed = trace.stages[0][1], trace.stages[-1][2]
        found = [("admission", trace.arrived, begun), *trace.stages, ("log", listed, trace.recorded)]
    else:  # no model was asked: all of the time was the wait before it
        found = [("admission", trace.arrived, trace.recorded)]
    if trace.responded is not None:
        found += [("encode", trace.recorded, trace.responded), ("answer", trace.responded, trace.ended)]
    return found


def _about(trace: Trace) -> dict[str, Value]:
    """Return the attributes of a request; no user's id is among them."""
    found: dict[str, Value] = {
        "http.request.method": trace.method,
        "http.route": trace.route,
        "http.response.status_code": trace.status,
        "larder.request_id": trace.request_id,
    }
    if trace.level is not None:
        found["larder.level"] = trace.level
    if trace.arm is not None:
        found["larder.arm"] = trace.arm
    if (answer := trace.answer) is not None:
        found |= {
            "larder.request_id": answer.request_id,
            "larder.bundle_id": answer.bundle_id or "",
            "larder.model_version": answer.model_version or "",
            "larder.reasons": list(answer.reasons),
            "larder.k": trace.k,
            "larder.candidates": trace.candidates,
            "larder.items": len(answer.items),
        }
    return found


def _attributes(of: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in of.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=one) for one in value]))


def _ns(trace: Trace, at: float) -> int:
    return trace.wall_ns + round(at * 1e9)
