"""Ranking metrics of the protocol (DESIGN.md section 4): full ranking, one slate per user, nothing sampled. PURE."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def ndcg(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """Normalised discounted cumulative gain with binary relevance (Järvelin and Kekäläinen 2002).

    Parameters
    ----------
    slate
        Recommended items, best first, without repetition.
    targets
        Items that count as hits, also those no model could know; not empty.

    Examples
    --------
    >>> ndcg(["a", "b"], {"a"}, 10)
    1.0
    >>> round(ndcg(["x", "a"], {"a", "b"}, 10), 4)
    0.3869
    >>> ndcg([], {"a"}, 10)
    0.0
    """
    gain = sum(1.0 / np.log2(rank + 1) for rank, item in enumerate(slate[:k], start=1) if item in targets)
    ideal = sum(1.0 / np.log2(rank + 1) for rank in range(1, min(k, len(targets)) + 1))
    return float(gain / ideal)


def recall(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """Share of the targets among the first `k`.

    Examples
    --------
    >>> recall(["a", "x", "b"], {"a", "b", "c", "d"}, 2)
    0.25
    """
    return len(set(slate[:k]) & set(targets)) / len(targets)


def average_precision(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """Average precision at `k`, divided by min(k, number of targets).

    Examples
    --------
    >>> average_precision(["a", "x", "b"], {"a", "b"}, 10)
    0.8333333333333333
    """
    hits, total = 0, 0.0
    for rank, item in enumerate(slate[:k], start=1):
        if item in targets:
            hits += 1
            total += hits / rank
    return total / min(k, len(targets))


def coverage(slates: Collection[Sequence[str]], catalogue_size: int, k: int) -> float:
    """Share of the catalogue that appears in anybody's first `k`.

    Examples
    --------
    >>> coverage([["a", "b"], ["a", "c"]], 10, 2)
    0.3
    """
    return len({item for slate in slates for item in slate[:k]}) / max(catalogue_size, 1)


def auc(positive: F64, negative: F64) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney).

    Examples
    --------
    >>> float(auc(np.array([2.0, 1.0]), np.array([1.0, 0.0])))
    0.875
    """
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    up_to = np.searchsorted(ordered, positive, "right")
    return float(np.mean((below + up_to) / (2.0 * len(ordered))))


def per_user(slates: Mapping[str, Sequence[str]], targets: Mapping[str, Collection[str]]) -> dict[str, F64]:
    """Metrics of every user with targets, in the order of `targets`; a user without a slate scores 0."""
    rows = [(slates.get(user, ()), wanted) for user, wanted in targets.items()]
    return {
        "ndcg@10": np.array([ndcg(s, t, 10) for s, t in rows]),
        "recall@20": np.array([recall(s, t, 20) for s, t in rows]),
        "map@10": np.array([average_precision(s, t, 10) for s, t in rows]),
    }


def bootstrap_mean(values: F64, *, seed: int, rounds: int = 2000, level: float = 0.95) -> tuple[float, float, float]:
    """Mean with a percentile bootstrap interval over users.

    Parameters
    ----------
    values
        One value per user, shape (n,); for a paired comparison the differences.

    Returns
    -------
    tuple
        (mean, low, high); NaN for no users.
    """
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    # Multinomial counts are the bootstrap's resampling, without materialising the samples.
    counts = rng.multinomial(len(values), np.full(len(values), 1.0 / len(values)), size=rounds)
    means = counts @ values / len(values)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(values.mean()), float(low), float(high)
