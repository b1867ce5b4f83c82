"""Approximate search of the largest inner products among many vectors, by FAISS; fewer are scanned exactly.

An inverted file: vectors lie in lists around centroids, and a search looks into the lists whose centroids promise most.
Vectors are put into lists by distance and lists are chosen by inner product: on factors of very different length that
finds as much in a fraction of the time of lists filled by inner product, and far more than HNSW. Below `EXACT_BELOW`
vectors serving multiplies with NumPy, which takes as long as FAISS's exact index (`larder bench vector_index`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from serving.candidates.contract import F32, I32, CandidateGenerator
from serving.candidates.contrastive import Contrastive
from serving.candidates.factors import ItemFactors

EXACT_BELOW = 50_000
#: Share of the lists a search looks into.
_PROBED = 1 / 8
#: Vectors per centroid that k-means learns from.
_SAMPLE = 64
_ITERATIONS = 10

G = TypeVar("G", bound=CandidateGenerator)


def _faiss() -> Any:
    import faiss

    faiss.omp_set_num_threads(1)  # sums in one order; and requests share the cores already
    return faiss


def cluster(vectors: F32, *, seed: int) -> tuple[F32, I32]:
    """Divide vectors into lists, as a bundle stores them.

    Parameters
    ----------
    vectors
        Shape (n, d).

    Returns
    -------
    tuple
        Centroids, shape (about 2 sqrt(n), d), and the list of each vector, shape (n,). Equal inputs give equal bytes.
    """
    faiss = _faiss()
    lists = min(len(vectors), 2 ** round(np.log2(2 * np.sqrt(len(vectors)))))
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        lists,
        niter=_ITERATIONS,
        seed=seed,
        max_points_per_centroid=_SAMPLE,
        min_points_per_centroid=1,
    )
    kmeans.train(np.ascontiguousarray(vectors))
    by_distance = faiss.IndexFlatL2(vectors.shape[1])
    by_distance.add(kmeans.centroids)
    _, nearest = by_distance.search(np.ascontiguousarray(vectors), 1)
    return np.asarray(kmeans.centroids, np.float32), nearest.ravel().astype(np.int32)


class VectorIndex:
    """An inverted file over vectors; holds a copy of them.

    Parameters
    ----------
    vectors, centroids, lists
        Shapes (n, d), (n_lists, d) and (n,), as of `cluster`.
    """

    def __init__(self, vectors: F32, centroids: F32, lists: I32) -> None:
        faiss = _faiss()
        self._coarse = faiss.IndexFlatIP(vectors.shape[1])  # the index only borrows it: it has to live as long
        self._coarse.add(np.ascontiguousarray(centroids))
        self._index = faiss.IndexIVFFlat(self._coarse, vectors.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        self._index.nprobe = max(1, round(len(centroids) * _PROBED))
        rows, where = np.ascontiguousarray(vectors), np.ascontiguousarray(lists, np.int64)
        self._index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(where))

    def search(self, vector: F32, k: int) -> npt.NDArray[np.int64]:
        """Positions of the `k` vectors of the largest inner product found, best first; fewer where lists are short."""
        _, found = self._index.search(np.ascontiguousarray(vector[None, :]), k)
        positions: npt.NDArray[np.int64] = found[0][found[0] >= 0]
        return positions


def with_index(generator: G) -> G:
    """Give a generator over many vectors its index; any other is returned as it is."""
    if isinstance(generator, ItemFactors | Contrastive) and len(generator.lists):
        return replace(generator, index=VectorIndex(generator.searched, generator.centroids, generator.lists))
    return generator
