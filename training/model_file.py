"""Writes a tree model in the format its class is loaded from."""

from __future__ import annotations

from pathlib import Path

from serving.cascade.ranker import TreeRanker


def save_model(ranker: TreeRanker, path: Path) -> None:
    """Write the model without its calibration; equal models give equal bytes."""
    if ranker.kind == "catboost":
        for key in ("train_finish_time", "model_guid"):  # CatBoost stamps time and chance into the file
            ranker.model.get_metadata()[key] = ""
    ranker.model.save_model(str(path))
