"""MLflow adapter: logs trainings (parameters, figures, plots, bundle, a registered version) and evaluations."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings

if TYPE_CHECKING:
    from training.train import TrainResult  # grading somebody's lists needs nothing that trains

#: Tags of a registered version that the gate reads.
TAG_BUNDLE = "larder.bundle_id"
TAG_SERVICE = "larder.feature_service"
EXPERIMENT = "larder"
#: MLflow takes so many metrics, and as many params, in one call (documented: 1,000 and 100).
_BATCH = 100


def client(settings: Settings, *, retries: int | None = None, timeout_s: int | None = None) -> Any:
    """Return an MlflowClient that gives up quickly.

    MLflow's defaults retry for about four minutes; a dead server must be an error within seconds.

    Parameters
    ----------
    retries, timeout_s
        For a process that polls: they hold for all of its calls to MLflow, as the library reads them from the
        environment.
    """
    for name, value, default in (("MAX_RETRIES", retries, "2"), ("TIMEOUT", timeout_s, "20")):
        if value is None:
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", default)
        else:
            os.environ[f"MLFLOW_HTTP_REQUEST_{name}"] = str(value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # MLflow asks git for a commit; without git that is a warning
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its progress notes are not ours to print
    return MlflowClient(settings.tracking_uri, settings.tracking_uri)


@dataclass(frozen=True, slots=True)
class Registered:
    """Where a training can be found in MLflow."""

    run_id: str
    experiment_id: str
    version: str

    def url(self, settings: Settings) -> str:
        """Page of the run in MLflow."""
        return run_url(settings, self.experiment_id, self.run_id)


def run_url(settings: Settings, experiment_id: str, run_id: str) -> str:
    """Page of a run in MLflow."""
    return f"{settings.tracking_uri}/#/experiments/{experiment_id}/runs/{run_id}"


def log_evaluation(
    settings: Settings, name: str, figures: Mapping[str, float], params: Mapping[str, str], files: Sequence[Path]
) -> tuple[str, str]:
    """Log a graded evaluation as one MLflow run: figures as metrics, files as artefacts.

    Returns
    -------
    tuple
        Ids of the experiment and the run.

    Raises
    ------
    UnavailableError
        If the MLflow server does not take it; the files on disk are kept.
    """
    mlflow = client(settings)
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    try:
        experiment = _experiment(mlflow)
        run_id = mlflow.create_run(experiment, run_name=name).info.run_id
        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, value, now_ms, 0) for key, value in figures.items()]
        rows = [Param(key.replace(" ", "_"), value[:6000]) for key, value in params.items()]
        for first in range(0, len(metrics), _BATCH):
            mlflow.log_batch(run_id, metrics=metrics[first : first + _BATCH], params=rows[:_BATCH] if not first else [])
        for file in files:
            mlflow.log_artifact(run_id, str(file))
        mlflow.set_terminated(run_id)
    except MlflowException as error:
        raise UnavailableError(
            f"MLflow at {settings.tracking_uri} did not take the evaluation: {str(error).splitlines()[0]}; its files "
            f"are kept: {', '.join(map(str, files))}"
        ) from error
    return experiment, run_id


def register_training(settings: Settings, result: TrainResult) -> Registered:
    """Log a training as one MLflow run and register its bundle as a new model version.

    Raises
    ------
    UnavailableError
        If the MLflow server cannot be reached; the bundle on disk is kept and can be registered again.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _register(settings, result)
    except MlflowException as error:
        raise UnavailableError(
            f"MLflow at {settings.tracking_uri} did not take the model: {str(error).splitlines()[0]}; the bundle is "
            f"kept in {result.directory}"
        ) from error


def _register(settings: Settings, result: TrainResult) -> Registered:
    from mlflow.entities import Metric, Param

    from training.plots import save_plots

    mlflow = client(settings)
    experiment = _experiment(mlflow)
    manifest = result.bundle.manifest
    run = mlflow.create_run(experiment, run_name=f"{settings.project}-{result.bundle.bundle_id[:8]}")
    run_id = run.info.run_id
    names = ("data_hash", "code_version", "feature_service_hash", "seed")
    params = flatten(manifest["config"]) | {name: manifest[name] for name in names}
    figures = result.evaluation.flat() | {"trees": float(result.fitted.best_iteration)}
    figures |= {f"seconds.{name.replace(' ', '_')}": value for name, value in result.seconds.items()}
    now_ms = int(time.time() * 1000)
    mlflow.log_batch(
        run_id,
        metrics=[Metric(name, value, now_ms, 0) for name, value in figures.items()],
        params=[Param(name, str(value)) for name, value in params.items()],
    )
    mlflow.log_dict(run_id, {"rows": result.evaluation.table()}, "evaluation.json")
    mlflow.log_dict(run_id, result.fitted.importance, "importance.json")
    with tempfile.TemporaryDirectory() as work:
        plots = save_plots(Path(work), result.evaluation, result.fitted, result.calibration_rows, result.seconds)
        for plot in plots:
            mlflow.log_artifact(run_id, str(plot), "plots")
    mlflow.log_artifacts(run_id, str(result.directory), "bundle")
    version = register_bundle(mlflow, settings, run_id, result.bundle.bundle_id, manifest["feature_service"])
    mlflow.set_terminated(run_id)
    return Registered(run_id, experiment, version)


def _experiment(mlflow: Any) -> str:
    """Return the id of Larder's experiment, which is made if it is not there."""
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else mlflow.create_experiment(EXPERIMENT))


def register_bundle(mlflow: Any, settings: Settings, run_id: str, bundle_id: str, service: str) -> str:
    """Create a version of the project's registered model from a run's `bundle` artifact; return its number."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(settings.model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{mlflow.get_run(run_id).info.artifact_uri}/bundle"
    created = mlflow.create_model_version(
        settings.model_name, source, run_id, tags={TAG_BUNDLE: bundle_id, TAG_SERVICE: service}
    )
    return str(created.version)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names; members of a list go by their own name, or by their number."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
            members = {str(_name_of(one) or i): one for i, one in enumerate(value)}
            out |= flatten(members, f"{prefix}{name}.")
        elif isinstance(value, dict):
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _name_of(member: dict[str, Any]) -> str | None:
    inner = member.get("generator", member)
    found = inner.get("name") if isinstance(inner, dict) else None
    return None if found is None else str(found)
