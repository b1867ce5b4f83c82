"""Starts one service so that it cannot outlive the process that asked for it. Standard library only.

Run as a script: `python -I -S launcher.py PARENT_PID COMMAND ...` (0: no parent, the service stays). A watchdog is
forked into its own session, then this process *becomes* the service (exec), so the pid the parent knows is the
service's own. When the parent ends, however it ends (kill -9 included), the watchdog stops the service's process
group; when the service ends first, the watchdog removes what the service left in its group.

Why not PR_SET_PDEATHSIG: it reaches only the direct child (MLflow's web server is a grandchild), it fires when the
*thread* that started the child ends, and it exists on Linux only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

GRACE_S = 5.0


def _wait_for_any(pids: list[int]) -> None:
    """Return when one of the processes has ended."""
    if hasattr(os, "pidfd_open"):
        poll = select.poll()
        try:
            for pid in pids:
                poll.register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            return
        except OSError:
            pass  # a kernel before 5.3, or a sandbox that forbids it
        else:
            poll.poll()
            return
    while True:
        for pid in pids:
            try:
                os.kill(pid, 0)
            except OSError:
                return
        time.sleep(0.2)


def _watch(parent: int, service: int) -> None:
    _wait_for_any([parent, service] if parent else [service])
    # The service leads its group, and the group's id stays taken while any member lives.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(service, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            os.killpg(service, 0)  # raises when nobody is left
            time.sleep(0.05)
        os.killpg(service, signal.SIGKILL)


def main(parent: int, command: list[str]) -> None:
    """Fork the watchdog (twice, so that the service has no child it does not know), then become `command`."""
    service = os.getpid()
    first = os.fork()
    if first == 0:
        if os.fork():
            os._exit(0)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _watch(parent, service)
        os._exit(0)
    os.waitpid(first, 0)
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the service is the point
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
