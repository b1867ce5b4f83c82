"""Parses models and bundles in a limited child process first: a file that kills its parser kills nobody else."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from feature_repo.errors import BadInputError, LarderError, UnavailableError

#: The child's start: imports of seconds, more on a busy machine. Comes on top of the deadline of the first file.
START_S: Final = 120.0
_LIBRARIES: Final = {"catboost": "catboost", "lightgbm": "lightgbm", "xgboost": "xgboost"}
_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the child found.

    Attributes
    ----------
    features
        Names of the columns the model takes, in order.
    finite
        Whether nulls, zeros and random rows all scored finite.
    converted
        The model as XGBoost JSON, where it came in another of the library's formats; else empty.
    """

    features: tuple[str, ...]
    finite: bool
    rss_growth_bytes: int
    converted: bytes = b""


class Parser:
    """A child process that parses one file after the other; a context manager.

    Parameters
    ----------
    seconds, memory_mb
        Deadline of one file, and the address space it may take on top of the libraries'.
    """

    def __init__(self, *, seconds: float, memory_mb: float) -> None:
        self._seconds, self._memory = seconds, int(memory_mb * 1024**2)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def bundle(self, directory: Path, kinds: tuple[str, ...]) -> Parsed:
        """Load a bundle as serving would: hashes, every file, golden rows.

        Parameters
        ----------
        kinds
            Kinds of the models in it.

        Raises
        ------
        BadInputError
            If it cannot be loaded, or ends the fork that parses it, or takes too long.
        UnavailableError
            If the child itself is gone or could not begin, which is no file's doing.
        """
        return self._ask({"what": "bundle", "path": str(directory.resolve())}, kinds, f"the bundle {directory.name}")

    def model(self, path: Path, kind: str) -> Parsed:
        """Load a model file of a kind and score some rows; raises like `bundle`."""
        return self._ask(
            {"what": "model", "kind": kind, "path": str(path.resolve())}, (kind,), f"the {kind} file {path.name}"
        )

    def _ask(self, request: dict[str, Any], kinds: tuple[str, ...], what: str) -> Parsed:
        started, process = self._running()
        libraries = [_LIBRARIES[kind] for kind in kinds if kind in _LIBRARIES]
        request |= {"libraries": libraries, "seconds": self._seconds, "memory_bytes": self._memory}
        if process.stdin is None or process.stdout is None:
            raise LarderError("the child process that parses has no pipes")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = _line(process.stdout.fileno(), time.monotonic() + self._seconds + (START_S if started else 10.0))
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            # A file can end, or hold up, the fork that parses it; not the process that forked it and answers for it.
            raise UnavailableError(f"{what} could not be parsed: the process for it did not answer")
        answer = json.loads(line)
        if "error" in answer:
            raise BadInputError(f"{what} was refused: {answer['error']}")
        return Parsed(
            tuple(answer["features"]),
            answer["finite"],
            answer["rss_growth_bytes"],
            base64.b64decode(answer["converted"]),
        )

    def _running(self) -> tuple[bool, subprocess.Popen[bytes]]:
        """Return the child, and whether it was started just now."""
        if self._process is not None and self._process.poll() is None:
            return False, self._process
        self.close()
        # Nothing of our environment goes along: there are keys and passwords in it.
        paths = os.pathsep.join([str(_ROOT), *(p for p in sys.path if p)])
        env = {"PATH": os.defpath, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deployment.parse_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=_ROOT,
            bufsize=0,
        )
        return True, self._process


def _line(pipe: int, deadline: float) -> bytes:
    """Read one line; empty if there is none by the deadline, or the pipe closes."""
    parts = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return b""
        part = os.read(pipe, 1 << 20)
        if not part:
            return b""
        parts.append(part)
        if part.endswith(b"\n"):
            return b"".join(parts)
