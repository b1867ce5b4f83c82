"""Keeps the purchase model that a comparison chose, and puts it into a bundle."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from serving.bundle import describe_files, load_purchase
from serving.cascade.purchase import CALIBRATION_FILE, GOLDEN_FILE, MODEL_FILES
from serving.cascade.ranker import TreeRanker
from training.model_file import save_model
from training.npz import write_npz

if TYPE_CHECKING:
    from training.compare_classifiers import Comparison

SPEC = "spec.json"
GOLDEN_ROWS = 64
#: Scores of the same bytes by the same library differ by rounding at most; XGBoost's are float32.
GOLDEN_TOLERANCE = 1e-5


def purchase_dir(settings: Settings) -> Path:
    """Where a project's chosen purchase model is kept until a bundle carries it."""
    return settings.root / "purchase"


def save_purchase(settings: Settings, comparison: Comparison, data_hash: str) -> Path:
    """Write the winner of a comparison, in the place of an earlier one, and load it once.

    Returns
    -------
    Path
        Its directory; equal comparisons write equal bytes.
    """
    winner, config = comparison.winner, comparison.config
    kind = winner.classifier.name.lower()
    target = purchase_dir(settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = comparison.selection.rows.matrix
    golden = rows[:: max(len(rows) // GOLDEN_ROWS, 1)][:GOLDEN_ROWS]
    knots = winner.calibration
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".purchase-") as work:
        directory = Path(work) / "purchase"
        directory.mkdir()
        # Only what may be served wins, and that is trees.
        save_model(cast(TreeRanker, winner.model), directory / MODEL_FILES[kind])
        write_npz(directory / CALIBRATION_FILE, score=knots.score, probability=knots.probability)
        write_npz(directory / GOLDEN_FILE, matrix=golden, score=np.asarray(winner.model.score(golden)))
        spec: dict[str, Any] = {
            "kind": kind,
            "feature_service": config.service,
            "feature_service_hash": service_hash(config.service),
            "features": list(feature_list(config.service)),
            "target": config.target,
            "horizon_us": comparison.test.window.end_us - comparison.test.window.start_us,
            "trained_until_us": comparison.selection.window.end_us,
            "golden_tolerance": GOLDEN_TOLERANCE,
            "seed": settings.seed,
            "data_hash": data_hash,
        }
        load_purchase(directory, spec)
        (directory / SPEC).write_text(
            json.dumps({**spec, "files": describe_files(directory)}, indent=1, sort_keys=True) + "\n", "utf-8"
        )
        shutil.rmtree(target, ignore_errors=True)
        directory.rename(target)
    return target


def read_purchase(source: Path, test_start_us: int) -> dict[str, Any]:
    """Read and check a kept purchase model; return its entry for a bundle's manifest, with its `files`.

    Parameters
    ----------
    test_start_us
        Start of the bundle's test window.

    Raises
    ------
    NotFoundError
        If there is none.
    BadInputError
        If its files were changed, or it learned from the bundle's test window.
    """
    if not (source / SPEC).is_file():
        raise NotFoundError(f"there is no purchase model in {source}; `larder compare classifiers` makes one")
    spec: dict[str, Any] = json.loads((source / SPEC).read_text("utf-8"))
    found = {name: entry for name, entry in describe_files(source).items() if name != SPEC}
    if found != spec["files"]:
        raise BadInputError(f"the purchase model in {source} was changed; run `larder compare classifiers` again")
    if spec["trained_until_us"] > test_start_us:
        raise BadInputError(
            f"the purchase model in {source} learned from the test window of this training; run `larder compare "
            "classifiers` again with a longer --horizon-days"
        )
    return spec


def add_purchase(source: Path, bundle: Path, test_start_us: int) -> dict[str, Any]:
    """Copy a kept purchase model into a bundle that is being written; return its entry in the manifest."""
    spec = read_purchase(source, test_start_us)
    for name in spec.pop("files"):  # the manifest lists them with all others
        shutil.copyfile(source / name, bundle / name)
    return spec
