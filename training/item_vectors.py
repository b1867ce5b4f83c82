"""Files of frozen item embeddings: what an encoder made of texts or pictures, by item id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.contract import F32
from training.npz import write_npz


def write_item_vectors(path: Path, item_ids: Sequence[str], vectors: F32) -> None:
    """Write vectors, shape (len(item_ids), d), as an `.npz` without pickle."""
    write_npz(path, ids=np.array(item_ids, str), vectors=np.asarray(vectors, np.float32))


def read_item_vectors(path: Path, item_ids: Sequence[str]) -> F32:
    """Read the vectors of some items, scaled to length 1; zeros for those the file does not have.

    Returns
    -------
    ndarray
        Shape (len(item_ids), d).

    Raises
    ------
    BadInputError
        If the file is none of `write_item_vectors`, or holds numbers that are not finite.
    """
    from serving.candidates.text import unit_rows

    try:
        with np.load(path, allow_pickle=False) as file:
            ids, vectors = file["ids"], file["vectors"]
    except (OSError, KeyError, ValueError) as error:
        raise BadInputError(
            f"{path} is no file of item vectors ({error}); make one with `larder items encode`"
        ) from error
    if vectors.ndim != 2 or len(ids) != len(vectors) or not np.isfinite(vectors).all():
        raise BadInputError(f"{path} holds no finite vector for each of its {len(ids)} items, but {vectors.shape}")
    at = {str(item): row for row, item in enumerate(ids)}
    rows = np.fromiter((at.get(item, -1) for item in item_ids), np.int64, len(item_ids))
    found: F32 = np.where(rows[:, None] >= 0, vectors[rows], 0.0).astype(np.float32)
    return unit_rows(found)
