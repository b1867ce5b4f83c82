"""One pass over the held-out window that all checks of quality and stability share: slates, scores and rows by user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deployment.blame import surroundings
from feature_repo.asof import AsOfReader
from feature_repo.errors import BadInputError
from feature_repo.rows import UserRows
from feature_repo.settings import Settings
from serving.bundle import Bundle
from serving.candidates.contract import F32, I32
from serving.cascade.features import Asked, ask
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender
from training.baselines import baselines
from training.evaluate import DEPTH, auc_items
from training.evaluate_bundle import held_out_window
from training.metrics import F64, auc, average_precision, ndcg
from training.offline_table import offline_item_table
from training.split import I64, Log, Window, drawn
from training.train import read_log

CANDIDATE, CHAMPION = "candidate", "champion"
#: The simple recommenders a model must beat.
BASELINES = ("own_history", "popularity_7d")
QUARTERS = 4


@dataclass(frozen=True)
class AucRows:
    """Feature rows of every warm user's targets and 100 drawn items: scored again and again, under noise and nulls.

    Attributes
    ----------
    matrix
        Rows of all users, user after user, targets first, shape (m, f).
    bounds
        Where each user's rows begin and end, and how many of them are targets, shape (n_warm, 3).
    missing
        Targets of each user that the table does not know, shape (n_warm,); they rank below everything.
    """

    matrix: F32
    bounds: I64
    missing: I64

    def auc(self, scores: F64) -> F64:
        """AUC of each warm user by the scores of all rows, shape (n_warm,)."""
        out = np.empty(len(self.bounds))
        for i, ((start, end, positives), missing) in enumerate(zip(self.bounds, self.missing, strict=True)):
            mine = scores[start:end]
            positive = np.concatenate([mine[:positives], np.full(missing, -np.inf)])
            out[i] = auc(positive, mine[positives:])
        return out


@dataclass(frozen=True)
class Measured:
    """What was measured, per user in the order of `users`.

    Attributes
    ----------
    ndcg, average_precision
        Model to nDCG@10 and average precision at 10, shape (n,).
    warm
        Who was known at the start of the window, shape (n,).
    events
        How much was known of each: events folded into the user's row, shape (n,).
    quarter
        In which quarter of the window each took something first, shape (n,).
    auc
        Of warm users, shape (n_warm,).
    shown, taken
        Probability of each item shown and whether it was taken, shape (n, DEPTH); NaN where nothing was ranked.
    hard_auc
        Model to AUC of what was taken against the other candidates, the same rows for both; users with both kinds only.
    compared
        Empty, or why the champion could not be measured on this window.
    """

    window: Window
    users: tuple[str, ...]
    ndcg: dict[str, F64]
    average_precision: dict[str, F64]
    warm: npt.NDArray[np.bool_]
    events: F64
    quarter: I64
    rows: AucRows
    auc: F64
    shown: F64
    taken: F64
    hard_auc: dict[str, F64]
    compared: str = ""


@dataclass
class _Notes:
    """What the pass writes down as it goes."""

    lists: dict[str, list[list[str]]] = field(default_factory=dict)
    matrices: list[F32] = field(default_factory=list)
    bounds: list[tuple[int, int, int]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    hard: dict[str, list[float]] = field(default_factory=lambda: {CANDIDATE: [], CHAMPION: []})
    rows: int = 0


def measure(
    settings: Settings,
    bundle: Bundle,
    champion: Bundle | None,
    users: int,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Measured:
    """Grade a bundle, the champion and the simple baselines on the same users of a window none of them has seen.

    The window is the candidate's own; a champion that was trained until later moves its start, for a model must not be
    judged by events it learned from.

    Parameters
    ----------
    users
        Users at most, drawn by the seed.

    Raises
    ------
    BadInputError
        If nobody took anything in the window.
    UnavailableError
        If events or features of the project cannot be read.
    """
    with surroundings("read the project's events"):
        log = read_log(settings)
    target = bundle.manifest["target"]
    window, why = shared_window(bundle, champion)
    targets = log.targets(window, target)
    if why or not targets:
        why = why or "nobody took anything after the champion's training ended"
        window, champion = held_out_window(bundle), None
        targets = log.targets(window, target)
    if not targets:
        raise BadInputError(f"no {target} events in the test window: nothing to judge the model on")
    targets = drawn(targets, users, [settings.seed, 3])
    with surroundings("read the project's features"):
        reader = AsOfReader(settings, window.start_us)
        table = offline_item_table(reader, window.start_us)
    simple = {name: one for name, one in baselines(bundle.recommender.generators).items() if name in BASELINES}
    models = {CANDIDATE: bundle.recommender} | ({CHAMPION: champion.recommender} if champion else {})
    notes, rng, now = _Notes(), np.random.default_rng([settings.seed, 1]), window.start_us
    shown, taken = (np.full((len(targets), DEPTH), np.nan) for _ in range(2))
    warm, events = np.zeros(len(targets), np.bool_), np.zeros(len(targets))
    repeats = bundle.recommender.policy.repeats == "keep"
    for row, (user_id, wanted) in enumerate(targets.items()):
        user = reader.user(user_id, now)
        warm[row], events[row] = user.known, _events_of(user)
        asked = {}
        for name, model in models.items():
            if user.known:
                asked[name] = ask(model.generators, model.policy.quotas, user, table, now)
            draft = model.draft(user, table, now, k=DEPTH, asked=asked.get(name))
            slate = model.finish(draft, reader.pairs(user_id, draft.item_ids, now))
            notes.lists.setdefault(name, []).append([item.item_id for item in slate.items])
            if name == CANDIDATE:
                ranked = slate.items[: len(slate.ranked)]
                shown[row, : len(ranked)] = [item.score for item in ranked]
                taken[row, : len(ranked)] = [item.item_id in wanted for item in ranked]
                candidates = draft.candidates.items
        for name, baseline in simple.items():
            notes.lists.setdefault(name, []).append(baseline(user, table, now, repeats=repeats)[:DEPTH])
        if user.known:
            _note_auc(notes, models[CANDIDATE], reader, table, user, asked[CANDIDATE], wanted, now, rng)
            if champion is not None:
                _note_hard(notes, models, reader, table, user, asked, candidates, wanted, now)
        report("measure", row + 1, len(targets))
    width = len(bundle.recommender.columns)
    matrix = np.vstack(notes.matrices) if notes.matrices else np.empty((0, width), np.float32)
    rows = AucRows(matrix, np.array(notes.bounds, np.int64).reshape(-1, 3), np.array(notes.missing, np.int64))
    pairs = {name: list(zip(lists, targets.values(), strict=True)) for name, lists in notes.lists.items()}
    return Measured(
        window,
        tuple(targets),
        {name: np.array([ndcg(s, t, 10) for s, t in both]) for name, both in pairs.items()},
        {name: np.array([average_precision(s, t, 10) for s, t in both]) for name, both in pairs.items()},
        warm,
        events,
        _quarters(log, window, target, tuple(targets)),
        rows,
        rows.auc(bundle.recommender.ranker.score(matrix)),
        shown,
        taken,
        {name: np.array(values) for name, values in notes.hard.items()},
        why,
    )


def shared_window(bundle: Bundle, champion: Bundle | None) -> tuple[Window, str]:
    """Return the window that neither model has learned from, and why there is none (the candidate's own then)."""
    own = held_out_window(bundle)
    if champion is None:
        return own, ""
    start = max(own.start_us, held_out_window(champion).start_us)
    if start >= own.end_us:
        return own, "the champion was trained until after this model's test window ends: it has seen the answers"
    return Window(start, own.end_us), ""


def _note_auc(
    notes: _Notes,
    model: Recommender,
    reader: AsOfReader,
    table: ItemTable,
    user: UserRows,
    asked: Asked,
    wanted: set[str],
    now: int,
    rng: np.random.Generator,
) -> None:
    """Keep the feature rows of the user's AUC: the draw of `training.evaluate.user_auc`."""
    items, positives, missing = auc_items(table, wanted, rng)
    pairs = reader.pairs(user.user_id, [table.ids[i] for i in items], now)
    notes.matrices.append(model.matrix(user, table, items, pairs, asked.features(items), now))
    notes.bounds.append((notes.rows, notes.rows + len(items), positives))
    notes.missing.append(missing)
    notes.rows += len(items)


def _note_hard(
    notes: _Notes,
    models: dict[str, Recommender],
    reader: AsOfReader,
    table: ItemTable,
    user: UserRows,
    asked: dict[str, Asked],
    candidates: I32,
    wanted: set[str],
    now: int,
) -> None:
    """Both models' AUC on the candidate's own candidates: what was taken against at most 100 others."""
    known = table.lookup(sorted(wanted))
    positive = np.intersect1d(known[known >= 0], candidates)
    negative = np.setdiff1d(candidates, positive)
    if not len(positive) or not len(negative):
        return
    # A generator of its own: the draw of the AUC must not depend on whether there is a champion.
    draw = np.random.default_rng([len(notes.missing), len(candidates)])
    negative = draw.choice(negative, min(100, len(negative)), replace=False)
    items = np.concatenate([positive, negative]).astype(np.int32)
    pairs = reader.pairs(user.user_id, [table.ids[i] for i in items], now)
    for name, model in models.items():
        matrix = model.matrix(user, table, items, pairs, asked[name].features(items), now)
        scores = model.ranker.score(matrix)
        notes.hard[name].append(auc(scores[: len(positive)], scores[len(positive) :]))


def _events_of(user: UserRows) -> float:
    """How much is known of a user: what was viewed, bought and rated."""
    return float(len(user.recent.item_ids)) if user.known else 0.0


def _quarters(log: Log, window: Window, target: str, users: tuple[str, ...]) -> I64:
    """Return the quarter of the window in which each user took something first."""
    keep = (log.time_us >= window.start_us) & (log.time_us < window.end_us) & (log.event_type == target)
    first: dict[str, int] = {}
    for user, time in zip(log.user[keep], log.time_us[keep].tolist(), strict=True):
        first[user] = min(time, first.get(user, time))
    length = max(window.end_us - window.start_us, 1)
    return np.array([(first[user] - window.start_us) * QUARTERS // length for user in users], np.int64)
