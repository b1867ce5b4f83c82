"""MLflow adapter of the control plane: finds versions, fetches what they name, writes verdicts and aliases."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployment.artefact import MAX_FILES, Listed, check_path, check_size
from deployment.blame import NotHereError
from deployment.verdict import Verdict
from feature_repo.errors import BadInputError, LarderError, NotFoundError, UnavailableError
from feature_repo.settings import Settings
from serving.bundle import (
    ALLOWED_SUFFIXES,
    MAX_FILE_BYTES,
    FeatureListError,
    bundle_id_of,
    read_manifest,
    verify_files,
)
from training.tracking import TAG_BUNDLE, TAG_SERVICE, client

CHAMPION = "champion"
CHALLENGER = "challenger"
TAG_VERDICT = "larder.verdict"
TAG_REASON = "larder.verdict_reason"
TAG_GATED_AT = "larder.gated_at"
#: Of a data scientist's ranker: the bundle it was composed into is named by `TAG_BUNDLE` once it was judged.
TAG_COMPOSED = "larder.composed"
TAG_FILE = "larder.model_file"
TAG_SHA256 = "larder.model_sha256"
#: Where the feature service may be named: by Larder, by the user, or by Feast's MLflow integration.
SERVICE_TAGS = (TAG_SERVICE, "feast.feature_service")
_BUNDLE_ID = re.compile("[0-9a-f]{32}")
#: Artefact stores the gate reads from; `file:` and `http:` would let a version name any file or address.
_SCHEMES = frozenset({"mlflow-artifacts", "s3", "gs", "abfss", "wasbs"})


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model version as the control plane sees it.

    Attributes
    ----------
    bundle_id
        Its bundle; empty for a ranker that was not composed yet.
    verdict
        "passed", "failed", "inconclusive", or "" (not gated).
    service
        Feature service it names; empty if none.
    composed
        Whether the gate made the bundle of a plain ranker.
    model_file, model_sha256
        Of a ranker that `larder models register` registered: its one file, and the hash it had then.
    reason
        The verdict in one line.
    """

    version: str
    run_id: str
    bundle_id: str
    verdict: str
    aliases: tuple[str, ...]
    service: str = ""
    composed: bool = False
    model_file: str = ""
    model_sha256: str = ""
    reason: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is a ranker of its own, not a bundle of ours."""
        return self.composed or not self.bundle_id


class Registry:
    """The project's registered model in MLflow.

    Parameters
    ----------
    retries, timeout_s
        As `training.tracking.client`: for a process that polls.
    """

    def __init__(self, settings: Settings, *, retries: int | None = None, timeout_s: int | None = None) -> None:
        self._settings = settings
        self._mlflow = client(settings, retries=retries, timeout_s=timeout_s)

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

    def service_of(self, version: Version) -> str:
        """Return the feature service a version names, itself or by its run.

        Raises
        ------
        FeatureListError
            If neither does.
        """
        if version.service:
            return version.service
        tags: dict[str, str] = {}
        if version.run_id:
            with self._reported("read the run"):
                tags = self._mlflow.get_run(version.run_id).data.tags
        for tag in SERVICE_TAGS:
            if tags.get(tag):
                return tags[tag]
        raise FeatureListError(
            f"version {version.version} names no feature service; set the tag {TAG_SERVICE} (say, ranking_v1) on the "
            "version or its run"
        )

    def fetch_bundle(self, version: Version) -> Path:
        """Copy a version's bundle to the content store, unless it is there, and verify every byte.

        Raises
        ------
        BadInputError
            If the artefact is not the bundle the version names.
        NotHereError
            For a ranker that was not composed into a bundle here.
        """
        if version.bundle_id and not _BUNDLE_ID.fullmatch(version.bundle_id):
            raise BadInputError(f"{version.bundle_id[:64]!r} is not a bundle id (32 hexadecimal digits)")
        target = self._settings.bundles_dir / version.bundle_id
        if version.plain and (not version.bundle_id or not target.is_dir()):
            raise NotHereError(
                f"version {version.version} is a ranker without a bundle here; `larder models gate {version.version} "
                "--again` composes it"
            )
        if not target.is_dir():
            self._settings.bundles_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._settings.bundles_dir, prefix=".fetch-") as work:
                self._check_bundle_files(version)
                with self._reported("download the bundle"):
                    self._mlflow.download_artifacts(version.run_id, "bundle", work)
                # Before it is moved: what is wrong must not stay in the store under the name of what is right.
                _verify(version, Path(work) / "bundle")
                shutil.move(str(Path(work) / "bundle"), target)
        _verify(version, target)
        return target

    def run_figures(self, version: Version) -> tuple[dict[str, str], dict[str, float]]:
        """Return parameters and metrics of the run a version came from."""
        with self._reported("read the run"):
            data = self._mlflow.get_run(version.run_id).data
            return dict(data.params), dict(data.metrics)

    def _check_bundle_files(self, version: Version) -> None:
        """Refuse a bundle by the list of its files, before any is downloaded."""
        with self._reported("list the bundle"):
            listing = [
                Listed(str(one.path), one.file_size, bool(one.is_dir))
                for one in self._mlflow.list_artifacts(version.run_id, "bundle")
            ]
        if not listing:
            raise BadInputError(f"version {version.version} names a bundle, and its run holds no file of one")
        for one in listing:
            check_path(one.path)
            if one.is_dir or Path(one.path).suffix not in ALLOWED_SUFFIXES:
                raise BadInputError(
                    f"the bundle of version {version.version} has {one.path[:80]!r}, which is not allowed"
                )
            check_size(one, MAX_FILE_BYTES)

    def list_artefact(self, version: Version) -> list[Listed]:
        """List the files of a version's own artefact, folders included.

        Raises
        ------
        BadInputError
            If it lies where the gate does not read.
        """
        with self._reported("list the artefact"):
            repository = self._repository(version)
            found: list[Listed] = []
            folders: list[str | None] = [None]
            while folders and len(found) <= MAX_FILES:
                for one in repository.list_artifacts(folders.pop()):
                    found.append(Listed(str(one.path), one.file_size, bool(one.is_dir)))
                    if one.is_dir:
                        folders.append(one.path)
            return found

    def download(self, version: Version, path: str, directory: Path) -> Path:
        """Download one file of a version's artefact and return where it lies."""
        with self._reported(f"download {path}"):
            return Path(self._repository(version).download_artifacts(path, str(directory)))

    def register(self, run_id: str, path: str, service: str, sha256: str) -> str:
        """Make a version of a file, or of a logged model, of a run; return its number."""
        name = self._settings.model_name
        with self._reported("register the model"):
            from mlflow.exceptions import MlflowException

            try:
                self._mlflow.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            folder, _, file = path.rpartition("/")
            source = "/".join(filter(None, (self._mlflow.get_run(run_id).info.artifact_uri, folder)))
            tags = {TAG_SERVICE: service, TAG_FILE: file, TAG_SHA256: sha256}
            return str(self._mlflow.create_model_version(name, source, run_id, tags=tags).version)

    def run_files(self, run_id: str) -> list[Listed]:
        """List the files of a run.

        Raises
        ------
        NotFoundError
            If there is no such run.
        """
        from mlflow.exceptions import MlflowException

        with self._reported("list the run's files"):
            try:
                self._mlflow.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise NotFoundError(f"MLflow has no run {run_id!r}") from None
                raise
            found: list[Listed] = []
            folders = [""]
            while folders and len(found) <= MAX_FILES:
                for one in self._mlflow.list_artifacts(run_id, folders.pop() or None):
                    found.append(Listed(str(one.path), one.file_size, bool(one.is_dir)))
                    if one.is_dir:
                        folders.append(one.path)
            return found

    def download_run_file(self, run_id: str, path: str, directory: Path) -> Path:
        """Download one file of a run."""
        with self._reported(f"download {path}"):
            return Path(self._mlflow.download_artifacts(run_id, path, str(directory)))

    def write_verdict(self, version: Version, verdict: Verdict, sealed: bytes = b"", page: str = "") -> None:
        """Keep a verdict with the version's run, and tag the version; the tag that ends a judgement comes last."""
        name, number = self._settings.model_name, version.version
        # A run that was deleted for good keeps nothing; the version's tags still end the judgement.
        with suppress(NotFoundError), self._reported("write the verdict"):
            if version.run_id:
                folder = f"verdict/v{number}"
                self._mlflow.log_dict(version.run_id, verdict.to_dict(), f"{folder}.json")
                self._mlflow.log_text(version.run_id, "\n".join(verdict.lines()), f"{folder}.txt")
                if sealed:
                    self._mlflow.log_text(version.run_id, sealed.decode(), f"{folder}.signed.json")
                if page:
                    self._mlflow.log_text(version.run_id, page, f"{folder}.html")
        with self._reported("write the verdict"):
            tags = {TAG_REASON: verdict.reason, TAG_GATED_AT: verdict.gated_at}
            if version.plain:
                tags |= {TAG_BUNDLE: verdict.bundle_id, TAG_COMPOSED: "true"}
            for tag, value in (tags | {TAG_VERDICT: verdict.word}).items():
                self._mlflow.set_model_version_tag(name, number, tag, value)

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

    def _repository(self, version: Version) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._mlflow.get_model_version_download_uri(self._settings.model_name, version.version)
        split = urlsplit(uri)
        if split.scheme not in _SCHEMES or ".." in split.path.split("/") or "%" in split.path:
            raise BadInputError(
                f"version {version.version} lies at {uri[:120]!r}; the gate reads artefact stores only "
                f"({', '.join(sorted(_SCHEMES))})"
            )
        return get_artifact_repository(uri, self._settings.tracking_uri)

    def _aliases(self) -> dict[str, list[str]]:
        model = self._mlflow.get_registered_model(self._settings.model_name)
        found: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            found.setdefault(str(number), []).append(alias)
        return found

    @staticmethod
    def _version(one: Any, aliases: dict[str, list[str]]) -> Version:
        tags = one.tags
        return Version(
            str(one.version),
            one.run_id or "",
            tags.get(TAG_BUNDLE, ""),
            tags.get(TAG_VERDICT, ""),
            tuple(sorted(aliases.get(str(one.version), []))),
            next((tags[tag] for tag in SERVICE_TAGS if tags.get(tag)), ""),
            tags.get(TAG_COMPOSED, "") == "true",
            tags.get(TAG_FILE, ""),
            tags.get(TAG_SHA256, ""),
            tags.get(TAG_REASON, ""),
        )

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except LarderError:
            raise
        except Exception as error:  # the client turns a server's nonsense into errors of any library it is made of
            where, first = self._settings.tracking_uri, (str(error).splitlines() or [type(error).__name__])[0][:300]
            if "Max retries exceeded" in first:  # of the library's text, nothing but this helps a user
                first = "it cannot be reached; start it with `larder services up`, or set mlflow_tracking_uri"
            gone = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
            kind = NotFoundError if gone else UnavailableError
            raise kind(f"MLflow at {where} could not {what}: {first}") from (None if gone else error)


def _verify(version: Version, directory: Path) -> None:
    """Check that a directory is the bundle a version names, to the byte."""
    manifest = read_manifest(directory)
    if bundle_id_of(manifest) != version.bundle_id:
        raise BadInputError(
            f"version {version.version} names bundle {version.bundle_id}, its artefact is {bundle_id_of(manifest)}"
        )
    verify_files(directory, manifest)
