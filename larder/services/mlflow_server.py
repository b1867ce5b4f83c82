"""The embedded MLflow: the real `mlflow server` on SQLite, artefacts in a directory, one worker, no telemetry."""

from __future__ import annotations

import sys

from feature_repo.settings import Settings
from larder.services.ports import HOST, http_ok
from larder.services.process import Service

_ENV = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no job queue: it starts further processes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def mlflow_service(settings: Settings) -> Service:
    """Describe the embedded MLflow of `settings.home`."""
    directory = settings.home.resolve() / "mlflow"
    directory.mkdir(parents=True, exist_ok=True)
    return Service(
        name="mlflow",
        command=lambda port: [
            sys.executable, "-m", "mlflow", "server",
            "--host", HOST,
            "--port", str(port),
            "--workers", "1",
            "--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}",
            "--artifacts-destination", str(directory / "artifacts"),
        ],
        ready=lambda port: http_ok("/health", port),
        port=settings.mlflow_port,
        env=_ENV,
        cwd=directory,
        deadline_s=180.0,  # 7 to 13 s on an idle machine, mostly imports
    )  # fmt: skip
