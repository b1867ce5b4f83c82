"""When Python's garbage collector looks: seldom by count, so that requests do not meet it, and by the clock.

Nearly all that a request makes goes by reference counts, so that the count that the collector goes by hardly moves.
What is left for it comes from faults: a connection that is cut leaves its error, the error's frames and the connection
referring to each other, in redis-py and asyncio, 50 objects and 8 kB a fault. By count alone they waited for a thousand
more faults; those that were in use at one look, for twenty times as many.
"""

from __future__ import annotations

import gc
from typing import Final

from serving.background import BackgroundWork
from serving.state import ServingState

#: Objects made before the collector looks at the youngest: a request makes thousands, which go by reference counts.
THRESHOLD: Final = 50_000
#: Pause between two looks at everything made since the start. The longer, the more remembered lists are new to a look,
#: and the longer it takes: at 100 requests a second on a busy machine 3 ms of processor, and 20 to 30 after 120 s.
EVERY_S: Final = 10.0
#: So long a look waits for a moment without users' requests.
PATIENCE_S: Final = 1.0


def leave_alone_what_is_loaded() -> None:
    """Keep the collector from walking over models and tables in the middle of requests, and from looking often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, 20, 20)


def collection_by_the_clock(state: ServingState) -> BackgroundWork:
    """Return the work that looks at the rest, some thousand objects, every `EVERY_S` seconds."""

    async def look() -> None:
        await state.idle(PATIENCE_S)
        gc.collect()

    return BackgroundWork("garbage", EVERY_S, look, state.problems)
