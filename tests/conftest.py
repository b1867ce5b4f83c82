"""Fixtures for everybody: real Redis and MLflow servers (one each per run), and a fresh home for every test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from feature_repo.settings import Settings
from feature_repo.store import import_feast
from larder.services.mlflow_server import mlflow_service
from larder.services.ports import HOST, any_free_port
from larder.services.process import RunningService, start
from larder.services.redis_server import redis_service
from tests.postgres_server import postgres_server

import_feast()  # before any test module imports feast its own way
pytest.register_assert_rewrite("tests.generator_contract")  # its asserts shall say what they saw
#: Of this run only; processes that tests start inherit it.
os.environ.setdefault("LARDER_SIGNING_KEY", "the tests' own key, known to nobody else")
_numbers = itertools.count()
_MLFLOW_WAITS = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")


@pytest.fixture
def mlflow_waits() -> Iterator[None]:
    """A gate worker's short waits for MLflow are set for its whole process: they must not outlive the test."""
    before = {name: os.environ.get(name) for name in _MLFLOW_WAITS}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def services_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of the servers of this run."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def redis_server(services_home: Path) -> Iterator[RunningService]:
    """A real redis-server, as `make demo` runs it."""
    running = start(redis_service(Settings(home=services_home, redis_port=any_free_port())), services_home).wait()
    yield running
    running.stop()


@pytest.fixture
def redis_url(redis_server: RunningService) -> str:
    """URL of an empty Redis."""
    with redis.Redis(HOST, redis_server.port) as client:
        client.flushall()
        client.config_resetstat()
    return f"redis://127.0.0.1:{redis_server.port}"


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    """Settings with a home of their own, an empty Redis and a project of their own.

    Nothing is taken from the environment but the place of the real data. There is no MLflow: see `mlflow_settings`.
    """
    return Settings(
        home=tmp_path / "home",
        project=f"shop{next(_numbers)}",
        data_dir=Settings.load().data_dir,
        redis_port=int(redis_url.rpartition(":")[2]),
        redis_timeout_ms=1000,  # a loaded test machine is not a dead Redis
        request_budget_ms=0,
        mlflow_tracking_uri="http://127.0.0.1:9",  # nobody listens there
    )


@pytest.fixture(scope="session")
def mlflow_server(services_home: Path) -> Iterator[str]:
    """Tracking URI of a real MLflow server; started by the first test that asks (about 12 s)."""
    running = start(mlflow_service(Settings(home=services_home, mlflow_port=any_free_port())), services_home).wait()
    yield running.url
    running.stop()


@pytest.fixture
def mlflow_settings(settings: Settings, mlflow_server: str) -> Settings:
    """`settings` with the real MLflow server; models do not meet, as every test has its own project."""
    return replace(settings, mlflow_tracking_uri=mlflow_server)


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[str, int]]:
    """URL and process id of a real PostgreSQL; skips where none is installed."""
    with postgres_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of an empty control plane's store, on each kind of database."""
    found = Settings(home=tmp_path, project=f"shop{next(_numbers)}")
    if request.param == "postgresql":
        found = replace(found, platform_url=request.getfixturevalue("postgres")[0])
    return found
