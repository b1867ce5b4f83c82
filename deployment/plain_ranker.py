"""A data scientist's ranker: the one safe file of its MLflow artefact, hashed, and parsed by a child process first."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deployment.artefact import (
    MAX_MLMODEL_BYTES,
    MLMODEL,
    MODEL_KINDS,
    Listed,
    check_mlmodel,
    check_path,
    check_size,
    choose_model_file,
)
from deployment.parser import Parsed, Parser
from deployment.registry import Registry, Version
from deployment.thresholds import Thresholds
from feature_repo.errors import BadInputError

_MB = 1024.0**2


@dataclass(frozen=True)
class PlainRanker:
    """A model file that a child process has parsed and scored with.

    Attributes
    ----------
    path
        In the format it will be served in.
    sha256
        Of the file as it was registered.
    """

    path: Path
    kind: str
    sha256: str
    parsed: Parsed


@contextmanager
def fetched(registry: Registry, version: Version, thresholds: Thresholds, parser: Parser) -> Iterator[PlainRanker]:
    """Take the model file of a version; it lies in a temporary directory while the context is open.

    Raises
    ------
    BadInputError
        If the artefact holds anything that may be code, leads elsewhere, is too large, is not what was registered, or
        cannot be parsed.
    """
    with tempfile.TemporaryDirectory(prefix="larder-ranker-") as work:
        listing = registry.list_artefact(version)
        limit = thresholds.model_mb * _MB
        if version.model_file:
            chosen, kind = _named(listing, version.model_file, limit)
        else:
            chosen, kind = choose_model_file(listing, limit)
            described = next((one for one in listing if one.path == MLMODEL), None)
            if described is not None:
                check_size(described, MAX_MLMODEL_BYTES)
                text = _regular(registry.download(version, MLMODEL, Path(work)), MAX_MLMODEL_BYTES)
                check_mlmodel(text.read_text("utf-8", "replace"))
        path = _regular(registry.download(version, chosen.path, Path(work)), limit)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if version.model_sha256 and sha256 != version.model_sha256:
            raise BadInputError(
                f"{chosen.path} does not match the sha256 it was registered with: it was changed or damaged since"
            )
        parsed = parser.model(path, kind)
        if kind == "xgboost":
            path = Path(work) / "converted.json"
            path.write_bytes(parsed.converted)
        yield PlainRanker(path, kind, sha256, parsed)


def _named(listing: list[Listed], name: str, limit: float) -> tuple[Listed, str]:
    """Return the file a version names: nothing else of its run's files is looked at, or downloaded."""
    check_path(name)
    kind = MODEL_KINDS.get(PurePosixPath(name).suffix)
    found = next((one for one in listing if one.path == name and not one.is_dir), None)
    if kind is None or found is None:
        raise BadInputError(f"the version names {name[:80]!r}: no file of that name and a model's format is there")
    check_size(found, limit)
    return found, kind


def _regular(path: Path, limit: float) -> Path:
    """Return a file that is one: no link to another, and as large as it may be."""
    if path.is_symlink() or not path.is_file():
        raise BadInputError(f"{path.name} is no plain file")
    if path.stat().st_size > limit:
        raise BadInputError(f"{path.name} has {path.stat().st_size} bytes; it may have {limit:,.0f}")
    return path
