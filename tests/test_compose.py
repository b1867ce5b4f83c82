"""The compose file and the images, as far as that goes without a Docker engine: syntax, commands, policies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from feature_repo.settings import Settings
from larder.cli import app

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted([*ROOT.glob("deployment/images/*.Dockerfile"), ROOT / "mlflow" / "Dockerfile"])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instructions of the final stage."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE))
    found = [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def is_command(words: list[str]) -> bool:
    """Whether `larder WORDS` is a command."""
    command: Any = get_command(app)
    context = command.make_context("larder", ["settings"], obj=None, resilient_parsing=True)
    for word in words:
        if word.startswith("-"):
            break
        command = command.get_command(context, word) if hasattr(command, "get_command") else None
    return command is not None and not hasattr(command, "get_command")


COMMANDS = [(f"service {name}", s["command"]) for name, s in SERVICES.items() if "command" in s] + [
    (path.name, json.loads(dict(instructions(path))["CMD"])) for path in DOCKERFILES
]


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_every_command_exists(where: str, command: list[str]) -> None:
    if command[0] == "larder":
        assert is_command(command[1:])
    else:
        assert command[:2] == ["mlflow", "server"] or command[0] == "redis-server"


@pytest.mark.parametrize("name", SERVICES)
def test_services_follow_the_policies(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not service.get("privileged")
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert service["user"] != "root"
        assert re.search(r":\d+\.\d+", service["image"]), "a pinned version"
    variables = {n.removeprefix("LARDER_").lower() for n in service.get("environment", {})}
    assert variables <= set(Settings.__dataclass_fields__)
    assert not [n for n in service.get("environment", {}) if re.search("SECRET|PASSWORD|TOKEN|KEY", n)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_install_by_hash(path: Path) -> None:
    names = dict(instructions(path))
    assert names["USER"] not in {"root", "0"}
    assert "HEALTHCHECK" in names
    assert "--require-hashes" in path.read_text("utf-8")
    assert "latest" not in names["FROM"]


def test_the_files_say_that_they_were_never_built() -> None:
    for path in (ROOT / "docker-compose.yml", *DOCKERFILES):
        assert "never built" in path.read_text("utf-8").lower()


def test_redis_loses_no_acknowledged_event() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
