"""One service as an operating-system process: start, wait until it is ready, reuse, stop.

What runs is recorded in `<home>/run/<name>.json` with the process's start time: a process id alone may since belong
to somebody else, and such a process is never reused or killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from feature_repo.errors import ConflictError, UnavailableError
from larder.services.ports import next_free_port

_LAUNCHER = Path(__file__).with_name("launcher.py")
#: A process is the recorded one if its start time agrees this well (the kernel counts in 10 ms ticks).
_START_TOLERANCE_S = 0.5
_TAIL_LINES = 20
#: Processes that outlive us on purpose; the references keep Python from complaining that nobody waits for them.
_DETACHED: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Service:
    """What to run, and how to see that it is ready."""

    name: str
    command: Callable[[int], list[str]]  #: the command line, given the port
    ready: Callable[[int], bool]  #: probe, given the port; quick, and false rather than an exception
    port: int = 0  #: preferred port; the next free one is taken if it is in use; 0: it does not listen
    url: str = "http://127.0.0.1:{port}"
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    deadline_s: float = 60.0

    def fingerprint(self, port: int) -> str:
        """Return a hash of everything that makes a running process this service and not another one."""
        text = json.dumps([self.command(port), sorted(self.env.items()), str(self.cwd)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """What `<home>/run/<name>.json` says about a process."""

    name: str
    pid: int
    started: float  #: seconds since the epoch, of the process
    port: int
    url: str
    fingerprint: str
    log: str

    def process(self) -> psutil.Process | None:
        """Return the recorded process if it still runs; None if it ended or the id is somebody else's now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _START_TOLERANCE_S
            return process if same and _runs(process) else None
        except psutil.NoSuchProcess:
            return None

    def tail(self) -> str:
        """Return the end of the log."""
        with suppress(OSError):
            lines = Path(self.log).read_text("utf-8", errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
        return ""


def record_path(home: Path, name: str) -> Path:
    """Where the record of service `name` is."""
    return home / "run" / f"{name}.json"


def read_record(home: Path, name: str) -> Record | None:
    """Return the record of a *running* service, else None."""
    try:
        record = Record(**json.loads(record_path(home, name).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.process() else None


def records(home: Path) -> list[Record]:
    """Return the records of all running services, in the order in which they were started."""
    found = [read_record(home, path.stem) for path in (home / "run").glob("*.json")]
    return sorted((r for r in found if r), key=lambda record: record.started)


class RunningService:
    """A service that was started here (`ours`) or found running."""

    def __init__(self, service: Service, record: Record, home: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.service, self.record, self._home, self._child = service, record, home, child

    @property
    def ours(self) -> bool:
        """Whether this process started it."""
        return self._child is not None

    @property
    def pid(self) -> int:
        """Process id of the service itself."""
        return self.record.pid

    @property
    def port(self) -> int:
        """Port it listens on."""
        return self.record.port

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.record.url

    def wait(self) -> RunningService:
        """Wait until the service is ready.

        Raises
        ------
        UnavailableError
            If it ended, or was not ready within its deadline; the message shows the end of its log.
        """
        began = time.monotonic()
        pause = 0.01
        while not self.service.ready(self.port):
            if self._child is not None:
                self._child.poll()  # reap it, so that it is seen to have ended
            if self.record.process() is None:
                raise UnavailableError(self._failure("ended before it was ready"))
            if time.monotonic() - began > self.service.deadline_s:
                raise UnavailableError(self._failure(f"was not ready after {self.service.deadline_s:.0f} s"))
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        return self

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop it: SIGTERM, then SIGKILL for what is left after `grace_s`."""
        stop(self.record, self._home, grace_s)
        if self._child is not None:
            self._child.wait()

    def _failure(self, what: str) -> str:
        return f"service {self.service.name} {what}; the end of {self.record.log}:\n{self.record.tail()}"


def start(service: Service, home: Path, *, detach: bool = False) -> RunningService:
    """Start a service, or find it running; does not wait for it to be ready (`RunningService.wait`).

    Parameters
    ----------
    home
        Directory for `run/` and `logs/`.
    detach
        Let it outlive this process. Otherwise it ends with this process, also when this process is killed.

    Raises
    ------
    ConflictError
        If it runs with another command line or environment (other settings).
    UnavailableError
        If no port is free.
    """
    home = home.resolve()
    with _lock(home, service.name):
        running = read_record(home, service.name)
        if running is not None:
            if service.fingerprint(running.port) != running.fingerprint:
                raise ConflictError(
                    f"service {service.name} is already running with other settings (pid {running.pid}, "
                    f"{running.url or 'no port'}); stop it first: larder services down {service.name}"
                )
            return RunningService(service, running, home, None)
        port = next_free_port(service.port) if service.port else 0
        log = _fresh_log(home, service.name)
        owner = 0 if detach else os.getpid()
        with log.open("ab") as sink:
            child = subprocess.Popen(  # noqa: S603 - the command line is ours
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(owner), *service.command(port)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **service.env},
                cwd=service.cwd,
                start_new_session=True,  # Ctrl-C in the terminal reaches us only; we stop services in order
            )
        if detach:
            _DETACHED.append(child)
        record = Record(
            name=service.name,
            pid=child.pid,
            started=psutil.Process(child.pid).create_time(),
            port=port,
            url=service.url.format(port=port) if port else "",
            fingerprint=service.fingerprint(port),
            log=str(log),
        )
        path = record_path(home, service.name)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(record), indent=1), "utf-8")
        scratch.replace(path)
    return RunningService(service, record, home, child)


def stop(record: Record, home: Path, grace_s: float = 10.0) -> bool:
    """Stop a recorded process and its descendants; return False if it was not running any more."""
    process = record.process()
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            process.terminate()
            for left in _wait_until_ended(family, grace_s):
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            _wait_until_ended(family, grace_s)
    with _lock(home, record.name):
        path = record_path(home, record.name)
        with suppress(OSError, ValueError):
            if json.loads(path.read_text("utf-8"))["pid"] == record.pid:  # else somebody started it anew
                path.unlink()
    return process is not None


def _runs(process: psutil.Process) -> bool:
    """Whether a process still does anything; a zombie waits for a parent, maybe a slow init, and does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until_ended(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes, ours or not; return those that still run after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (running := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running


def _fresh_log(home: Path, name: str) -> Path:
    """Return the log's path; the log of the run before is kept as `<name>.log.1`."""
    log = home / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    return log


@contextmanager
def _lock(home: Path, name: str) -> Iterator[None]:
    """Let one process at a time start or forget service `name`."""
    path = home / "run" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
