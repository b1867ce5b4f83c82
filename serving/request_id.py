"""The id of the HTTP request under way: `X-Request-Id` where the caller sent a plain one, else made up."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

HEADER: Final = b"x-request-id"
#: What is written to logs and sent back as a header: letters that can neither end a line nor mean anything in it.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
#: Id of the request this task works for, and whether it was made up here.
_CURRENT: ContextVar[tuple[str, bool] | None] = ContextVar("larder_request_id", default=None)
#: Id of the answer it makes, where that is another one.
_ANSWER: ContextVar[str | None] = ContextVar("larder_answer_id", default=None)


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
    _ANSWER.set(None)  # the next request of a pipeline begins inside of the one before it
    return chosen[0]


@contextmanager
def answering(answer_id: str) -> Iterator[None]:
    """Work for an answer outside of its request: lines of the log meanwhile have its id."""
    token = _CURRENT.set((answer_id, False))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_request_id() -> str | None:
    """Return the id of the request under way; None outside of one."""
    current = _CURRENT.get()
    return None if current is None else current[0]


def current_answer_id() -> str | None:
    """Return the id of the answer being made, where it is not the request's; None elsewhere."""
    return _ANSWER.get()


def answer_id(wished: str | None) -> str:
    """Return the id of an answer: the one wished, else one made here. Lines of the log have it from then on."""
    current = _CURRENT.get()
    if wished is None and current is not None and current[1]:
        return current[0]
    found = wished or new_request_id()
    _ANSWER.set(found)
    return found


def made_request_id() -> str:
    """Return an id for an answer that nobody else has: the request's, unless the caller chose it.

    A caller may send one `X-Request-Id` with several requests, to trace a page. An answer's id names its impressions,
    which count once for each id and item.
    """
    current = _CURRENT.get()
    return current[0] if current is not None and current[1] else new_request_id()
