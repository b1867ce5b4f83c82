"""One format for every error: `{"error": {"code", "message", "field"?, "hint"?, "request_id"?}}`, never a traceback."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from feature_repo.errors import BadInputError, LarderError, NotFoundError, UnavailableError
from serving.logs import printable
from serving.request_id import HEADER, current_request_id

_LOG = logging.getLogger(__name__)
RETRY_AFTER_S = 1
TOO_LARGE = 413
TOO_LARGE_TEXT = "the body is larger than 1 MB"
TOO_LARGE_HINT = "send smaller batches"
TOO_MANY = 429
_MAX_MESSAGE = 300
_SEE_DOCS = "/docs shows what each request takes"
_CODES = {400: "bad_input", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", TOO_LARGE: "too_large"}
#: What to do where nothing more particular is known.
_HINTS = {
    400: _SEE_DOCS,
    403: "ask on the machine itself, at 127.0.0.1, without a proxy",
    404: "/docs lists what there is",
    405: "the header Allow and /docs list the methods of a path",
    TOO_LARGE: TOO_LARGE_HINT,
    422: _SEE_DOCS,
    503: f"try again after {RETRY_AFTER_S} s, later each time; events and items with the same ids",
}


class Problem(BaseModel):
    """What was wrong."""

    code: Annotated[str, Field(description="For programs: a closed set, see docs/edge.md.")]
    message: Annotated[str, Field(description="For people: what was wrong.")]
    field: Annotated[str | None, Field(description="Where in the request, if it was in one place.")] = None
    hint: Annotated[str | None, Field(description="What to do about it.")] = None
    request_id: Annotated[str | None, Field(description="Id of the request, as in `X-Request-Id` and the logs.")] = None


class ProblemAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: Problem


def problem(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    hint: str | None = None,
    retry_after_s: int = RETRY_AFTER_S,
) -> Response:
    """Make an error answer; 429 and 503 say after how many seconds to try again."""
    hint = hint or _HINTS.get(status)
    body = encode_problem(code, message, field=field, hint=hint, request_id=current_request_id())
    headers = {"Retry-After": str(retry_after_s)} if status in (TOO_MANY, UnavailableError.status) else None
    return Response(body, status, headers, "application/json")


def encode_problem(
    code: str, message: str, *, field: str | None = None, hint: str | None = None, request_id: str | None = None
) -> bytes:
    """Encode the body of an error answer; what is None or empty is left out."""
    error = {"code": code, "message": _short(message)}
    if field:
        error["field"] = _short(field)
    if hint:
        error["hint"] = hint
    if request_id:
        error["request_id"] = request_id
    return msgspec.json.encode({"error": error})


def install(app: FastAPI) -> None:
    """Turn every exception of an app into the one format."""
    app.add_exception_handler(LarderError, _larder_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the errors a route may answer with."""
    texts = {
        403: "Only from this machine",
        404: "Not found; no path holds a line feed",
        TOO_LARGE: "Body over 1 MB",
        422: "The request is not right",
        TOO_MANY: "Too much of one user; try again after `Retry-After` seconds",
        503: "A dependency is away, or there is too much to do; try again after `Retry-After` seconds",
    }
    return {status: {"model": ProblemAnswer, "description": texts[status]} for status in statuses}


def larder_problem(error: LarderError) -> Response:
    """Make the answer to an error of ours; one that is a bug is raised again."""
    if error.status >= 500 and error.status != UnavailableError.status:
        raise error
    return problem(error.status, error.code, str(error))


async def _larder_error(request: Request, error: Exception) -> Response:
    if isinstance(error, LarderError) and (error.status < 500 or error.status == UnavailableError.status):
        return larder_problem(error)
    return await _bug(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Report the first thing that is wrong; the input itself is not echoed (it may be anything)."""
    found = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = [str(part) for part in found.get("loc", ())]
    more = len(error.errors()) - 1 if isinstance(error, RequestValidationError) else 0
    message = str(found.get("msg", "the request is not right")).removeprefix("Value error, ")
    if found.get("type") == "json_invalid":
        encoding = request.headers.get("content-encoding", "identity").lower()
        hint = None if encoding == "identity" else "send the body as it is: no Content-Encoding is taken"
        text = f"the body is not JSON: {found['ctx']['error']}"
        return problem(422, BadInputError.code, text, field="body", hint=hint)
    if found.get("type") == "model_attributes_type" and where == ["body"]:
        return problem(
            422, BadInputError.code, "the body must be a JSON object", field="body",
            hint="send Content-Type: application/json",
        )  # fmt: skip
    hint = f"{more} more {'fields are' if more > 1 else 'field is'} wrong; " if more else ""
    return problem(422, BadInputError.code, message, field=".".join(where), hint=f"{hint}{_SEE_DOCS}")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else "internal error"
    if status == NotFoundError.status:
        detail = f"there is nothing at {request.url.path}"
        return problem(status, NotFoundError.code, detail)
    if status == TOO_LARGE:
        detail = TOO_LARGE_TEXT
    code = _CODES.get(status, "bad_input" if status < 500 else "internal")
    response = problem(status, code, detail)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    _LOG.error("error while answering %s %s", request.method, request.scope.get("path"), exc_info=error)
    response = problem(
        500, "internal", "an internal error; it has been logged",
        hint="try again; if it happens again, tell the operator the request id",
    )  # fmt: skip
    if (request_id := current_request_id()) is not None:  # the middleware that adds it has been left already
        response.headers[HEADER.decode()] = request_id
    response.headers["Connection"] = "close"  # the server closes it after a bug: nobody shall ask on it again
    return response


def _short(text: str) -> str:
    """Cut a text for people, and write what is no letter (a path may hold anything) as an escape."""
    return printable(text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…")
