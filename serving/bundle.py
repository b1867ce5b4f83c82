"""The bundle: what a model is on disk. A directory of safe formats with a manifest that names every byte.

`bundle_id` is the hash of the manifest without its volatile part (times, measured latencies, registry versions), so the
same seed and data give the same id. Nothing is parsed before its size and sha256 match; golden rows must reproduce
before a bundle may answer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError, LarderError, NotFoundError
from feature_repo.services import feature_list, service_hash
from serving.candidates.load import load_generator, read_arrays
from serving.cascade.features import retrieval_columns
from serving.cascade.fusion import Fusion
from serving.cascade.oblivious_trees import ObliviousTrees, oblivious_trees
from serving.cascade.purchase import CALIBRATION_FILE, GOLDEN_FILE, MODEL_FILES, PurchaseModel
from serving.cascade.ranker import (
    RANKER_FILES,
    Calibration,
    CatBoostRanker,
    FirstColumns,
    LightGBMRanker,
    TreeRanker,
    XGBoostRanker,
)
from serving.cascade.recommender import Policy, Recommender
from serving.cascade.rerank import Diversity, NewItems

FORMAT = 2
MANIFEST = "manifest.json"
#: Largest file a bundle may hold; anything larger is refused before it is read.
MAX_FILE_BYTES = 2 * 1024**3
_ALWAYS_READ = ("calibration.npz", "golden.npz", "popular.json")
ALLOWED_SUFFIXES = frozenset({".cbm", ".npz", ".json", ".parquet", ".txt"})


class FeatureListError(BadInputError):
    """A model takes other features than it would be given."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded and verified model."""

    bundle_id: str
    manifest: dict[str, Any]
    recommender: Recommender
    popular: tuple[str, ...]
    purchase: PurchaseModel | None = None

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return str(self.manifest["name"])


def bundle_id_of(manifest: dict[str, Any]) -> str:
    """Content hash of a manifest: everything but its `volatile` part."""
    content = {key: value for key, value in manifest.items() if key != "volatile"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a bundle except the manifest."""
    return {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }


def write_manifest(directory: Path, manifest: dict[str, Any]) -> str:
    """Seal a bundle directory: add format and files to the manifest, write it, return the `bundle_id`."""
    sealed = {"format": FORMAT, **manifest, "files": describe_files(directory)}
    (directory / MANIFEST).write_text(json.dumps(sealed, indent=1, sort_keys=True) + "\n", "utf-8")
    return bundle_id_of(sealed)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a manifest and check its shape.

    Raises
    ------
    NotFoundError
        If the directory holds no manifest.
    BadInputError
        If it is not JSON, of another format, or names files or features that may not be served.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise NotFoundError(f"no bundle in {directory}: {MANIFEST} is missing")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        files = {name: (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        service = manifest["feature_service"]
        columns = list(manifest["features"])
        generators = [g["name"] for g in manifest["generators"]]
        read = {
            *_ALWAYS_READ,
            RANKER_FILES[manifest["ranker"]["kind"]],
            *(g["file"] for g in manifest["generators"] if "file" in g),
        }
        if (fusion := manifest.get("fusion")) is not None:
            read.add(fusion["file"])
        services = [(service, manifest.get("feature_service_hash"))]
        if (purchase := manifest.get("purchase")) is not None:
            read |= {MODEL_FILES[purchase["kind"]], CALIBRATION_FILE, GOLDEN_FILE}
            services.append((purchase["feature_service"], purchase["feature_service_hash"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path} is not a bundle manifest: {error!r}") from None
    if manifest.get("format") != FORMAT:
        raise BadInputError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}")
    for name in files:
        if Path(name).name != name or Path(name).suffix not in ALLOWED_SUFFIXES:
            raise BadInputError(f"bundle file {name!r} is not allowed; formats: {', '.join(sorted(ALLOWED_SUFFIXES))}")
    if not read <= set(files):  # nothing is read that was not verified
        raise BadInputError(f"{path} does not list the files {', '.join(sorted(map(str, read - set(files))))}")
    for name, found in services:
        if found != service_hash(name):
            raise FeatureListError(
                f"the bundle was trained on another definition of {name!r} ({found}, here {service_hash(name)}); "
                "train it again"
            )
    if columns != [*feature_list(service), *retrieval_columns(generators)]:
        raise FeatureListError(f"the bundle's feature list differs from {service!r} with its generators' columns")
    return manifest


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Check size and sha256 of every file, and that there is no other.

    Raises
    ------
    BadInputError
        Naming the first file that differs.
    """
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    if present != set(manifest["files"]):
        odd = sorted(present ^ set(manifest["files"]))
        raise BadInputError(f"files of the bundle {directory} differ from its manifest: {', '.join(odd)}")
    for name, expected in manifest["files"].items():
        path = directory / name
        if path.is_symlink() or path.stat().st_size != expected["size"] or expected["size"] > MAX_FILE_BYTES:
            raise BadInputError(f"{path} has {path.stat().st_size} bytes, the manifest says {expected['size']}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
            raise BadInputError(f"{path} does not match its sha256; the bundle was changed or damaged")


def load_bundle(directory: Path) -> Bundle:
    """Verify and load a bundle, and reproduce its golden rows.

    Raises
    ------
    NotFoundError, BadInputError
        If anything is missing, changed, or scores differently than when it was made.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    try:
        return _parse(directory, manifest)
    except LarderError:
        raise
    except Exception as error:  # whatever the parsers of others' formats raise on content that does not fit together
        raise BadInputError(f"the bundle {directory} cannot be loaded: {type(error).__name__}: {error}") from error


def _parse(directory: Path, manifest: dict[str, Any]) -> Bundle:
    """Build what the verified files describe."""
    kind = manifest["ranker"]["kind"]
    calibration = read_arrays(directory / "calibration.npz")
    ranker = load_ranker(
        kind, directory / RANKER_FILES[kind], Calibration(calibration["score"], calibration["probability"])
    )
    # Of a ranker that was trained without the retrieval columns: how many it takes.
    columns = manifest["ranker"].get("columns")
    recommender = Recommender(
        tuple(load_generator(spec, directory) for spec in manifest["generators"]),
        ranker if columns is None else FirstColumns(ranker, columns, len(manifest["features"])),
        manifest["feature_service"],
        read_policy(manifest["policy"]),
        fusion=_read_fusion(directory, manifest),
    )
    golden = read_arrays(directory / "golden.npz")
    check_golden(recommender.ranker.score(golden["matrix"]), golden["score"], manifest["golden_tolerance"])
    popular = tuple(json.loads((directory / "popular.json").read_text("utf-8")))
    purchase = manifest.get("purchase")
    return Bundle(
        bundle_id_of(manifest),
        manifest,
        recommender,
        popular,
        None if purchase is None else load_purchase(directory, purchase),
    )


def _read_fusion(directory: Path, manifest: dict[str, Any]) -> Fusion | None:
    """Read how lists are fused; a bundle without it fuses by reciprocal ranks."""
    if (entry := manifest.get("fusion")) is None:
        return None
    curves = read_arrays(directory / entry["file"])["curves"].astype(np.float64, copy=False)
    if curves.ndim != 2 or len(curves) != len(manifest["generators"]) or not np.isfinite(curves).all():
        raise BadInputError(f"the fusion of {directory} has not one finite curve for each generator")
    return Fusion(curves)


def read_policy(entry: dict[str, Any]) -> Policy:
    """Read what may be shown; a bundle from before there was re-ranking has none."""
    return Policy(
        entry["repeats"],
        entry["candidates"],
        tuple(entry["quotas"]),
        Diversity(**entry.get("diversity", {})),
        NewItems(**entry.get("new_items", {})),
    )


def load_purchase(directory: Path, spec: dict[str, Any]) -> PurchaseModel:
    """Load a purchase model from verified files, and reproduce its golden rows.

    Raises
    ------
    BadInputError
        If the golden rows score differently than when it was made.
    """
    knots = read_arrays(directory / CALIBRATION_FILE)
    calibration = Calibration(knots["score"], knots["probability"])
    ranker = load_ranker(spec["kind"], directory / MODEL_FILES[spec["kind"]], calibration)
    golden = read_arrays(directory / GOLDEN_FILE)
    check_golden(ranker.score(golden["matrix"]), golden["score"], spec["golden_tolerance"])
    return PurchaseModel(ranker, spec["feature_service"], int(spec["horizon_us"]))


def load_ranker(kind: str, path: Path, calibration: Calibration) -> TreeRanker:
    """Load a model of a kind. The caller has verified the file's hash: a damaged one must never reach a parser."""
    return _LOADERS[kind](path, calibration)


def load_catboost(path: Path, calibration: Calibration) -> CatBoostRanker:
    """Load a `.cbm` file whose hash was verified."""
    from catboost import CatBoost, Pool

    model = CatBoost()
    model.load_model(str(path), format="cbm")
    return CatBoostRanker(model, calibration, Pool, compiled_trees(model))


def compiled_trees(model: Any) -> ObliviousTrees | None:
    """Read the trees of a CatBoost model; None where they do not give the library's scores, to the bit."""
    from catboost import CatBoostError

    try:
        with tempfile.TemporaryDirectory() as directory:
            described = Path(directory) / "model.json"
            model.save_model(str(described), format="json")
            trees = oblivious_trees(json.loads(described.read_bytes()))
    except (OSError, CatBoostError):
        # No file may be written, as in the gate's child process, or a leaf is no number, which JSON cannot say.
        return None
    if trees is None:
        return None
    rows = trees.probes(len(model.feature_names_))
    same = np.array_equal(trees.score(rows), model.predict(rows, prediction_type="RawFormulaVal", thread_count=1))
    return trees if same else None


def load_lightgbm(path: Path, calibration: Calibration) -> LightGBMRanker:
    """Load a LightGBM text file whose hash was verified: on a damaged one the library ends the process."""
    import lightgbm

    return LightGBMRanker(lightgbm.Booster(model_file=str(path)), calibration)


def load_xgboost(path: Path, calibration: Calibration) -> XGBoostRanker:
    """Load an XGBoost JSON file whose hash was verified."""
    import xgboost

    return XGBoostRanker(xgboost.Booster({"nthread": 1}, model_file=str(path)), calibration, xgboost.DMatrix)


_LOADERS: dict[str, Callable[[Path, Calibration], TreeRanker]] = {
    "catboost": load_catboost,
    "lightgbm": load_lightgbm,
    "xgboost": load_xgboost,
}


def check_golden(scores: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], tolerance: float) -> None:
    """Compare scores of the golden rows.

    Raises
    ------
    BadInputError
        If any differs by more than the tolerance.
    """
    worst = float(np.max(np.abs(scores - expected), initial=0.0))
    if not worst <= tolerance:
        raise BadInputError(f"golden rows score differently here: by {worst:.3g}, allowed {tolerance:.3g}")
