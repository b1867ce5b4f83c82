"""The Makefile explains itself, and its targets run what they promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE, BASH = shutil.which("make") or "make", shutil.which("bash") or "bash"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def make(*arguments: str) -> str:
    command = [MAKE, "--no-print-directory", *arguments]
    # These tests may themselves run under `make test ARGS=...`, and make hands its variables on.
    inherited = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "ARGS", "DATASET"}
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env).stdout


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = make()
    assert shown == make("help")
    assert set(re.findall(r"^  ([a-z-]+) +\S", shown, re.MULTILINE)) == TARGETS
    assert {"setup", "demo", "test", "test-faults", "lint", "bench", "docs", "lock", "clean"} <= TARGETS
    assert "DATASET" in shown
    assert "ARGS" in shown


def test_every_target_is_phony() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["demo"], ".venv/bin/larder demo --dataset simulator"),
        (["demo", "DATASET=online_retail", "ARGS=--once"], ".venv/bin/larder demo --dataset online_retail --once"),
        (["test"], '.venv/bin/python -m pytest -m "not faults"'),
        (["test", "ARGS=-k fold"], '.venv/bin/python -m pytest -m "not faults" -k fold'),
        (["test-faults"], ".venv/bin/python -m pytest -m faults"),
        (["lint"], ".venv/bin/mypy"),
    ],
)
def test_targets_run_what_they_promise(arguments: list[str], command: str) -> None:
    assert make("-n", *arguments).strip().splitlines()[-1].strip() == command


def test_a_missing_python_is_a_clear_error() -> None:
    done = subprocess.run(
        [MAKE, "-B", "setup", "PYTHON=python3.99"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Larder needs Python 3.11, and 'python3.99' is not one" in done.stderr


def test_ci_runs_the_same_targets() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "lint test test-faults" in script.read_text("utf-8")
    subprocess.run([BASH, "-n", script], check=True)


def test_uv_itself_is_pinned_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert re.search(r"^uv==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)
    pinned = re.findall(r"^(\S+)==\S+( \\\n    --hash=sha256:)?", lock, re.MULTILINE)
    assert pinned
    assert [name for name, has_hash in pinned if not has_hash] == []
