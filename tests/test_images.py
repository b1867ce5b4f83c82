"""Dockerfiles, locks, secrets and what starts inside the images: everything of it that can be run without Docker is."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.compose_file import DOCKERFILES, ROOT, example, final_stage, instructions, load, pins

ENTRYPOINT = ROOT / "deployment" / "images" / "entrypoint"
MAKE_SECRETS = ROOT / "deployment" / "compose" / "make-secrets"
LOCKS = (ROOT / "requirements-run.lock", ROOT / "mlflow" / "requirements.lock")
COMPOSE = load(example())
#: Not in an image: tests, linters, load tests, training with JAX, the installer.
_NOT_AT_RUN_TIME = {
    "pytest",
    "hypothesis",
    "schemathesis",
    "ruff",
    "pandas-stubs",
    "locust",
    "jax",
    "ibis-framework",
    "uv",
}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_are_small_locked_and_not_root(path: Path) -> None:
    names, text = dict(final_stage(path)), path.read_text("utf-8")
    assert names["USER"] == "10001"
    assert "HEALTHCHECK" in names
    assert names["ENTRYPOINT"] == '["entrypoint"]'
    bases = [text for name, text in instructions(path) if name == "FROM"]
    assert [re.fullmatch(r"python:3\.11\.\d+-slim-bookworm( AS build)?", base) is not None for base in bases] == [
        True
    ] * 2
    installs = re.findall(r"pip [^\\\n]*install[^&]*?(?=&&|\n[A-Z#\n]|\Z)", text, re.DOTALL)
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
        assert "--no-deps" in install
    kept = " ".join(line for name, line in final_stage(path) if name in {"RUN", "COPY", "ADD"})
    assert not re.search(r"\bpip\b|gcc|build-essential|COPY \.|ADD", kept), "what builds stays in the first stage"
    assert "DO_NOT_TRACK" in names["ENV"] or "DO_NOT_TRACK" in text


def test_only_what_images_are_made_of_goes_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]["find"]
    assert {name.rstrip("*") for name in packages["include"]} <= allowed
    assert allowed - {name.rstrip("*") for name in packages["include"]} == {
        "pyproject.toml", "README.md", "requirements-run.lock", "mlflow/requirements.lock",
    }  # fmt: skip
    for path in DOCKERFILES:
        for name, text in instructions(path):
            if name == "COPY" and "--from" not in text:
                source = next(word for word in text.split() if not word.startswith("--"))
                assert source == "." or any(source.startswith(one) for one in allowed), source


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_images_have_the_versions_that_were_tested(lock: Path) -> None:
    tested, kept = pins(ROOT / "requirements.lock"), pins(lock)
    assert kept.items() <= tested.items()
    assert len(kept) > 50
    assert not _NOT_AT_RUN_TIME & kept.keys()
    text = lock.read_text("utf-8")
    assert text.count("--hash=sha256:") >= len(kept)
    assert "://" not in text, "no address of a registry"
    assert f"-o {lock.relative_to(ROOT)}" in (ROOT / "Makefile").read_text("utf-8")


def test_images_have_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["tracing"]]
    names = {re.split(r"[\[=<>;\s]", line, maxsplit=1)[0] for line in wanted if "sys_platform == 'darwin'" not in line}
    assert names <= pins(LOCKS[0]).keys() | {"psycopg"}
    for line in (ROOT / "mlflow" / "requirements.in").read_text("utf-8").splitlines():
        assert line in project["dependencies"], "MLflow's image takes what the project asks for"


def run_entrypoint(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENTRYPOINT, *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entrypoint_reads_secrets_from_files(tmp_path: Path) -> None:
    secret, empty = tmp_path / "key", tmp_path / "empty"
    secret.write_text('it\'s $HOME; `ls` "quoted"\n')
    empty.touch()
    done = run_entrypoint(["env"], LARDER_SIGNING_KEY_FILE=str(secret), OTHER_FILE="kept")
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert variables["LARDER_SIGNING_KEY"] == 'it\'s $HOME; `ls` "quoted"'
    assert "LARDER_SIGNING_KEY_FILE" not in variables
    assert variables["OTHER_FILE"] == "kept"
    assert run_entrypoint(["sh", "-c", 'exit "$1"', "sh", "7"]).returncode == 7
    for path in (empty, tmp_path / "no such file"):
        done = run_entrypoint(["echo", "started"], PGPASSWORD_FILE=str(path))
        assert done.returncode != 0
        assert "started" not in done.stdout


def test_every_secret_is_made_once_and_none_has_a_default(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    environment = {"PATH": os.environ["PATH"], "LARDER_ALERT_WEBHOOK_URL": "https://hooks.example/x"}
    for _ in range(2):
        subprocess.run([MAKE_SECRETS, directory], env=environment, check=True, capture_output=True)
        made = {path.name: path.read_text() for path in directory.iterdir()}
        assert made == locals().get("first", made), "what is there stays"
        first = made
    assert set(made) == set(COMPOSE["secrets"])
    assert made.pop("alert_webhook_url") == "https://hooks.example/x"
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in made.values())
    assert len(set(made.values())) == len(made)
    assert directory.stat().st_mode & 0o777 == 0o700
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_secrets_are_files_that_the_service_is_given(name: str) -> None:
    service = COMPOSE["services"][name]
    text = " ".join(map(str, service.get("command", []))) + str(service.get("environment", {}))
    assert not re.search(r"://[^/@\s']*:[^/@\s']+@", text), "no password in a URL"
    files = {value for key, value in service.get("environment", {}).items() if key.endswith("_FILE")}
    for key in service.get("environment", {}):
        assert key.endswith("_FILE") or not re.search("SECRET|PASSWORD|TOKEN|KEY", key), key
    given = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
    in_files = {"/run/secrets/alert_webhook_url"} if name == "alertmanager" else set()
    in_files |= {f"/run/secrets/{who}_db_password" for who in ("larder", "mlflow")} if name == "postgres" else set()
    assert files | in_files == given
    known = re.search(r"for name in ([A-Z_ ]+);", ENTRYPOINT.read_text("utf-8"))
    assert known
    if service["image"].endswith(":local"):
        assert {key.removesuffix("_FILE") for key in service.get("environment", {}) if key.endswith("_FILE")} <= set(
            known[1].split()
        )
