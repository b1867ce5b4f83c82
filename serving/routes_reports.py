"""`/monitor/reports/`: the drift reports the monitoring worker left, for people on this machine. It reads only."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

from feature_repo.errors import NotFoundError
from serving.loopback import require_loopback

_NAME: Final = re.compile(r"drift-[0-9TZ-]{1,40}\.html")
_COMMON: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_INDEX: Final = _COMMON | {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
}
#: A report is made by a library, of data of users. Also opened by itself it has no origin, and reaches nothing.
_REPORT: Final = _COMMON | {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; connect-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    )
}


def report_routes(directory: Path) -> APIRouter:
    """Make the routes.

    Parameters
    ----------
    directory
        Where the pages are (`Settings.reports_dir`).
    """
    router = APIRouter(tags=["admin"])

    @router.get("/monitor/reports/", include_in_schema=False)
    async def index(request: Request) -> Response:
        """Show the page before the reports."""
        require_loopback(request)
        return Response(await _read(directory / "index.html"), media_type="text/html", headers=_INDEX)

    @router.get("/monitor/reports/{name}", include_in_schema=False)
    async def report(request: Request, name: str) -> Response:
        """Show one report."""
        require_loopback(request)
        if not _NAME.fullmatch(name):
            raise NotFoundError("no such report")
        return Response(await _read(directory / name), media_type="text/html", headers=_REPORT)

    return router


async def _read(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError:
        raise NotFoundError("there is no such report; `larder monitor run` makes them") from None
