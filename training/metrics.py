"""Ranking metrics of the protocol (DESIGN.md section 4): full ranking, one slate per user, nothing sampled. PURE.

These are the definitions, one list at a time. `slate_metrics.py` computes the same for many users at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import exp, factorial
from typing import Final

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

MULTINOMIAL_USERS: Final = 5_000
#: Poisson(1) by 16 random bits: mean 1, variance 1 to four digits, at most 8.
_POISSON: Final = np.searchsorted(
    np.cumsum([exp(-1.0) / factorial(i) for i in range(9)]), (np.arange(1 << 16) + 0.5) / (1 << 16)
).astype(np.float64)


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


def precision(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """Share of the first `k` places that hold a target; places that a short list leaves empty count as misses.

    Examples
    --------
    >>> precision(["a", "x", "b"], {"a", "b"}, 5)
    0.4
    """
    return len(set(slate[:k]) & set(targets)) / k


def hit_rate(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """1 if any of the first `k` is a target, else 0.

    Examples
    --------
    >>> hit_rate(["x", "a"], {"a", "b"}, 2), hit_rate(["x", "a"], {"a", "b"}, 1)
    (1.0, 0.0)
    """
    return float(not set(targets).isdisjoint(slate[:k]))


def reciprocal_rank(slate: Sequence[str], targets: Collection[str], k: int) -> float:
    """One over the rank of the first target among the first `k`, 0 without one (Voorhees 1999).

    Examples
    --------
    >>> reciprocal_rank(["x", "a", "b"], {"a", "b"}, 10)
    0.5
    """
    return next((1.0 / rank for rank, item in enumerate(slate[:k], start=1) if item in targets), 0.0)


def coverage(slates: Collection[Sequence[str]], catalogue_size: int, k: int) -> float:
    """Share of the catalogue that appears in anybody's first `k`.

    Examples
    --------
    >>> coverage([["a", "b"], ["a", "c"]], 10, 2)
    0.3
    """
    return len({item for slate in slates for item in slate[:k]}) / max(catalogue_size, 1)


def category_diversity(categories: Sequence[str], k: int) -> float:
    """Intra-list diversity by category (Ziegler et al. 2005): share of the pairs in a list that are of two categories.

    Parameters
    ----------
    categories
        Category of each item of the list, best first; "" if unknown: unlike any other.

    Returns
    -------
    float
        NaN for fewer than two items.

    Examples
    --------
    >>> category_diversity(["tea", "tea", "jam"], 10), category_diversity(["tea", "tea", "jam"], 2)
    (0.6666666666666667, 0.0)
    >>> category_diversity(["", "", "tea"], 10)
    1.0
    """
    shown = categories[:k]
    pairs = len(shown) * (len(shown) - 1) // 2
    alike = sum(n * (n - 1) // 2 for name, n in Counter(shown).items() if name)
    return 1 - alike / pairs if pairs else float("nan")


def gini(exposure: F64) -> float:
    """Gini coefficient of how often each item of the catalogue is shown: 0 all alike, near 1 one item has it all.

    Parameters
    ----------
    exposure
        Places each item of the catalogue holds, those never shown included, shape (n_items,).

    Returns
    -------
    float
        NaN if nothing is shown.

    Examples
    --------
    >>> gini(np.array([3.0, 3.0, 3.0])), gini(np.array([0.0, 4.0, 0.0, 0.0]))
    (0.0, 0.75)
    """
    total = exposure.sum()
    if not total:
        return float("nan")
    n = len(exposure)
    return float(np.sum((2.0 * np.arange(1, n + 1) - n - 1.0) * np.sort(exposure)) / (n * total))


def self_information(interactions: F64) -> F64:
    """How surprising each item is: -log2 of its share of the training interactions (Zhou et al. 2010), in bits.

    An item without interactions counts as one with a single one.

    Parameters
    ----------
    interactions
        Training interactions of each item, shape (n_items,), not all 0.

    Examples
    --------
    >>> self_information(np.array([4.0, 3.0, 1.0, 0.0])).round(3).tolist()
    [1.0, 1.415, 3.0, 3.0]
    """
    return np.asarray(np.log2(interactions.sum()) - np.log2(np.maximum(interactions, 1.0)), np.float64)


def head_items(interactions: F64, share: float = 0.8) -> npt.NDArray[np.bool_]:
    """Mark the head: the fewest items, most popular first, that make `share` of the training interactions.

    Of equally popular items the earlier ones come first.

    Parameters
    ----------
    interactions
        Training interactions of each item, shape (n_items,).

    Examples
    --------
    >>> head_items(np.array([1.0, 6.0, 2.0, 1.0])).tolist()
    [False, True, True, False]
    """
    order = np.argsort(-interactions, kind="stable")
    above = np.cumsum(interactions[order]) - interactions[order]  # interactions of more popular items
    head = np.zeros(len(interactions), np.bool_)
    # An item belongs to the head while those above it do not make the share; never one without interactions.
    head[order] = (above < share * interactions.sum() * (1.0 - 1e-12)) & (interactions[order] > 0)
    return head


def novelty(slates: Collection[Sequence[str]], interactions: Mapping[str, float], k: int) -> float:
    """Mean self-information of what is shown in the first `k` of all lists, in bits.

    Examples
    --------
    >>> novelty([["a", "b"], ["a", "c", "b"]], {"a": 4, "b": 2, "c": 2}, 2)
    1.5
    """
    bits = dict(zip(interactions, self_information(np.array([*interactions.values()], float)), strict=True))
    never = float(np.log2(sum(interactions.values())))
    return float(np.mean([bits.get(item, never) for slate in slates for item in slate[:k]]))


def tail_share(slates: Collection[Sequence[str]], interactions: Mapping[str, float], k: int) -> float:
    """Share of what is shown in the first `k` that is outside the head (`head_items`).

    Examples
    --------
    >>> tail_share([["a", "b"], ["a", "c"]], {"a": 8, "b": 1, "c": 1}, 2)
    0.5
    """
    in_head = head_items(np.array([*interactions.values()], float))
    head = {item for item, is_head in zip(interactions, in_head, strict=True) if is_head}
    return float(np.mean([item not in head for slate in slates for item in slate[:k]]))


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
    means = resampled_means(values[:, None], seed=seed, rounds=rounds)[:, 0]
    low, high = interval(means, level)
    return float(values.mean()), float(low), float(high)


def resampled_means(values: F64, *, seed: int, rounds: int = 2000) -> F64:
    """Means of bootstrap samples of users; all columns see the same samples, so differences are paired.

    Up to `MULTINOMIAL_USERS` users this is the multinomial bootstrap; for more the Poisson bootstrap (Chamandy et al.
    2012), whose weights are independent: several times faster, and the difference is of the order of one user.

    Parameters
    ----------
    values
        One row per user, shape (n, m), n > 0.

    Returns
    -------
    array
        Shape (rounds, m).
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((rounds, values.shape[1]))
    # Some rounds at a time: memory stays below 100 MB for any number of users that fits by itself.
    step = max(1, min(rounds, 5_000_000 // n))
    weights = np.empty((step, n))
    # The last column sums the weights. Column by column in memory: BLAS takes a third of the time on that.
    counted = np.asfortranarray(np.column_stack([values, np.ones(n)]))
    for first in range(0, rounds, step):
        part = weights[: rounds - first]
        if n <= MULTINOMIAL_USERS:
            part[:] = rng.multinomial(n, np.full(n, 1.0 / n), size=len(part))
        else:
            for row in part:  # one by one: what is in between stays in the processor's cache
                np.take(_POISSON, rng.integers(0, 1 << 16, n, dtype=np.uint16), out=row, mode="clip")
        sums = part @ counted
        means[first : first + len(part)] = sums[:, :-1] / sums[:, -1:]
    return means


def interval(means: F64, level: float = 0.95) -> F64:
    """Percentile interval of bootstrap means along the first axis: (low, high), shape (2, ...)."""
    tail = (1.0 - level) / 2.0
    return np.asarray(np.quantile(means, [tail, 1.0 - tail], axis=0))
