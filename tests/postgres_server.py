"""A real PostgreSQL for tests, where its programs are found. It refuses to run as root: another user runs it then."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from larder.services.ports import HOST, any_free_port


@contextmanager
def postgres_server() -> Iterator[tuple[str, int]]:
    """Make a cluster and run it; yields its URL and the server's process id."""
    postgres = postgres_program("postgres")
    with tempfile.TemporaryDirectory(prefix="larder-postgres-") as name:
        data, prefix = initialised(Path(name), ["-U", "larder", "-A", "trust"])
        port = any_free_port()
        options = {"listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off", "max_connections": "60"}
        command = [*prefix, postgres, "-D", data, "-p", str(port)]
        command += [part for option, value in options.items() for part in ("-c", f"{option}={value}")]
        with (
            (Path(name) / "log").open("w") as log,
            subprocess.Popen(command, cwd=name, stdout=log, stderr=log) as server,
        ):
            try:
                _wait(server, port)
                yield f"postgresql://larder@{HOST}:{port}/postgres", server.pid
            finally:
                server.send_signal(signal.SIGINT)  # "fast": what is connected is cut off


def initialised(directory: Path, options: list[str]) -> tuple[Path, list[str]]:
    """Make a cluster in an empty directory; return it, and what its programs' commands must begin with."""
    initdb, data, prefix = postgres_program("initdb"), directory / "data", _as_nobody(directory)
    made = subprocess.run(
        [*prefix, initdb, "-D", data, "-E", "UTF8", "--no-sync", *options],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"initdb: {made.stderr.strip()[-300:]}")
    return data, prefix


def postgres_program(name: str) -> str:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"PostgreSQL's program {name} is not installed here")
    return found


def _as_nobody(directory: Path) -> list[str]:
    """Return how to run a program as a user that owns the directory (and what is in it) and is not root."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to run it as another user")
    user = pwd.getpwnam("nobody")
    for path in (directory, *directory.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return [tool, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.skip(f"PostgreSQL did not start (exit code {server.poll()})")
