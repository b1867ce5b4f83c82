"""The id of the HTTP request under way: `X-Request-Id` where the caller sent a plain one, else made up."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

HEADER: Final = b"x-request-id"
#: What is written to logs and sent back as a header: letters that can neither end a line nor mean anything in it.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
#: Id of the request this task works for, and whether it was made up here.
_CURRENT: ContextVar[tuple[str, bool] | None] = ContextVar("larder_request_id", default=None)


def new_request_id() -> str:
    """Make up an id."""
    return uuid.uuid4().hex


def chosen_request_id(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bool]:
    """Return the id of a request, and whether it was made here; an id that is not plain is not used at all."""
    sent = next((value for name, value in headers if name == HEADER), None)
    if sent is None or _PLAIN.fullmatch(sent) is None:
        return new_request_id(), True
    return sent.decode(), False


def begin_request(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Choose the id of a request and remember it for this task."""
    chosen = chosen_request_id(headers)
    _CURRENT.set(chosen)
    return chosen[0]


def current_request_id() -> str | None:
    """Return the id of the request under way; None outside of one."""
    current = _CURRENT.get()
    return None if current is None else current[0]


def made_request_id() -> str:
    """Return an id for an answer that nobody else has: the request's, unless the caller chose it.

    A caller may send one `X-Request-Id` with several requests, to trace a page. An answer's id names its impressions,
    which count once for each id and item.
    """
    current = _CURRENT.get()
    return current[0] if current is not None and current[1] else new_request_id()
