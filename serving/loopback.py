"""Who may use what is for this machine only."""

from __future__ import annotations

import ipaddress

from fastapi import Request

from feature_repo.errors import LarderError


class ForbiddenError(LarderError):
    """The caller may not see this."""

    status = 403
    code = "forbidden"


def require_loopback(request: Request) -> None:
    """Let nobody in but a caller on this machine that also addressed this machine.

    The name asked for is checked because a page in a browser on this machine can be made to call a foreign name that
    resolves to 127.0.0.1 (DNS rebinding).

    Raises
    ------
    ForbiddenError
        For everybody else.
    """
    caller = request.client.host if request.client else ""
    if not (_is_loopback(caller) and _is_loopback(request.url.hostname or "")):
        raise ForbiddenError("this is for callers on the same machine only, addressed as 127.0.0.1 or localhost")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
