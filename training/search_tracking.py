"""MLflow adapter of a search: a parent run, a nested run for every trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from training.tracking import EXPERIMENT, client, run_url

if TYPE_CHECKING:
    from training.search_study import Found, Trial

T = TypeVar("T")
_PARENT = "mlflow.parentRunId"


class SearchRuns:
    """The runs of one search.

    Parameters
    ----------
    known
        The parent run of the study, where it has one already; another one is begun if the server does not know it.

    Raises
    ------
    UnavailableError
        If the MLflow server cannot be reached. The study on disk is kept, and the same command goes on.
    """

    def __init__(self, settings: Settings, study: str, params: Mapping[str, Any], known: str | None) -> None:
        self._settings = settings
        self._mlflow = client(settings)
        self.experiment, self.run_id = self._asked(lambda: self._begin(study, params, known))

    @property
    def url(self) -> str:
        """Page of the parent run."""
        return run_url(self._settings, self.experiment, self.run_id)

    def log_trial(self, trial: Trial) -> None:
        """Log a trial: its settings, nDCG@10 of each cut as steps, and whether it was pruned."""
        self._asked(lambda: self._trial(trial))

    def log_result(self, found: Found, files: list[Path]) -> None:
        """Log what the search found, with its files, and end the parent run."""
        self._asked(lambda: self._result(found, files))

    def _begin(self, study: str, params: Mapping[str, Any], known: str | None) -> tuple[str, str]:
        from mlflow.exceptions import MlflowException

        there = self._mlflow.get_experiment_by_name(EXPERIMENT)
        experiment = str(there.experiment_id if there else self._mlflow.create_experiment(EXPERIMENT))
        if known is not None:
            try:
                experiment = str(self._mlflow.get_run(known).info.experiment_id)
                self._mlflow.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                return experiment, known
        run_id = self._mlflow.create_run(
            experiment, run_name=f"{self._settings.project}-search-{study[:8]}"
        ).info.run_id
        for name, value in params.items():
            self._mlflow.log_param(run_id, name, str(value)[:6000])
        return experiment, str(run_id)

    def _trial(self, trial: Trial) -> None:
        from mlflow.entities import Metric, Param

        run = self._mlflow.create_run(
            self.experiment,
            run_name=f"trial-{trial.number:05d}",
            tags={_PARENT: self.run_id, "larder.search.pruned": str(trial.pruned).lower()},
        )
        now_ms = int(time.time() * 1000)
        metrics = [Metric("ndcg_at_10", value, now_ms, step) for step, value in enumerate(trial.values, start=1)]
        metrics += [Metric("seconds", trial.seconds, now_ms, 0)]
        if not trial.pruned:  # a mean of fewer cuts is not to be compared with others'
            metrics += [Metric("mean_ndcg_at_10", trial.value, now_ms, 0)]
        params = [Param(name, str(value)) for name, value in trial.params.items()]
        self._mlflow.log_batch(run.info.run_id, metrics=metrics, params=params)
        self._mlflow.set_terminated(run.info.run_id)

    def _result(self, found: Found, files: list[Path]) -> None:
        gain, low, high = found.gain
        figures = {
            "best.ndcg_at_10": found.best.value,
            "best.gain_over_default": gain,
            "best.gain_over_default_low": low,
            "best.gain_over_default_high": high,
            "trials": float(len(found.trials)),
            "trials_pruned": float(sum(one.pruned for one in found.trials)),
        }
        for name, value in figures.items():
            self._mlflow.log_metric(self.run_id, name, value)
        for file in files:
            self._mlflow.log_artifact(self.run_id, str(file), "search")
        self._mlflow.set_terminated(self.run_id)

    def _asked(self, call: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except MlflowException as error:
            raise UnavailableError(
                f"MLflow at {self._settings.tracking_uri} did not take the search: {str(error).splitlines()[0]}; the "
                "study is kept, the same command goes on with it (--no-log: without MLflow)"
            ) from error
