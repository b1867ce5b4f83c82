"""The command line as a user meets it: help with examples, one clear line per error, exit codes, speed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from larder.cli import app

ROOT = Path(__file__).resolve().parents[1]
LARDER = [sys.executable, "-m", "larder.cli"]


def larder(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LARDER, *arguments], capture_output=True, text=True, check=False, **options)


def commands() -> Iterator[tuple[str, Any]]:
    """All commands with their full names."""

    def below(name: str, command: Any, context: Any) -> Iterator[tuple[str, Any]]:
        nested = command.list_commands(context) if hasattr(command, "list_commands") else []
        if not nested:
            yield name, command
        for child in nested:
            yield from below(f"{name} {child}".strip(), command.get_command(context, child), context)

    root = get_command(app)
    yield from below("", root, root.make_context("larder", ["settings"], obj=None, resilient_parsing=True))


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_every_command_explains_itself_with_examples(name: str, command: Any) -> None:
    text = command.help
    assert text.splitlines()[0].endswith(".")
    assert "\n\n\b\nExample" in text, "the docstring needs a section 'Examples'"
    assert f"larder {name}" in text or "larder --project" in text
    assert not {"args", "kwargs"} & {p.name for p in command.params}
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} needs a help text"


def test_help_lists_commands_and_is_fast() -> None:
    took = []
    for _ in range(3):  # the best of three: other tests may keep the machine busy
        began = time.perf_counter()
        done = larder("--help")
        took.append(time.perf_counter() - began)
    assert done.returncode == 0
    for name in ("services", "data", "settings"):
        assert f"\n  {name} " in done.stdout
    assert min(took) < 1.0  # loose; 0.12 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["data", "import", "--events", "many"], 2, "--events"),
        (["data", "import", "--dataset", "nope"], 1, "larder: unknown data set 'nope'"),
        (["data", "import", "--end", "tomorrow"], 1, "larder: --end must be 'now' or an ISO date"),
        (["data", "import", "--file", "a.csv", "--mapping", "m.yaml"], 1, "larder: name --file or --mapping, not both"),
        (["data", "import", "--mapping", "m.yaml"], 1, "larder: there is no mapping m.yaml"),
        (["data", "describe"], 1, "larder: project 'simulator' has no events; import a data set first"),
        (["data", "status"], 1, "import a data set first"),
        (["services", "down", "redis"], 1, "larder: no service 'redis' is running"),
    ],
)
def test_errors_are_one_clear_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = larder("--home", str(tmp_path), *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in larder("--home", str(tmp_path), "--debug", "services", "down", "redis").stderr


def test_a_broken_settings_file_is_one_clear_line_and_does_not_break_help(tmp_path: Path) -> None:
    file = tmp_path / "larder.toml"
    file.write_text("api_prot = 1\n")
    done = larder("settings", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown setting 'api_prot'" in done.stderr
    assert larder("settings", "--help", cwd=tmp_path).returncode == 0


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = larder("--home", str(tmp_path / "file"), "services", "up")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Not a directory" in done.stderr


def test_settings_say_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "larder.toml").write_text("threads = 17\napi_port = 1\n")
    env = {"LARDER_API_PORT": "9000", "PATH": ""}
    shown = larder("--project", "mine", "settings", cwd=tmp_path, env=env).stdout
    assert "project = mine  [option]" in shown
    assert "api_port = 9000  [env LARDER_API_PORT]" in shown
    assert "threads = 17  [file larder.toml]" in shown
    assert "seed = 11  [default]" in shown


def test_a_data_set_names_its_project_unless_one_is_named(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path)]
    done = larder(*home, "data", "import", "--dataset", "simulator", "--events", "2000", "--end", "2026-03-01")
    assert done.returncode == 0, done.stderr
    assert "load simulator" in done.stderr  # plain lines, as there is no terminal
    assert "\r" not in done.stderr
    status = larder(*home, "data", "status").stdout
    assert status.startswith(done.stdout), "and then what was refused live"
    assert "2,000 events accepted" in status
    larder(*home, "--project", "mine", "data", "import", "--dataset", "simulator", "--events", "2000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "simulator"]


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("larder")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: larder")
