"""Fits every classifier on the same rows and picks the one that may serve the purchase score (docs/purchase.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.datasets import read_events
from feature_repo.errors import BadInputError
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from serving.cascade.ranker import F64, Calibration
from training.candidate_rows import RankerRows, stack_rows
from training.classifier_metrics import Ordered, best_f1_threshold, bootstrap_areas, confusion, interval
from training.classifiers import CLASSIFIERS, Classifier, Scorer
from training.fit_ranker import fit_calibration
from training.offline_table import offline_item_table
from training.purchase_rows import Draw, Pairs, draw_pairs, join_features
from training.split import Log, Split, Window, split_by_horizon

#: Called with (what is being done, done, total).
Progress = Callable[[str, int, int], None]
#: Rows scored at once when inference is timed: a request.
REQUEST_ROWS = 300
#: Times within this factor of the fastest count as equally fast: measured times vary from run to run.
SAME_SPEED = 1.25


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Everything that decides the table, beside the data and the seed.

    Attributes
    ----------
    horizon_days
        Days after the cut in which a purchase counts; None: the time the last `test_share` of the events took.
    windows
        Rolling cuts to learn from, at most.
    train, judge
        Pairs drawn at each of them; at the selection cut and at the test cut.
    effort
        Share of the trees that are grown: below 1 for a quick look.
    rounds
        Bootstrap draws of users.
    """

    service: str = "purchase_v1"
    target: str = "purchase"
    horizon_days: float | None = None
    test_share: float = 0.1
    windows: int = 5
    train: Draw = field(default_factory=lambda: Draw(3_000, 4_000, 4_000))
    judge: Draw = field(default_factory=lambda: Draw(40_000, 15_000, 15_000))
    effort: float = 1.0
    rounds: int = 300


@dataclass(frozen=True)
class Judged:
    """The rows of one cut and how they were drawn."""

    window: Window
    pairs: Pairs
    rows: RankerRows


@dataclass(frozen=True)
class Result:
    """One classifier, judged.

    Attributes
    ----------
    figures
        Metric to value on the test window; `selection_average_precision` is of the selection window,
        `training_seconds` is processor time of all threads: a busy machine changes it less.
    selection, test
        Bootstrap draws of average precision and AUC, shape (rounds, 2), paired between models.
    score, probability
        Of the test rows, shape (n,).
    """

    classifier: Classifier
    model: Scorer
    calibration: Calibration
    figures: dict[str, float]
    selection: F64
    test: F64
    score: F64
    probability: F64


@dataclass(frozen=True)
class Comparison:
    """All classifiers on the same rows.

    Attributes
    ----------
    why
        Why the winner is the winner, in a sentence.
    """

    config: CompareConfig
    split: Split
    selection: Judged
    test: Judged
    train: RankerRows
    results: tuple[Result, ...]
    winner: Result
    why: str


def compare_classifiers(settings: Settings, config: CompareConfig, progress: Progress | None = None) -> Comparison:
    """Fit on the rolling cuts; calibrate, choose thresholds and the winner on the selection cut; judge on the test.

    The selection cut is the last before the test. Nothing of the test window decides anything.

    Raises
    ------
    BadInputError
        If the events span too little time, or nothing is bought in a window.
    """
    report = progress or (lambda what, done, total: None)
    log = Log.of(read_events(settings, columns=["user_id", "item_id", "event_type", "event_timestamp", "received_at"]))
    horizon = None if config.horizon_days is None else round(config.horizon_days * DAY_US)
    split = split_by_horizon(log.time_us, horizon_us=horizon, test_share=config.test_share, windows=config.windows + 1)
    *learned, chosen_by = split.rolling
    total = len(learned) + 2
    train = []
    for number, window in enumerate(learned, start=1):
        report("rows", number - 1, total)
        train.append(judged_rows(settings, config, log, window, config.train, number).rows)
    report("rows", total - 2, total)
    selection = judged_rows(settings, config, log, chosen_by, config.judge, total - 1)
    report("rows", total - 1, total)
    test = judged_rows(settings, config, log, split.test, config.judge, total)
    report("rows", total, total)
    rows = stack_rows(train)
    results = []
    for classifier in CLASSIFIERS:
        report(f"fit {classifier.name}", 0, 1)
        results.append(judge(classifier, rows, selection, test, settings, config))
        report(f"fit {classifier.name}", 1, 1)
    winner, why = pick(results)
    return Comparison(config, split, selection, test, rows, tuple(results), winner, why)


def judged_rows(settings: Settings, config: CompareConfig, log: Log, window: Window, draw: Draw, number: int) -> Judged:
    """Draw the pairs of a cut and join their features as of it."""
    table = offline_item_table(AsOfReader(settings, window.start_us), window.start_us)
    seed = [settings.seed, number]  # not the window's time: moving a data set by weeks changes no figure
    pairs = draw_pairs(log, table, window, config.target, draw, seed)
    if not pairs.bought:
        start = np.datetime64(window.start_us, "us").astype("datetime64[D]")
        raise BadInputError(
            f"no known user took anything on sale ({config.target}) in the window from {start}: there is nothing to "
            "learn or judge by; take a longer --horizon-days or more events"
        )
    return Judged(window, pairs, join_features(settings, pairs, config.service, window.start_us))


def judge(
    classifier: Classifier,
    rows: RankerRows,
    selection: Judged,
    test: Judged,
    settings: Settings,
    config: CompareConfig,
) -> Result:
    """Fit one classifier on the training rows, calibrate it on the selection rows, and measure it on both cuts."""
    from threadpoolctl import threadpool_limits

    start = time.process_time()
    model = classifier.fit(rows, feature_list(config.service), settings.seed, settings.threads, config.effort)
    seconds = time.process_time() - start
    with threadpool_limits(1):
        held, score = model.score(selection.rows.matrix), model.score(test.rows.matrix)
        inference_ms = _inference_ms(model, test.rows.matrix)
    calibration = fit_calibration(held, selection.rows)
    weight = selection.rows.weight.astype(np.float64)
    threshold = best_f1_threshold(held, selection.rows.label, weight)
    chosen_by = Ordered.by(held, selection.rows.label)
    judged = Ordered.by(score, test.rows.label)
    test_weight = test.rows.weight.astype(np.float64)
    average, area = judged.areas(test_weight)
    bootstrap = partial(bootstrap_areas, seed=settings.seed, rounds=config.rounds)
    draws = bootstrap(judged, test_weight, test.rows.group)
    bounds = {
        f"{name}_{side}": value
        for column, name in enumerate(("average_precision", "roc_auc"))
        for side, value in zip(("low", "high"), interval(draws[:, column]), strict=True)
    }
    figures = {
        "average_precision": average,
        "roc_auc": area,
        **bounds,
        **confusion(score, test.rows.label, test_weight, threshold).figures(),
        "threshold": float(calibration(np.array([threshold]))[0]),
        "selection_average_precision": chosen_by.areas(weight)[0],
        "training_seconds": seconds,
        "inference_ms_per_row": inference_ms,
    }
    return Result(
        classifier,
        model,
        calibration,
        figures,
        bootstrap(chosen_by, weight, selection.rows.group),
        draws,
        score,
        calibration(score),
    )


def _inference_ms(model: Scorer, matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    """Shortest of some times of a request's rows on one thread, per row: what else the machine does adds to it only."""
    batch = np.ascontiguousarray(matrix[:REQUEST_ROWS])
    model.score(batch)
    took = []
    for _ in range(15):
        start = time.perf_counter()
        model.score(batch)
        took.append(time.perf_counter() - start)
    return min(took) * 1000.0 / len(batch)


def pick(results: list[Result]) -> tuple[Result, str]:
    """Pick the winner among the formats that may be served.

    The best average precision on the selection window leads. Those whose paired difference to it has 0 within its 95 %
    interval tie with it; of them the fastest in inference wins, and of those equally fast (`SAME_SPEED`) the one with
    the higher average precision.
    """
    servable = [one for one in results if one.classifier.suffix]
    best = max(servable, key=lambda one: one.figures["selection_average_precision"])
    ties = [one for one in servable if interval(best.selection[:, 0] - one.selection[:, 0])[0] <= 0.0]
    fastest = min(one.figures["inference_ms_per_row"] for one in ties)
    quick = [one for one in ties if one.figures["inference_ms_per_row"] <= SAME_SPEED * fastest]
    winner = max(quick, key=lambda one: one.figures["selection_average_precision"])
    names = ", ".join(one.classifier.name for one in ties)
    lead = f"{best.classifier.name} has the best average precision on the selection window"
    if len(ties) == 1:
        return winner, f"{lead}, beyond the interval of the others that may be served"
    return winner, f"{lead}; {names} tie within the 95 % interval, and {winner.classifier.name} is the fastest of them"


def by_average_precision(comparison: Comparison) -> list[Result]:
    """Order the classifiers by average precision on the test window, best first."""
    return sorted(comparison.results, key=lambda one: -one.figures["average_precision"])
