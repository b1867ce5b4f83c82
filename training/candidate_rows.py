"""Ranker rows: what the first stage brought at a cut, labelled by what the users took afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo.asof import AsOfReader
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.training_frame import training_frame
from serving.candidates.contract import F32, CandidateGenerator
from serving.cascade.features import ask
from serving.cascade.fusion import Fusion
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Policy
from training.fusion import ListRanks, list_ranks
from training.split import Window


@dataclass(frozen=True)
class RankerRows:
    """Rows grouped by user, users in order.

    Attributes
    ----------
    matrix
        Features in the ranker's order, shape (n, f).
    label
        1 where the user took the item in the label window, shape (n,); positives are retrieved ones only.
    weight
        How many rows of the full catalogue the row stands for (inverse sampling rate), shape (n,); for calibration.
    group
        Number of the slate the row belongs to, ascending, shape (n,).
    """

    matrix: F32
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    group: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which rows of a slate the ranker learns from.

    Attributes
    ----------
    hard
        Negatives drawn from the candidates (all if there are fewer).
    easy
        Negatives drawn uniformly from the rest of the catalogue, so that scores mean something there, too.
    """

    hard: int = 80
    easy: int = 40


def candidate_rows(
    settings: Settings,
    reader: AsOfReader,
    table: ItemTable,
    generators: tuple[CandidateGenerator, ...],
    policy: Policy,
    window: Window,
    targets: dict[str, set[str]],
    *,
    service: str,
    sampling: Sampling,
    seed: list[int],
    fusion: Fusion | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, RankerRows, list[ListRanks]]:
    """Retrieve, label and sample the rows of one rolling window, then join the features as of the cut.

    The state features come through Feast's point-in-time join (`training_frame`), the retrieval features from the
    generators fitted before the cut.

    Parameters
    ----------
    fusion
        How the generators' lists become one, learned on an earlier window; None: by reciprocal ranks.

    Returns
    -------
    tuple
        `user_id`, `item_id` and `event_timestamp` of each row; the rows, in the same order; and what the next window
        may learn a fusion from.
    """
    rng, rank_rng = np.random.default_rng(seed), np.random.default_rng([*seed, 1])
    ranks: list[ListRanks] = []
    users: list[str] = []
    items: list[npt.NDArray[np.int32]] = []
    retrieval: list[F32] = []
    labels: list[npt.NDArray[np.float32]] = []
    weights: list[npt.NDArray[np.float32]] = []
    for done, (user_id, wanted) in enumerate(targets.items()):
        user = reader.user(user_id, window.start_us)
        asked = ask(generators, policy.quotas, user, table, window.start_us)
        found = asked.merge(policy.candidates, fusion=fusion).items
        positive = _known(table.lookup(sorted(wanted)))
        chosen, weight = _sample(found, positive, len(table), sampling, rng)
        if user.known:
            ranks.append(list_ranks(asked, positive, rank_rng))
        users.append(user_id)
        items.append(chosen)
        retrieval.append(asked.features(chosen))
        weights.append(weight)
        labels.append(np.isin(chosen, positive).astype(np.float32))
        if on_progress:
            on_progress(done + 1, len(targets))
    sizes = [len(one) for one in items]
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.array(users, object), sizes),
            "item_id": _ids(table, items),
            "event_timestamp": pd.Timestamp(window.start_us, unit="us", tz="UTC"),
        }
    )
    features = training_frame(frame, service, settings)
    state = features.iloc[:, -len(feature_list(service)) :].to_numpy(np.float32)
    rows = RankerRows(
        np.ascontiguousarray(np.hstack([state, np.vstack(retrieval)])),
        np.concatenate(labels),
        np.concatenate(weights),
        np.repeat(np.arange(len(users)), sizes),
    )
    return frame, rows, ranks


def stack_rows(parts: Iterable[RankerRows]) -> RankerRows:
    """Concatenate rows of several windows; their groups stay apart."""
    parts = list(parts)
    offsets = np.cumsum([0, *(int(part.group[-1]) + 1 for part in parts)])
    return RankerRows(
        np.vstack([part.matrix for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.group + offset for part, offset in zip(parts, offsets, strict=False)]),
    )


def _sample(
    found: npt.NDArray[np.int32],
    positive: npt.NDArray[np.int32],
    catalogue: int,
    sampling: Sampling,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Choose all retrieved positives, some hard negatives and some easy ones; ascending, with weights.

    What was taken but not retrieved is left out: nobody will rank it, and kept whole beside thinly drawn negatives it
    taught that "not retrieved" is a good sign (docs/models.md).
    """
    missed, positive = np.setdiff1d(positive, found), np.intersect1d(positive, found)
    hard_all = np.setdiff1d(found, positive)
    hard = rng.choice(hard_all, sampling.hard, replace=False) if len(hard_all) > sampling.hard else hard_all
    taken = np.union1d(found, missed)
    easy = np.setdiff1d(rng.integers(0, catalogue, sampling.easy), taken)
    items = np.concatenate([positive, hard, easy]).astype(np.int32)
    weight = np.concatenate(
        [
            np.ones(len(positive)),
            np.full(len(hard), len(hard_all) / max(len(hard), 1)),
            np.full(len(easy), (catalogue - len(taken)) / max(len(easy), 1)),
        ]
    ).astype(np.float32)
    order = np.argsort(items)
    return items[order], weight[order]


def _known(indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return indices[indices >= 0]


def _ids(table: ItemTable, items: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.object_]:
    return np.array(table.ids, object)[np.concatenate(items)]
