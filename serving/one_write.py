"""A transport that sends head and body of an answer together: each piece alone wakes the client, which costs more."""

from __future__ import annotations

import asyncio
from typing import Any


class OneWrite:
    """Wraps a transport; what is written within one turn of the event loop leaves in one piece, in order.

    Everything but writing and ending is the transport's own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep data until the end of this turn."""
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is kept, then close."""
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Send what is kept, then say that nothing follows."""
        self._flush()
        self._transport.write_eof()

    def _flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            if not self._transport.is_closing():
                self._transport.write(data)
