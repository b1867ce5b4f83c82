"""Registers a model file of an MLflow run as a new version: with its feature service, and the hash it has now."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path, PurePosixPath

from deployment.artefact import MODEL_KINDS, check_path, check_size
from deployment.registry import Registry
from deployment.thresholds import load_thresholds
from feature_repo.errors import BadInputError
from feature_repo.services import feature_list
from feature_repo.settings import Settings


def register_model(settings: Settings, registry: Registry, run_id: str, service: str, path: str | None = None) -> str:
    """Register a run's model file.

    Parameters
    ----------
    path
        The file within the run's artefacts; None takes the only one that has a model's format.

    Returns
    -------
    str
        Number of the new version.

    Raises
    ------
    NotFoundError
        For an unknown run or feature service.
    BadInputError
        If there is no such file, or more than one that could be meant.
    """
    feature_list(service)
    files = [one for one in registry.run_files(run_id) if not one.is_dir]
    models = [one for one in files if PurePosixPath(one.path).suffix in MODEL_KINDS]
    if path is not None:
        check_path(path)
        models = [one for one in models if one.path == path]
    elif len(models) > 1:  # parameters and figures are often JSON, requirements .txt
        models = [one for one in models if PurePosixPath(one.path).suffix not in {".json", ".txt"}] or models
    if len(models) != 1:
        have = ", ".join(one.path for one in models or files) or "none"
        raise BadInputError(
            f"run {run_id} must have a model file {path or ''}(formats: {', '.join(MODEL_KINDS)}), there are: {have}; "
            "name it with --path. What mlflow.<flavour>.log_model logged is registered by mlflow.register_model"
        )
    check_size(models[0], load_thresholds(settings).model_mb * 1024**2)
    with tempfile.TemporaryDirectory(prefix="larder-register-") as work:
        file = registry.download_run_file(run_id, models[0].path, Path(work))
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return registry.register(run_id, models[0].path, service, sha256)
