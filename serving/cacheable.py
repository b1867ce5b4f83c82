"""Answers that are the same for everybody: named by their content (ETag), so that whoever has one is told so; gzip."""

from __future__ import annotations

import gzip
import hashlib
from typing import Final

import msgspec
from fastapi import Request, Response

from serving.answers import ItemList
from serving.http import LEVEL

#: Smaller ones fit into a packet or two as they are.
MIN_GZIP_BYTES: Final = 1_400
_GZIP_LEVEL: Final = 4
_ENCODE: Final = msgspec.json.Encoder().encode


def cacheable(request: Request, content: ItemList) -> Response:
    """Encode a list, or say 304 to a caller that has it already.

    The tag is weak: lists with the same items, made the same way, are the same, although each answer has its own
    `request_id` and ages. A cache may keep a list but must ask before it uses it (`no-cache`): an item that is taken
    out of the shop is out of every list within a second.
    """
    request.scope[LEVEL] = content.level
    same = (content.model_version, content.bundle_id, content.level, content.reasons, content.items)
    tag = f'W/"{hashlib.blake2b(_ENCODE(same), digest_size=16).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if _has(request.headers.get("if-none-match", ""), tag):
        return Response(None, 304, headers)
    body = _ENCODE(content)
    if len(body) >= MIN_GZIP_BYTES and _takes_gzip(request.headers.get("accept-encoding", "")):
        body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(body, 200, headers, "application/json")


def _has(if_none_match: str, tag: str) -> bool:
    """Compare weakly, as RFC 9110 has it for If-None-Match."""
    opaque = tag.removeprefix("W/")
    return any(one.strip() == "*" or one.strip().removeprefix("W/") == opaque for one in if_none_match.split(","))


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip is named, and not with a weight of 0."""
    for one in accept_encoding.split(","):
        name, _, weight = one.replace(" ", "").lower().partition(";")
        if name in {"gzip", "*"}:
            return weight not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
