"""Defences by name: what each is against, how it is removed, and a test that goes red without it.

Removals change classes and modules before anything imports them by name (tests/mutation_check.py); the four that whole
processes can be run without are in tests/without_defence.py. Each must find what it removes, or it fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tests import without_defence


class Defence(NamedTuple):
    against: str
    remove: Callable[[], None]
    test: str


def _replace(owner: Any, name: str, instead: Any) -> None:
    assert hasattr(owner, name), f"{owner.__name__} has no {name} any more: adapt tests/defences.py"
    setattr(owner, name, instead)


def body_cap() -> None:
    from serving import http, protocol

    for module, name in ((protocol, "MAX_BODY_BYTES"), (protocol, "_MAX_REQUEST_BYTES"), (http, "MAX_BODY_BYTES")):
        _replace(module, name, 10**12)


def head_cap() -> None:
    from serving.protocol import EdgeProtocol, HttpToolsProtocol

    def any_head(self: Any) -> None:
        self._in_head = False
        HttpToolsProtocol.on_headers_complete(self)

    _replace(EdgeProtocol, "on_headers_complete", any_head)


def receive_deadline() -> None:
    from serving.protocol import EdgeProtocol

    _replace(EdgeProtocol, "_late", lambda self: None)


def write_deadline() -> None:
    from serving.protocol import EdgeProtocol, HttpToolsProtocol

    _replace(EdgeProtocol, "pause_writing", HttpToolsProtocol.pause_writing)


def pipeline_cap() -> None:
    from serving import protocol

    _replace(protocol, "MAX_PIPELINED", 10**9)


def whole_requests() -> None:
    from serving.protocol import EdgeProtocol, HttpToolsProtocol

    whole = EdgeProtocol._start_asgi_task

    def hasty(self: Any, cycle: Any, app: Any) -> None:
        (HttpToolsProtocol._start_asgi_task if cycle.more_body else whole)(self, cycle, app)

    _replace(EdgeProtocol, "_start_asgi_task", hasty)


def admission() -> None:
    from serving.admission import Door

    _replace(Door, "refuses", lambda self, kind: False)


def early_refusal() -> None:
    from serving.protocol import Edge

    whole = Edge.__init__

    def late(self: Any, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs | {"refuse_early": False})

    _replace(Edge, "__init__", late)


def strict_json() -> None:
    from serving import http

    async def lax(self: Any) -> Any:
        return json.loads(await self.body())

    _replace(http._StrictRequest, "json", lax)


def unique_names() -> None:
    from serving import http

    _replace(http, "require_unique_names", lambda body: None)


def id_rules() -> None:
    from serving import event_entry

    _replace(event_entry, "is_bounded_id", lambda text: True)


def loopback_only() -> None:
    from serving import loopback

    _replace(loopback, "require_loopback", lambda request: None)


def plain_request_ids() -> None:
    from serving import request_id

    _replace(request_id, "_PLAIN", re.compile(rb".*"))


def one_line_each() -> None:
    from serving import logs

    _replace(logs, "printable", lambda text: text)


def no_secrets_in_logs() -> None:
    from serving import logs

    _replace(logs, "_SECRETS", re.compile(r"(?P<before>)(?!)"))


def user_limits() -> None:
    from serving.rate_limit import UserLimits

    _replace(UserLimits, "take", lambda self, user_id, now_s: True)


def plan_signature() -> None:
    from serving import signature

    _replace(signature, "unseal", lambda data, key, what: json.dumps(json.loads(data)["content"]).encode())


def bundle_hashes() -> None:
    from serving import bundle

    _replace(bundle, "verify_files", lambda directory, manifest: None)


def redis_breaker() -> None:
    from serving.redis_client import RedisGuard

    _replace(RedisGuard, "failing", False)


_PROTOCOL, _HOSTILE, _EDGE = "tests/test_protocol.py::", "tests/test_hostile_input.py::", "tests/test_edge.py::"

DEFENCES = {
    "body_cap": Defence("bodies that fill memory", body_cap, f"{_HOSTILE}test_two_million_elements"),
    "head_cap": Defence("heads without end", head_cap, f"{_HOSTILE}test_heads_that_are_too_large"),
    "receive_deadline": Defence(
        "clients that send a byte now and then", receive_deadline, f"{_PROTOCOL}test_empty_lines_gain_no_time_either"
    ),
    "write_deadline": Defence(
        "clients that do not read their answers", write_deadline, f"{_PROTOCOL}test_an_answer_nobody_reads_ends"
    ),
    "pipeline_cap": Defence(
        "requests without end on one connection", pipeline_cap,
        f"{_PROTOCOL}test_requests_that_wait_on_one_connection_are_bounded",
    ),
    "whole_requests": Defence(
        "bodies on their way that take the places of others", whole_requests,
        f"{_PROTOCOL}test_who_is_still_sending_takes_no_place",
    ),
    "admission": Defence(
        "more requests than can be answered in time", admission,
        f"{_PROTOCOL}test_events_are_refused_from_half_of_the_limit_on",
    ),
    "early_refusal": Defence(
        "refusals that cost as much as answers", early_refusal,
        f"{_PROTOCOL}test_a_full_door_refuses_before_a_task_is_made",
    ),
    "strict_json": Defence(
        "JSON that is none, or nests without end", strict_json, f"{_HOSTILE}test_a_body_that_is_none"
    ),
    "unique_names": Defence(
        "objects that two readers read differently", unique_names, f"{_HOSTILE}test_a_name_that_comes_twice"
    ),
    "id_rules": Defence("ids that are no text, or control a terminal", id_rules, f"{_HOSTILE}test_an_id_that_is_none"),
    "loopback_only": Defence(
        "strangers at the operators' pages", loopback_only, "tests/test_api.py::test_admin_is_for_this_machine_only"
    ),
    "plain_request_ids": Defence(
        "request ids that are more than ids", plain_request_ids, f"{_EDGE}test_another_is_not_and_one_is_made"
    ),
    "one_line_each": Defence(
        "log lines that somebody else wrote", one_line_each, f"{_EDGE}test_no_id_makes_a_line_of_its_own"
    ),
    "no_secrets_in_logs": Defence("secrets in logs", no_secrets_in_logs, f"{_EDGE}test_no_secret_is_logged"),
    "user_limits": Defence(
        "one user's flood of events", user_limits,
        "tests/test_api_entry.py::test_one_users_flood_is_limited_and_nobody_elses",
    ),
    "plan_signature": Defence(
        "plans of somebody else", plan_signature, "tests/test_plan.py::test_a_plan_of_another_key_is_refused"
    ),
    "bundle_hashes": Defence(
        "model files that were changed", bundle_hashes, "tests/test_bundle.py::test_any_flipped_bit_is_refused"
    ),
    "redis_breaker": Defence(
        "requests that wait for a Redis that is away", redis_breaker,
        "tests/test_serving_parts.py::test_the_guard_stops_asking_after_failures_and_tries_again",
    ),
    "duplicate_memory": Defence(
        "events that are sent twice", without_defence.duplicate_memory,
        "tests/test_api.py::test_events_are_acknowledged_one_by_one",
    ),
    "watermark_compare": Defence(
        "a second writer of the same rows", without_defence.watermark_compare,
        "tests/test_ingest.py::test_a_second_writer_is_fenced_and_writes_nothing",
    ),
    "row_seq": Defence(
        "events folded twice after a crash", without_defence.row_seq,
        "tests/test_fold.py::test_each_row_skips_what_it_holds",
    ),
    "trimming_behind_the_log": Defence(
        "a stream that is trimmed before it is logged", without_defence.trimming_behind_the_log,
        "tests/test_ingest.py::test_the_stream_is_trimmed_behind_the_log_only",
    ),
}  # fmt: skip
