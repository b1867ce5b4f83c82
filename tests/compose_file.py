"""docker-compose.yml and the Dockerfiles as Docker reads them: variables filled in, the instructions of a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from larder.cli import app

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docker-compose.yml"
DOCKERFILES = (ROOT / "deployment" / "images" / "larder.Dockerfile", ROOT / "mlflow" / "Dockerfile")
SCHEMA = ROOT / "tests" / "vendor" / "compose-spec.json"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class MissingVariableError(ValueError):
    """A variable that must be set is not."""


def variables() -> dict[str, tuple[str, str]]:
    """Name of every variable in the file: `-` and its default, or `?` and what is said where it is missing."""
    found: dict[str, tuple[str, str]] = {}
    for name, kind, text in _VARIABLE.findall(FILE.read_text("utf-8")):
        assert found.setdefault(name, (kind, text)) == (kind, text), f"{name} has two defaults"
    return found


def example() -> dict[str, str]:
    """The variables of `.env.example`."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the file as `docker compose` does with an environment; `:-` and `:?` take an empty value for none."""

    def value(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if found := environment.get(name):
            return found
        if kind == "-":
            return text
        raise MissingVariableError(f"{name} {text}")

    read = yaml.safe_load(_VARIABLE.sub(value, FILE.read_text("utf-8")))
    assert isinstance(read, dict)
    return read


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """All instructions of a Dockerfile, a line each."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    text = re.sub(r"\\\n", " ", text)
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def final_stage(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of the image that is kept."""
    found = instructions(dockerfile)
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]


def image_environment(dockerfile: Path) -> dict[str, str]:
    """The variables that an image sets."""
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(text for name, text in final_stage(dockerfile) if name == "ENV")))


def pins(lock: Path) -> dict[str, str]:
    """Name to version of a lock file."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text("utf-8"), re.MULTILINE))


def is_command(words: Sequence[Any]) -> bool:
    """Whether `larder WORDS` is a command."""
    command: Any = get_command(app)
    context = command.make_context("larder", ["settings"], obj=None, resilient_parsing=True)
    for word in words:
        if str(word).startswith("-"):
            break
        command = command.get_command(context, word) if hasattr(command, "get_command") else None
    return command is not None and not hasattr(command, "get_command")
