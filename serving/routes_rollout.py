"""`/admin/rollout`: the live page of the rollout, for people on this machine, and its status for programs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response

from feature_repo.errors import NotFoundError
from serving.loopback import require_loopback
from serving.problems import documented
from serving.rollout_page import STYLE, rollout_view, whole_page
from serving.rollout_status import RolloutStatus, decode_status

#: Asks for the view again and again, and says so when there is no answer. What it puts into the page was escaped by
#: the server.
_SCRIPT: Final = """
const view = document.getElementById("view"), gone = document.getElementById("gone");
let answered = Date.now();
async function look() {
  try {
    const answer = await fetch("/admin/rollout/view", {cache: "no-store", signal: AbortSignal.timeout(4000)});
    const text = await answer.text();
    if (answer.ok) { if (view.innerHTML !== text) view.innerHTML = text; answered = Date.now(); gone.hidden = true; }
    else throw new Error(JSON.parse(text).error.message);
  } catch (error) {
    gone.textContent = `No answer for ${Math.round((Date.now() - answered) / 1000)} s: ${error.message}`;
    gone.hidden = false;
  }
  setTimeout(look, document.hidden ? 10000 : 1000);
}
look();
"""


def _source(text: str) -> str:
    """Return what a content security policy calls an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


#: The page runs its own script and nothing else, and talks to its own server only.
_POLICY: Final = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PAGE: Final = whole_page(
    "Rollout",
    f"<div id=gone hidden></div><main id=view><p class=soft>Looking ...</p></main><script>{_SCRIPT}</script>",
    head=f"<style>{STYLE}</style>",
)


def rollout_routes(read: Callable[[], Awaitable[bytes | None]]) -> APIRouter:
    """Make the routes.

    Parameters
    ----------
    read
        Reads the newest status as the controller published it; None where there is none.
    """
    router = APIRouter(tags=["admin"])

    async def status() -> RolloutStatus:
        data = await read()
        if data is None:
            raise NotFoundError("no rollout was ever started; `larder rollout start` starts one")
        return decode_status(data)

    @router.get("/admin/rollout", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Show the page."""
        require_loopback(request)
        return Response(_PAGE, media_type="text/html", headers=_HEADERS)

    @router.get("/admin/rollout/view", include_in_schema=False)
    async def view(request: Request) -> Response:
        """Return what the page shows now."""
        require_loopback(request)
        html = rollout_view(await status(), datetime.now(UTC))
        return Response(html, media_type="text/html", headers=_HEADERS)

    @router.get(
        "/admin/rollout/status.json",
        summary="State of the rollout",
        responses={200: {"description": "`RolloutStatus`, see serving/rollout_status.py"}, **documented(403, 404, 503)},
    )
    async def status_json(request: Request) -> Response:
        """Return the newest rollout's arms, weights, tests, decision and history, as the controller published them."""
        require_loopback(request)
        return Response(msgspec.json.encode(await status()), media_type="application/json", headers=_HEADERS)

    return router
