"""Reads what is appended to log files of several processes, from where it stopped, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

#: One look takes about this, so that a tick stays short; the rest comes with the next.
LOOK_BYTES: Final = 32_000_000
_CHUNK: Final = 4_000_000


def positions(directory: Path) -> dict[str, int]:
    """Return where the files of a log end now, by `<day>/<name>`."""
    found = {}
    for path in directory.glob("*/*.jsonl"):
        try:
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_size
        except FileNotFoundError:  # an old day, removed meanwhile
            continue
    return found


class LogTail:
    """Whole lines of `<directory>/<day>/<name>.jsonl` after some positions.

    Every process has files of its own and only appends, so a position per file says exactly what was read. Names and
    times play no role: a file that was not known is read from its beginning, whatever day a clock has given it.

    Parameters
    ----------
    directory
        The log; it need not exist yet.
    offsets
        Byte positions by file, as `offsets` was.
    """

    def __init__(self, directory: Path, offsets: Mapping[str, int]) -> None:
        self._directory = directory
        self.offsets = dict(offsets)
        #: Whether the last look ended at its bound, with more to read.
        self.more = False

    def look(self) -> Iterator[bytes]:
        """Yield the lines that came since, file by file; a line that is not ended yet waits."""
        self.more, limit = False, LOOK_BYTES
        for name, size in sorted(positions(self._directory).items()):
            while (start := self.offsets.get(name, 0)) < size:
                if limit <= 0:
                    self.more = True
                    return
                data = _read(self._directory / name, start, min(_CHUNK, size - start))
                end = data.rfind(b"\n") + 1
                if not end and len(data) < _CHUNK:
                    break  # the line is still being written, or the file is gone
                end = end or len(data)  # a line longer than any record is none of ours
                limit -= end
                self.offsets[name] = start + end
                yield from data[:end].splitlines()

    def look_until(self, ends: Mapping[str, int]) -> Iterator[bytes]:
        """Yield the lines up to some later positions: what had been read before a restart."""
        self.more, limit = False, LOOK_BYTES
        for name, end in sorted(ends.items()):
            while (start := self.offsets.get(name, 0)) < end:
                if limit <= 0:
                    self.more = True
                    return
                data = _read(self._directory / name, start, min(_CHUNK, end - start))
                whole = data.rfind(b"\n") + 1 or len(data)
                if not whole:  # the file is gone
                    self.offsets[name] = end
                    break
                limit -= whole
                self.offsets[name] = start + whole
                yield from data[:whole].splitlines()


def _read(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except FileNotFoundError:
        return b""
