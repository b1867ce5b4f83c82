"""What the gate takes out of an MLflow artefact, and what it refuses to touch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployment.artefact import Listed, check_mlmodel, check_path, choose_model_file
from deployment.parser import Parsed
from deployment.plain_ranker import fetched
from deployment.registry import Version
from deployment.thresholds import load_thresholds
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings

MB = 1024.0**2
GOOD = [Listed("MLmodel", 500, False), Listed("model.cb", 4000, False), Listed("requirements.txt", 80, False)]


def test_the_one_model_file_is_taken() -> None:
    """Beside what MLflow lays around it."""
    found, kind = choose_model_file([*GOOD, Listed("metadata", None, True), Listed("metadata/x.yaml", 9, False)], MB)
    assert (found.path, kind) == ("model.cb", "catboost")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (Listed("model.pkl", 10, False), "may hold code"),
        (Listed("python_model.pkl", 10, False), "may hold code"),
        (Listed("model.skops", 10, False), "may hold code"),
        (Listed("run.py", 10, False), "may hold code"),
        (Listed("code", None, True), "folder"),
        (Listed("../../etc/passwd", 10, False), "leads out"),
        (Listed("/etc/passwd", 10, False), "leads out"),
        (Listed("a/../../b.cbm", 10, False), "leads out"),
        (Listed("second.cbm", 10, False), "one model file"),
    ],
)
def test_anything_else_is_refused(extra: Listed, said: str) -> None:
    """Even though only the model file would be downloaded: the version would not be what it looks like."""
    with pytest.raises(BadInputError, match=said):
        choose_model_file([*GOOD, extra], MB)


@pytest.mark.parametrize("size", [None, 0, -1, 3 * 1024**2])
def test_sizes(size: int | None) -> None:
    """Too large, empty, or of unknown size."""
    with pytest.raises(BadInputError, match="bytes"):
        choose_model_file([Listed("model.cb", size, False)], MB)


def mlmodel(flavor: str = "catboost", **python: object) -> str:
    lines = "".join(f"    {key}: {value}\n" for key, value in python.items())
    return (
        f"flavors:\n  python_function:\n{lines}    env: conda.yaml\n  {flavor}:\n    data: model.cb\n    code: null\n"
    )


def test_mlmodel_of_mlflow_itself() -> None:
    """As `mlflow.catboost.log_model` writes it."""
    check_mlmodel(mlmodel(loader_module="mlflow.catboost", data="model.cb"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (mlmodel(loader_module="evil_module", data="model.cb"), "that is code"),
        (mlmodel(loader_module="mlflow.pyfunc.model", python_model="python_model.pkl"), "that is code"),
        (mlmodel(loader_module="mlflow.catboost", code="code"), "folder of code"),
        (mlmodel(loader_module="mlflow.catboost", data="../../../etc/passwd"), "leads out"),
        (mlmodel(loader_module="mlflow.catboost", data="model.pkl"), "may hold code"),
        (mlmodel(loader_module="[mlflow.catboost]"), "that is code"),
        ("flavors: !!python/object/apply:os.system ['true']", "cannot be read"),
        ("flavors: 3", "cannot be read"),
        ("", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_mlmodel_that_names_code(text: str, said: str) -> None:
    """Loader modules, code folders, pickles, files elsewhere, YAML that makes objects."""
    with pytest.raises(BadInputError, match=said):
        check_mlmodel(text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_no_mlmodel_breaks_the_gate(text: str) -> None:
    """Whatever it says, it is taken or refused."""
    with suppress(BadInputError):
        check_mlmodel(text)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_an_accepted_path_stays_inside(path: str) -> None:
    """A path that passes cannot leave the directory it is joined to."""
    try:
        check_path(path)
    except BadInputError:
        return
    base = Path("/base/of/artefact")
    assert (base / path).is_relative_to(base) and ".." not in Path(path).parts


class _Registry:
    """Hands out what a store could, were it on our own disk."""

    def __init__(self, listing: list[Listed], files: dict[str, Path]) -> None:
        self.listing, self.files = listing, files

    def list_artefact(self, version: Version) -> list[Listed]:
        return self.listing

    def download(self, version: Version, path: str, directory: Path) -> Path:
        return self.files[path]


class _NoParser:
    """Must not be asked."""

    def model(self, path: Path, kind: str) -> Parsed:
        raise AssertionError("parsed")


def take(registry: _Registry, version: Version, tmp_path: Path) -> None:
    thresholds = load_thresholds(Settings(home=tmp_path, project="shop"))
    with fetched(registry, version, thresholds, _NoParser()):  # type: ignore[arg-type]
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symlink in place of the model is refused before it is read or parsed."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model.cbm").symlink_to(tmp_path / "secret")
    registry = _Registry([Listed("model.cbm", 6, False)], {"model.cbm": tmp_path / "model.cbm"})
    with pytest.raises(BadInputError, match="no plain file"):
        take(registry, Version("1", "run", "", "", ()), tmp_path)


def test_another_file_than_was_registered(tmp_path: Path) -> None:
    """The hash is checked before anything is parsed."""
    (tmp_path / "model.cbm").write_bytes(b"not what it was")
    registry = _Registry([Listed("model.cbm", 15, False)], {"model.cbm": tmp_path / "model.cbm"})
    version = Version("1", "run", "", "", (), model_file="model.cbm", model_sha256="0" * 64)
    with pytest.raises(BadInputError, match="sha256"):
        take(registry, version, tmp_path)
