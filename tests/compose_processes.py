"""The services of docker-compose.yml as plain processes: same commands, same environment, a loopback address each.

What Docker does is stood in for: host names become addresses (127.x.y.n, so that ports stay those of the file), mounted
paths become paths below a directory of each service, secrets are files, health checks are run as they are written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from feature_repo.settings import Settings
from larder.services.ports import any_free_port
from larder.services.prometheus_server import find_program
from larder.services.redis_server import find_redis_server
from tests.compose_file import DOCKERFILES, ROOT, example, image_environment, load
from tests.postgres_server import initialised, postgres_program

#: Environments made from the images' lock files, to be tried instead of the one of the tests: `venv` and `mvenv`.
_IMAGES = os.environ.get("LARDER_TEST_IMAGES")


class Composed:
    """All services of the file; use it as a context manager.

    Attributes
    ----------
    missing
        Service to why it cannot be run here.
    broken
        Service to what it said, where it did not become healthy.
    alerts
        What the webhook was sent.
    """

    def __init__(self, home: Path, webhook_url: str) -> None:
        self.home = home
        secrets = home / "secrets"
        environment = {"PATH": os.environ["PATH"], "LARDER_ALERT_WEBHOOK_URL": webhook_url}
        subprocess.run(
            [ROOT / "deployment/compose/make-secrets", secrets], env=environment, check=True, capture_output=True
        )
        self.compose = load(example() | {"LARDER_SECRETS_DIR": str(secrets), "LARDER_PROJECT": "composed"})
        self.services: dict[str, dict[str, Any]] = self.compose["services"]
        process = os.getpid()
        network = f"127.{64 + process % 64}.{process // 64 % 256}"
        self.address = {name: f"{network}.{10 + number}" for number, name in enumerate(self.services)}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._cluster = tempfile.TemporaryDirectory(prefix="larder-postgres-")
        self.missing: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.alerts: list[dict[str, Any]] = []
        (home / "logs").mkdir()
        for name in self.services:
            self._lay_out(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its children
            process.wait()
        self._cluster.cleanup()

    def secret(self, name: str) -> str:
        return Path(self.compose["secrets"][name]["file"]).read_text("utf-8")

    def start(self, name: str) -> None:
        """Start a service whose dependencies are healthy; where it cannot be run here, note why."""
        try:
            lacking = [needed for needed in self.services[name].get("depends_on", {}) if needed in self.missing]
            if lacking:
                pytest.skip(f"{name} needs {lacking[0]}: {self.missing[lacking[0]]}")
            words = self.words(name)
            if name == "alertmanager":
                self._for_alertmanager_0_25(words[0])
            if name == "postgres":
                words = self._postgres(words)
        except pytest.skip.Exception as reason:
            self.missing[name] = str(reason)
            return
        with (self.home / "logs" / name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                words,
                env=self.environment(name),
                cwd=self._directory(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def words(self, name: str, command: list[str] | None = None) -> list[str]:
        """What a container of the service would run."""
        service = self.services[name]
        words = [str(word) for word in (command if command is not None else service.get("command", []))]
        if "build" in service:
            words = [*service.get("entrypoint", ["entrypoint"]), *words]
            words[0] = str(ROOT / "deployment" / "images" / "entrypoint")
        elif words[0].startswith("-"):  # the image's entrypoint is the program
            words = [service["image"].split("/")[-1].split(":")[0], *words]
        words = [self.translated(name, word) for word in words]
        words[0] = self._program(words[0])
        if words[0].endswith("redis-server"):
            words += ["--bind", self.address[name]]
        return words

    def environment(self, name: str) -> dict[str, str]:
        """The image's variables and the service's; `PATH` is this machine's."""
        service = self.services[name]
        found: dict[str, str] = {}
        if "build" in service:
            found |= image_environment(ROOT / service["build"]["dockerfile"])
        found |= {key: str(value) for key, value in service.get("environment", {}).items()}
        found = {key: self.translated(name, value) for key, value in found.items()}
        for key, value in found.items():
            if value in self.address and re.search("HOST|NAME", key):
                found[key] = self.address[value]
        if "LARDER_HOME" in found:
            found["LARDER_ADMIN_PORT"] = str(any_free_port())  # on 127.0.0.1, which containers do not share
        if _IMAGES is None:
            found["PYTHONPATH"] = str(ROOT)
        return found | {"PATH": self._path(name), "HOME": str(self._directory(name))}

    def translated(self, name: str, text: str) -> str:
        """Put this machine's addresses and paths into a text of a service."""
        own = self.address[name]
        for other in sorted(self.address, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){other}(?=:\d)", self.address[other], text)
        text = re.sub(r"\b(?:0\.0\.0\.0|127\.0\.0\.1|localhost)\b", own, text)
        text = re.sub(r"^:(?=\d+$)", f"{own}:", text)
        for target in sorted(self._mounts(name), key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){re.escape(target)}(?![\w-])", str(self._root(name)) + target, text)
        return text

    def healthy(self, name: str) -> bool:
        """Run the health check once."""
        test = self.services[name]["healthcheck"]["test"][1:]
        words = [self.translated(name, str(word)) for word in test]
        words = [word.replace("redis-cli ", f"redis-cli -h {self.address[name]} ") for word in words]
        if words[0] == "nc" and shutil.which("nc") is None:  # busybox of the image has it
            code = "import socket, sys; socket.create_connection(sys.argv[1:3], 2)"
            words = [sys.executable, "-c", code, *words[2:]]
        environment = {"PATH": self._path(name)}
        done = subprocess.run(words, env=environment, capture_output=True, timeout=20, check=False)
        return done.returncode == 0

    def wait_healthy(self, name: str) -> None:
        """Wait as long as Docker would before it calls the service unhealthy; note where it is."""
        if name not in self.running or name in self.broken:
            return
        check = self.services[name]["healthcheck"]
        give_up = time.monotonic() + int(check["interval"][:-1]) * int(check["retries"])
        while not self.healthy(name):
            ended = self.running[name].poll()
            if ended is not None or time.monotonic() > give_up:
                self.broken[name] = f"{name} is not healthy (exit code {ended}): {self.log(name)}"
                return
            time.sleep(0.2)

    def run(self, *command: str) -> str:
        """Run `docker compose run --rm cli COMMAND`; return what it printed."""
        done = subprocess.run(
            self.words("cli", list(command)), env=self.environment("cli"), cwd=self._directory("cli"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self, name: str) -> int:
        """Stop as Docker does: the signal of the file, then its time; return the exit code."""
        service = self.services[name]
        process = self.running.pop(name)
        process.send_signal(signal.Signals[service.get("stop_signal", "SIGTERM")])
        grace = service.get("stop_grace_period", "10s")
        return process.wait(int(grace[:-1]) * {"s": 1, "m": 60}[grace[-1]])

    def keep_running(self) -> None:
        """Start again what has ended, as `restart: unless-stopped` says, and wait until it is healthy."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for name in ended:
            assert self.services[name]["restart"] == "unless-stopped"
            del self.running[name]
            self.start(name)
            self.wait_healthy(name)

    def log(self, name: str) -> str:
        return (self.home / "logs" / name).read_text("utf-8", errors="replace")[-3000:]

    def _root(self, name: str) -> Path:
        return self.home / "root" / name

    def _mounts(self, name: str) -> list[str]:
        service = self.services[name]
        targets = [volume.split(":")[1] for volume in service.get("volumes", [])]
        return [*targets, "/run/secrets"] if service.get("secrets") else targets

    def _lay_out(self, name: str) -> None:
        """Make the directories and files a container would see."""
        service, root = self.services[name], self._root(name)
        root.mkdir(parents=True)
        if service.get("secrets"):
            (root / "run" / "secrets").mkdir(parents=True)
            for secret in service["secrets"]:
                shutil.copyfile(self.compose["secrets"][secret]["file"], root / "run" / "secrets" / secret)
        for volume in sorted(service.get("volumes", []), key=lambda text: text.split(":")[1]):
            source, target = volume.split(":")[:2]
            place = root / target.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.startswith("./"):
                self._copy(name, ROOT / source, place)
            elif not place.exists():
                (self.home / "volumes" / source).mkdir(parents=True, exist_ok=True)
                place.symlink_to(self.home / "volumes" / source)

    def _copy(self, name: str, source: Path, place: Path) -> None:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                to = place / path.relative_to(source) if source.is_dir() else place
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_text(self.translated(name, path.read_text("utf-8")), "utf-8")

    def _directory(self, name: str) -> Path:
        """The working directory: the first volume, as in the images."""
        volumes = [v.split(":") for v in self.services[name].get("volumes", []) if not v.startswith("./")]
        return self._root(name) / volumes[0][1].removeprefix("/") if volumes else self._root(name)

    def _path(self, name: str) -> str:
        service = self.services[name]
        own = Path(sys.executable).parent
        if _IMAGES is not None and "build" in service:
            own = (
                Path(_IMAGES) / ("mvenv" if ROOT / service["build"]["dockerfile"] == DOCKERFILES[1] else "venv") / "bin"
            )
        redis = find_redis_server()[0].parent
        places = [own, redis, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
        return os.pathsep.join([*map(str, places), os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])

    def _program(self, name: str) -> str:
        if name == "prometheus":
            try:
                return str(find_program(Settings.load(), name))
            except Exception as error:
                pytest.skip(str(error))
        found = shutil.which(name, path=self._path("cli")) or shutil.which(f"prometheus-{name}")  # Debian's name
        if found is None:
            pytest.skip(f"{name} is not installed here")
        return found

    def _for_alertmanager_0_25(self, program: str) -> None:
        """Write the webhook's address into the configuration where the program, older than the file's, needs that."""
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"version (\d+)\.(\d+)", said.stdout + said.stderr)
        if found and (int(found[1]), int(found[2])) < (0, 26):
            path = self._root("alertmanager") / "etc/alertmanager/alertmanager.yml"
            text, count = re.subn(r"url_file: .*", f"url: {self.secret('alert_webhook_url')}", path.read_text("utf-8"))
            assert count == 1
            path.write_text(text, "utf-8")

    def _postgres(self, words: list[str]) -> list[str]:
        """Make the cluster as PostgreSQL's image does, in a place its user may enter; run the scripts of the file."""
        service, root = self.services["postgres"], self._root("postgres")
        environment = service["environment"]
        directory = Path(self._cluster.name)
        (directory / "password").write_text(self.secret("postgres_password"), "utf-8")
        user = ["--username", environment["POSTGRES_USER"], "--pwfile", str(directory / "password")]
        data, prefix = initialised(directory, [*user, *environment["POSTGRES_INITDB_ARGS"].split()])
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")  # as the image does
        options = ["-D", str(data), "-c", f"listen_addresses={self.address['postgres']}"]
        options += ["-c", f"unix_socket_directories={data.parent}", "-c", "fsync=off"]
        command = [*prefix, postgres_program("postgres"), *words[1:], *options]
        first = {
            "PATH": self._path("postgres"),
            "PGHOST": str(data.parent),
            "POSTGRES_USER": environment["POSTGRES_USER"],
        }
        with subprocess.Popen(command, cwd=data.parent, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as server:
            try:
                ready = [postgres_program("pg_isready"), "-q"]
                while subprocess.run(ready, env=first, check=False).returncode:
                    assert server.poll() is None
                    time.sleep(0.05)
                for script in sorted((root / "docker-entrypoint-initdb.d").iterdir()):
                    subprocess.run(["/bin/bash", script], env=first, check=True, capture_output=True)
            finally:
                server.send_signal(signal.SIGINT)
        return command
