"""Turns a catalogue into a file of item vectors: texts or pictures through an encoder, then the main directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.errors import BadInputError
from serving.candidates.contract import F32
from training.encoders.contract import ImageModel, Picture, TextModel
from training.encoders.pictures import read_picture

#: Called with how many more items are done.
Progress = Callable[[float], None]
_CHUNK = 256


def item_texts(items: pa.Table) -> list[str]:
    """Title, category, tags and description of each item as one text."""
    rows = items.select(["title", "category", "tags", "description"]).to_pylist()
    return [
        ". ".join(
            part for part in (row["title"], row["category"], ", ".join(row["tags"] or ()), row["description"]) if part
        )
        for row in rows
    ]


def encode_texts(items: pa.Table, model: TextModel, on_progress: Progress | None = None) -> tuple[list[str], F32]:
    """Encode the texts of a catalogue (`ITEM_SCHEMA`); items without any are left out.

    Returns
    -------
    tuple
        Item ids and their vectors.
    """
    texts = item_texts(items)
    kept = [row for row, text in enumerate(texts) if text]
    ids = items["item_id"].to_pylist()
    parts = []
    for start in range(0, len(kept), _CHUNK):
        parts.append(model.encode([texts[row] for row in kept[start : start + _CHUNK]]))
        if on_progress:
            on_progress(len(parts[-1]))
    return [ids[row] for row in kept], _stacked(parts)


def encode_pictures(
    items: pa.Table, directory: Path, model: ImageModel, on_progress: Progress | None = None
) -> tuple[list[str], F32, list[str]]:
    """Encode the pictures of a catalogue.

    Parameters
    ----------
    directory
        Where they lie: an item's `image` names a file below it, else it is `<item_id>.png`, `.jpg` or `.webp`. Nothing
        outside it is read, whatever the catalogue says.

    Returns
    -------
    tuple
        Item ids, their vectors, and why pictures were left out: one line each.
    """
    root = directory.resolve()
    if not root.is_dir():
        raise BadInputError(f"there is no directory of pictures {directory}")
    ids: list[str] = []
    refused: list[str] = []
    pictures: list[Picture] = []
    parts = []
    rows = items.select(["item_id", "image"]).to_pylist()
    for done, row in enumerate(rows, start=1):
        path = _picture_of(root, row["item_id"], row["image"])
        if path is not None:
            try:
                pictures.append(read_picture(path))
                ids.append(row["item_id"])
            except BadInputError as error:
                refused.append(f"{row['item_id']}: {error}")
        if len(pictures) == _CHUNK or (done == len(rows) and pictures):
            parts.append(model.encode(pictures))
            pictures = []
        if on_progress:
            on_progress(1)
    return ids, _stacked(parts), refused


def main_directions(vectors: F32, dimensions: int) -> F32:
    """Centre vectors and keep their main directions, shape (n, at most `dimensions`)."""
    if vectors.shape[1] <= dimensions or len(vectors) < 2:
        return vectors
    from threadpoolctl import threadpool_limits

    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    with threadpool_limits(1, "blas"):  # sums in another order are other bytes
        _, directions = np.linalg.eigh(centred.T @ centred)
        kept: F32 = (centred @ directions[:, ::-1][:, :dimensions]).astype(np.float32)
    return kept


def _picture_of(root: Path, item_id: str, image: str | None) -> Path | None:
    names = [image] if image else [f"{item_id}.{ending}" for ending in ("png", "jpg", "jpeg", "webp")]
    for name in names:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    return None


def _stacked(parts: Sequence[F32]) -> F32:
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
