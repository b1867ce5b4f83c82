"""A page that asks its own server for a view again and again; it runs its own script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from serving.rollout_page import STYLE, whole_page

#: Says so when there is no answer. What it puts into the page was escaped by the server.
_SCRIPT: Final = """
const view = document.getElementById("view"), gone = document.getElementById("gone");
let answered = Date.now();
async function look() {
  try {
    const answer = await fetch(view.dataset.source, {cache: "no-store", signal: AbortSignal.timeout(4000)});
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
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def live_page(title: str, view: str, style: str = "") -> str:
    """Return the page around a view.

    Parameters
    ----------
    view
        Path that answers with the view's HTML, every text in it escaped.
    style
        CSS beside the common one.
    """
    return whole_page(
        title,
        f"<div id=gone hidden></div><main id=view data-source='{view}'><p class=soft>Looking ...</p></main>"
        f"<script>{_SCRIPT}</script>",
        head=f"<style>{STYLE}{style}</style>",
    )
