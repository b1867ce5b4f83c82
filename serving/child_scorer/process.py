"""Starts a candidate's process: a fresh interpreter with one socket, no secret, and an end of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.signature import ENVIRONMENT as SIGNING_KEY

ENTRY: Final = "serving.child_scorer"


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a child may take, in seconds and megabytes.

    Attributes
    ----------
    hung_s
        One that has not answered for so long is killed.
    start_s
        Time to load its bundle.
    backoff_s
        Pause before the first restart; doubled with each death in a row.
    deaths
        So many in a row, and it is left alone for `cooldown_s`.
    steady_s
        One that lived so long begins to count anew.
    retry_s
        A bundle that was refused is tried again after this time: it may still be on its way to the disk. Doubled with
        each refusal in a row, up to `cooldown_s`: looking at a bundle takes seconds of a core.
    """

    memory_mb: int = 4096
    hung_s: float = 2.0
    start_s: float = 120.0
    backoff_s: float = 0.25
    deaths: int = 5
    cooldown_s: float = 60.0
    steady_s: float = 60.0
    retry_s: float = 10.0


DEFAULT_LIMITS: Final = ChildLimits()


def start_process(entry: str, directory: Path, memory_mb: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process.

    Parameters
    ----------
    entry
        Module to run.
    directory
        The bundle's.
    memory_mb
        Memory it may take.

    Returns
    -------
    tuple
        The process, and our end of the channel to it.

    Raises
    ------
    OSError
        If the system has no memory or no file descriptor for it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [
            sys.executable, "-m", entry, "--fd", str(theirs.fileno()), "--parent", str(os.getpid()),
            "--bundle", str(directory.absolute()), "--memory-mb", str(memory_mb),
        ]  # fmt: skip
        # A candidate signs nothing; what it does not have, nobody can take from it.
        environment = {name: value for name, value in os.environ.items() if name != SIGNING_KEY}
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module, with the names of files
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True, env=environment
            )
        except OSError:
            ours.close()
            raise
    return process, ours
