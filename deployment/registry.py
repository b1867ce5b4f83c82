"""MLflow adapter of the control plane: finds versions, fetches their bundles, writes verdicts and aliases."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment.verdict import Verdict
from feature_repo.errors import BadInputError, NotFoundError, UnavailableError
from feature_repo.settings import Settings
from serving.bundle import bundle_id_of, read_manifest, verify_files
from training.tracking import TAG_BUNDLE, client

CHAMPION = "champion"
CHALLENGER = "challenger"
TAG_VERDICT = "larder.verdict"


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model version as the control plane sees it."""

    version: str
    run_id: str
    bundle_id: str
    verdict: str  # "passed", "failed" or "" (not gated)
    aliases: tuple[str, ...]


class Registry:
    """The project's registered model in MLflow."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mlflow = client(settings)

    def versions(self) -> list[Version]:
        """All versions, newest first; empty if nothing was ever registered."""
        with self._reported("list versions"):
            found = self._mlflow.search_model_versions(f"name='{self._settings.model_name}'")
            aliases = self._aliases() if found else {}
        versions = [self._version(one, aliases) for one in found]
        return sorted(versions, key=lambda one: -int(one.version))

    def version(self, number: str | None) -> Version:
        """Return one version, the newest if None.

        Raises
        ------
        NotFoundError
            If there is no such version.
        """
        known = self.versions()
        for one in known:
            if number is None or one.version == number:
                return one
        have = ", ".join(one.version for one in known) or "none; run `larder train` first"
        raise NotFoundError(f"model {self._settings.model_name} has no version {number or ''}; there are: {have}")

    def fetch_bundle(self, version: Version) -> Path:
        """Copy a version's bundle to the content store, unless it is there, and verify every byte.

        Raises
        ------
        BadInputError
            If the artefact is not the bundle the version names.
        """
        target = self._settings.bundles_dir / version.bundle_id
        if not target.is_dir():
            self._settings.bundles_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._settings.bundles_dir, prefix=".fetch-") as work:
                with self._reported("download the bundle"):
                    self._mlflow.download_artifacts(version.run_id, "bundle", work)
                shutil.move(str(Path(work) / "bundle"), target)
        manifest = read_manifest(target)
        if bundle_id_of(manifest) != version.bundle_id:
            raise BadInputError(
                f"version {version.version} names bundle {version.bundle_id}, its artefact is {bundle_id_of(manifest)}"
            )
        verify_files(target, manifest)
        return target

    def run_figures(self, version: Version) -> tuple[dict[str, str], dict[str, float]]:
        """Return parameters and metrics of the run a version came from."""
        with self._reported("read the run"):
            data = self._mlflow.get_run(version.run_id).data
            return dict(data.params), dict(data.metrics)

    def write_verdict(self, version: Version, verdict: Verdict) -> None:
        """Keep a verdict with the version's run and tag the version."""
        word = "passed" if verdict.passed else "failed"
        with self._reported("write the verdict"):
            self._mlflow.log_dict(version.run_id, verdict.to_dict(), f"verdict/v{version.version}.json")
            self._mlflow.log_text(version.run_id, "\n".join(verdict.lines()), f"verdict/v{version.version}.txt")
            self._mlflow.set_model_version_tag(self._settings.model_name, version.version, TAG_VERDICT, word)

    def aliases(self) -> dict[str, str]:
        """Return which version each alias of the model points at; none if nothing was ever registered."""
        from mlflow.exceptions import MlflowException

        with self._reported("read the aliases"):
            try:
                model = self._mlflow.get_registered_model(self._settings.model_name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
            return {alias: str(number) for alias, number in model.aliases.items()}

    def log_report(self, version: str, html: str, path: str) -> None:
        """Keep a page with the run of a version."""
        run_id = self.version(version).run_id
        with self._reported("keep the report"):
            self._mlflow.log_text(run_id, html, path)

    def set_alias(self, alias: str, number: str | None) -> None:
        """Point an alias at a version, at none if None. The plan is the truth; an alias only shows it."""
        with self._reported(f"set the alias {alias}"):
            if number is None:
                self._mlflow.delete_registered_model_alias(self._settings.model_name, alias)
            else:
                self._mlflow.set_registered_model_alias(self._settings.model_name, alias, number)

    def _aliases(self) -> dict[str, list[str]]:
        model = self._mlflow.get_registered_model(self._settings.model_name)
        found: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            found.setdefault(str(number), []).append(alias)
        return found

    @staticmethod
    def _version(one: Any, aliases: dict[str, list[str]]) -> Version:
        return Version(
            str(one.version),
            one.run_id,
            one.tags.get(TAG_BUNDLE, ""),
            one.tags.get(TAG_VERDICT, ""),
            tuple(sorted(aliases.get(str(one.version), []))),
        )

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            where, first = self._settings.tracking_uri, str(error).splitlines()[0]
            if "Max retries exceeded" in first:  # of the library's text, nothing but this helps a user
                first = "it cannot be reached; start it with `larder services up`, or set mlflow_tracking_uri"
            raise UnavailableError(f"MLflow at {where} could not {what}: {first}") from error
