"""Which file of an MLflow artefact may be taken, and why an artefact is refused. PURE: nothing is opened here.

`mlflow.<flavour>.load_model` can run code that lies in the artefact (pickles, `loader_module`, `code/`), and follows
`data: ../..` (TRAPS). The gate never calls it: it looks at the list of files, takes the one model file in a format
that holds no code, and refuses whatever else it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from feature_repo.errors import BadInputError

#: Suffix to kind of model: the formats that hold trees and nothing else.
MODEL_KINDS: Final = {
    ".cbm": "catboost",
    ".cb": "catboost",
    ".txt": "lightgbm",
    ".lgb": "lightgbm",
    ".json": "xgboost",
    ".ubj": "xgboost",
    ".xgb": "xgboost",
}
#: What MLflow lays beside a model; none of it is downloaded but the first.
MLMODEL: Final = "MLmodel"
_BESIDE: Final = frozenset(
    {
        MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json",
        "serving_input_example.json", "serving_input_payload.json", "registered_model_meta",
    }
)  # fmt: skip
_BESIDE_FOLDERS: Final = frozenset({"metadata"})
_LOADERS: Final = frozenset({"mlflow.catboost", "mlflow.lightgbm", "mlflow.xgboost"})
MAX_FILES: Final = 200
MAX_MLMODEL_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of an artefact's listing; `size` is None where the store does not say."""

    path: str
    size: int | None
    is_dir: bool


def check_path(path: str) -> None:
    """Refuse a path that leaves the artefact.

    Raises
    ------
    BadInputError
        If it is absolute, goes up, or holds what no honest name does.
    """
    parts = PurePosixPath(path).parts
    if not path or path.startswith(("/", "~")) or ".." in parts or "\\" in path or "\0" in path or ":" in path:
        raise BadInputError(f"the artefact names {path[:80]!r}, which leads out of it")


def choose_model_file(listing: Sequence[Listed], max_bytes: float) -> tuple[Listed, str]:
    """Return the model file of a listing, and its kind.

    Raises
    ------
    BadInputError
        If there is none or more than one, if it is too large, or if anything else lies in the artefact.
    """
    if len(listing) > MAX_FILES:
        raise BadInputError(f"the artefact has more than {MAX_FILES} files; a model of trees is one")
    found = []
    for one in listing:
        check_path(one.path)
        name, top = PurePosixPath(one.path), PurePosixPath(one.path).parts[0]
        if top in _BESIDE_FOLDERS or name.name in _BESIDE:
            continue
        if one.is_dir:
            raise BadInputError(
                f"the artefact has a folder {one.path[:80]!r}; code and other folders are not taken. Log the model "
                "without `code_paths`"
            )
        if name.suffix not in MODEL_KINDS:
            raise BadInputError(
                f"the artefact has a file {one.path[:80]!r}, which may hold code; allowed are "
                f"{', '.join(MODEL_KINDS)}. Log the library's own model (a Booster, not a scikit-learn wrapper)"
            )
        found.append(one)
    if len(found) != 1:
        names = ", ".join(one.path[:80] for one in found) or "none"
        raise BadInputError(f"the artefact must hold one model file ({', '.join(MODEL_KINDS)}), it has: {names}")
    check_size(found[0], max_bytes)
    return found[0], MODEL_KINDS[PurePosixPath(found[0].path).suffix]


def check_size(one: Listed, max_bytes: float) -> None:
    """Refuse a file that is too large, or whose size the store does not say.

    Raises
    ------
    BadInputError
        Naming both sizes.
    """
    if one.size is None or not 0 < one.size <= max_bytes:
        raise BadInputError(f"{one.path[:80]!r} has {one.size} bytes; a model file may have 1 to {max_bytes:,.0f}")


def check_mlmodel(text: str) -> None:
    """Refuse an MLmodel file that names code to run or files elsewhere. We would follow neither; somebody else might.

    Raises
    ------
    BadInputError
        Naming the entry.
    """
    try:
        document = yaml.safe_load(text)
        flavors: dict[str, dict[str, Any]] = document["flavors"]
        entries = [
            (f"{flavor}.{key}", value) for flavor, values in flavors.items() for key, value in dict(values).items()
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{MLMODEL} cannot be read: {type(error).__name__}") from None
    for name, value in entries:
        key = name.rpartition(".")[2]
        if key == "loader_module" and str(value) not in _LOADERS:
            raise BadInputError(f"{MLMODEL} wants {str(value)[:80]!r} to load the model ({name}): that is code")
        if key == "code" and value:
            raise BadInputError(f"{MLMODEL} names a folder of code ({name}: {str(value)[:80]!r})")
        if key in {"data", "model_data", "model_path", "pickled_model"} and value is not None:
            check_path(str(value))
            if PurePosixPath(str(value)).suffix not in MODEL_KINDS:
                raise BadInputError(f"{MLMODEL} names the file {str(value)[:80]!r} ({name}), which may hold code")
