"""The processes of one `larder serve --workers N`: any of them answers for all.

A scrape reaches one process, whichever takes the connection. It asks the others over Unix sockets in a directory of
their parent's and puts the answers together. Each sample keeps the number of its process as a label: sums of counters
made here would fall when one process starts again, and Prometheus would take that for a restart of all.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

UP: Final = "larder_worker_up"
_MAX: Final = 256
#: A process that works on a request answers after it; one that hangs is left out.
_TIMEOUT_S: Final = 1.0


class Workers:
    """A process among those of its parent.

    Parameters
    ----------
    directory
        Of the sockets; None where this is the only process.

    Attributes
    ----------
    number
        From "0" on, of this process; None where it is the only one. One that starts again takes over the number of
        the one that ended.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._lock: IO[bytes] | None = None
        self._server: asyncio.Server | None = None
        self._topics: dict[str, Callable[[], bytes]] = {}
        self.number = None if directory is None else self._take_number(directory)

    def answer(self, topic: str, make: Callable[[], bytes]) -> None:
        """Say what this process answers when it is asked for a topic."""
        self._topics[topic] = make

    async def start(self) -> None:
        """Listen to the others."""
        if self._directory is not None:
            path = self._directory / f"{self.number}.sock"
            path.unlink(missing_ok=True)  # of the process that had the number before
            self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Answer no more, and give the number back."""
        if self._server is not None:
            self._server.close()
        if self._directory is not None:
            (self._directory / f"{self.number}.sock").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    async def ask(self, topic: str) -> Mapping[str, bytes | None]:
        """Ask all processes.

        Returns
        -------
        Mapping
            Number to what it said; None of one that did not answer in time.
        """
        own = self._topics[topic]()
        if self._directory is None or self.number is None:
            return {"0": own}
        others = sorted(path.stem for path in self._directory.glob("*.sock") if path.stem != self.number)
        said = await asyncio.gather(*(_asked(self._directory / f"{number}.sock", topic) for number in others))
        return {self.number: own, **dict(zip(others, said, strict=True))}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            make = self._topics.get((await reader.readline()).decode("ascii", "replace").strip())
            writer.write(make() if make is not None else b"")
            await writer.drain()
        except OSError:
            pass  # the one who asked waits no more
        finally:
            writer.close()

    def _take_number(self, directory: Path) -> str:
        """Return the first number nobody has; the lock on its file goes with this process, however it ends."""
        for number in range(_MAX):
            lock = (directory / f"{number}.lock").open("wb")
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
                return str(number)
            lock.close()
        raise AssertionError(f"more than {_MAX} processes")


def remove_directory(directory: Path) -> None:
    """Remove what processes left in a directory whose maker is gone; nothing that is not ours."""
    with suppress(OSError):
        for path in (*directory.glob("*.sock"), *directory.glob("*.lock")):
            path.unlink(missing_ok=True)
        directory.rmdir()


def merged_expositions(said: Mapping[str, bytes | None]) -> bytes:
    """Put expositions together: one block for each metric, as the text format demands, and who answered."""
    blocks: dict[bytes, list[bytes]] = {}
    for text in said.values():
        for name, lines in _blocks(text or b""):
            known = blocks.get(name)
            blocks[name] = lines if known is None else known + [line for line in lines if not line.startswith(b"#")]
    up = [f"# HELP {UP} 1 if the process answered", f"# TYPE {UP} gauge"]
    up += [f'{UP}{{worker="{number}"}} {int(text is not None)}' for number, text in said.items()]
    lines = [line for block in blocks.values() for line in block] + [line.encode() for line in up]
    return b"\n".join(lines) + b"\n"


def _blocks(text: bytes) -> Iterable[tuple[bytes, list[bytes]]]:
    """Split an exposition where a metric begins; yields its name and its lines."""
    name, lines = b"", list[bytes]()
    for line in text.splitlines():
        if line.startswith(b"# HELP "):
            if lines:
                yield name, lines
            name, lines = line.split(b" ", 3)[2], []
        lines.append(line)
    if lines:
        yield name, lines


async def _asked(socket: Path, topic: str) -> bytes | None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(os.fspath(socket))
            try:
                writer.write(f"{topic}\n".encode())
                await writer.drain()
                return await reader.read() or None
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
