"""Writes what was fitted into a bundle directory that serving can load."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.services import feature_list, service_hash
from serving.bundle import write_manifest
from serving.candidates.contract import F32, CandidateGenerator
from serving.cascade.features import retrieval_columns
from serving.cascade.fusion import Fusion
from serving.cascade.items import ItemTable
from serving.cascade.ranker import RANKER_FILES, TreeRanker
from serving.cascade.recommender import Policy
from training.line_up import save_generators
from training.model_file import save_model
from training.npz import write_npz
from training.save_purchase import add_purchase

#: Scores of the same bytes by the same library differ by rounding at most.
GOLDEN_TOLERANCE = 1e-6
POPULAR_DEPTH = 200
FUSION_FILE = "fusion.npz"


def feature_columns(service: str, generators: tuple[CandidateGenerator, ...]) -> tuple[str, ...]:
    """Return the ranker's columns: the service's features, then each generator's score and rank."""
    return (*feature_list(service), *retrieval_columns([g.name for g in generators]))


def save_bundle(
    bundles_dir: Path,
    *,
    name: str,
    service: str,
    generators: tuple[CandidateGenerator, ...],
    ranker: TreeRanker,
    policy: Policy,
    fusion: Fusion | None = None,
    table: ItemTable,
    golden: F32,
    content: dict[str, Any],
    volatile: dict[str, Any],
    purchase: Path | None = None,
) -> Path:
    """Write a bundle and move it to `bundles_dir/<bundle_id>`.

    Parameters
    ----------
    fusion
        How the generators' lists become one; None: by reciprocal ranks.
    golden
        Feature rows whose scores are stored with the bundle, shape (m, f).
    content
        What describes the model and belongs to its identity (data hash, training end, parameters, metrics).
    volatile
        What does not (times, measured latencies).
    purchase
        Directory of a purchase model that the bundle carries (save_purchase.py); `content` must say `trained_until_us`.

    Returns
    -------
    Path
        The sealed directory; an existing one with the same id is kept.
    """
    bundles_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundles_dir, prefix=".new-") as work:
        directory = Path(work) / "bundle"
        directory.mkdir()
        entries = save_generators(generators, directory)
        save_model(ranker, directory / RANKER_FILES[ranker.kind])
        calibration = ranker.calibration
        write_npz(directory / "calibration.npz", score=calibration.score, probability=calibration.probability)
        write_npz(directory / "golden.npz", matrix=golden, score=ranker.score(golden))
        popularity = table.popularity("7d")
        ranked = np.lexsort((np.arange(len(table)), -popularity))
        popular = [table.ids[i] for i in ranked if table.available[i]][:POPULAR_DEPTH]
        (directory / "popular.json").write_text(json.dumps(popular) + "\n", "utf-8")
        if fusion is not None:
            write_npz(directory / FUSION_FILE, curves=fusion.curves)
        carried = (
            {} if purchase is None else {"purchase": add_purchase(purchase, directory, content["trained_until_us"])}
        )
        bundle_id = write_manifest(
            directory,
            {
                "name": name,
                "feature_service": service,
                "feature_service_hash": service_hash(service),
                "features": list(feature_columns(service, generators)),
                "generators": entries,
                "ranker": {"kind": ranker.kind},
                "policy": {
                    "repeats": policy.repeats,
                    "candidates": policy.candidates,
                    "quotas": list(policy.quotas),
                    "diversity": asdict(policy.diversity),
                    "new_items": asdict(policy.new_items),
                },
                "golden_tolerance": GOLDEN_TOLERANCE,
                "code_version": version("larder"),
                **content,
                **({} if fusion is None else {"fusion": {"file": FUSION_FILE}}),
                **carried,
                "volatile": volatile,
            },
        )
        target = bundles_dir / bundle_id
        if not target.exists():
            directory.rename(target)
    return target
