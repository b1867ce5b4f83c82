"""Explains lists beside the event loop, one at a time: who asks why must keep nobody else waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from serving.cascade.explanation import Explanation
from serving.cascade.recommender import Recommender, Slate

#: The first items of a list are explained: the cost grows with them, and nobody asks why of the hundredth.
EXPLAINED: Final = 50
#: So many lists may be on their way; with CatBoost's SHAP values one takes a quarter of a second (docs/models.md).
MAX_ASKED: Final = 4


class Explainer:
    """A thread of its own: the libraries compute SHAP values without Python's lock, so requests go on meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "explain")
        self._asked = 0

    @property
    def waiting(self) -> int:
        """Lists on their way."""
        return self._asked

    async def explain(self, recommender: Recommender, slate: Slate) -> list[Explanation] | None:
        """Explain every item of a list; None where too many lists are on their way."""
        if self._asked >= MAX_ASKED:
            return None
        self._asked += 1
        work = self._pool.submit(recommender.explain, slate, EXPLAINED)
        # Counted until it is done, also where the one who asked has gone.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return await asyncio.wrap_future(work)

    def stop(self) -> None:
        """End the thread; what waits is not begun any more."""
        self._pool.shutdown(cancel_futures=True)

    def _done(self) -> None:
        self._asked -= 1
