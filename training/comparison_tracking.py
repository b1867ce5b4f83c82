"""MLflow adapter of the comparison of classifiers: one run with the table, every figure and the plots."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from training.compare_classifiers import Comparison
from training.tracking import EXPERIMENT, client, flatten


def log_comparison(
    settings: Settings, comparison: Comparison, table: list[dict[str, object]], data_hash: str, files: list[Path]
) -> str:
    """Log a comparison and return the address of its run.

    Parameters
    ----------
    table
        One row per classifier, as printed.
    files
        Page and plots.

    Raises
    ------
    UnavailableError
        If the MLflow server cannot be reached; the files on disk are kept.
    """
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    try:
        mlflow = client(settings)
        found = mlflow.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else mlflow.create_experiment(EXPERIMENT)
        run_id = mlflow.create_run(experiment, run_name=f"{settings.project}-compare-classifiers").info.run_id
        params = flatten(asdict(comparison.config)) | {
            "data_hash": data_hash,
            "seed": settings.seed,
            "winner": comparison.winner.classifier.name,
        }
        now_ms = int(time.time() * 1000)
        mlflow.log_batch(
            run_id,
            metrics=[
                Metric(f"{one.classifier.name}.{name}", value, now_ms, 0)
                for one in comparison.results
                for name, value in one.figures.items()
            ],
            params=[Param(name, str(value)) for name, value in params.items()],
        )
        columns = {name: [row[name] for row in table] for name in table[0]}
        mlflow.log_table(run_id, columns, "classifiers.json")
        for file in files:
            mlflow.log_artifact(run_id, str(file), "comparison")
        mlflow.set_terminated(run_id)
    except MlflowException as error:
        raise UnavailableError(
            f"MLflow at {settings.tracking_uri} did not take the comparison: {str(error).splitlines()[0]}; its files "
            f"are kept in {files[0].parent}"
        ) from error
    return f"{settings.tracking_uri}/#/experiments/{experiment}/runs/{run_id}"
