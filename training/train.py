"""`larder train`: split by time, fit generators and ranker on rolling cuts, evaluate, save a bundle, register it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from feature_repo.asof import AsOfReader
from feature_repo.datasets import read_events
from feature_repo.errors import BadInputError
from feature_repo.events import Repeats
from feature_repo.settings import Settings
from serving.bundle import Bundle, load_bundle
from serving.candidates.contract import CandidateGenerator
from serving.cascade.fusion import Fusion
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Policy
from serving.cascade.rerank import Diversity, NewItems
from training.candidate_rows import RankerRows, Sampling, candidate_rows
from training.evaluate import TWO_STAGE, Evaluation
from training.evaluate_bundle import evaluate_bundle
from training.fit_ranker import FittedRanker, fit_ranker
from training.fusion import fit_fusion
from training.generators.contract import Past
from training.line_up import LineUp, default_line_up, fit_line_up
from training.offline_table import offline_item_table
from training.rankers.catboost_ranker import CatBoostParams
from training.rankers.contract import RankerParams
from training.run_metrics import FIGURES, recorded_run
from training.save_bundle import feature_columns, save_bundle
from training.save_purchase import read_purchase
from training.split import Log, Split, Window, drawn, split_by_time

GOLDEN_ROWS = 64
#: Called with (what is being done, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides what model comes out, beside the data and the seed."""

    target: str = "purchase"
    repeats: Repeats = "keep"
    service: str = "ranking_v1"
    test_share: float = 0.1
    windows: int = 8
    stride: float = 1.0
    #: Train and judge as of so many windows before the last: rolling cuts, to tune on or to report.
    cuts_back: int = 0
    candidates: int = 500
    #: `learned` finds more of what is taken (docs/models.md).
    fusion: Literal["learned", "reciprocal"] = "learned"
    #: Users of each window, drawn by the seed; None takes all.
    users: int | None = None
    line_up: LineUp = field(default_factory=default_line_up)
    ranker: RankerParams = field(default_factory=CatBoostParams)
    sampling: Sampling = field(default_factory=Sampling)
    diversity: Diversity = field(default_factory=Diversity)
    new_items: NewItems = field(default_factory=NewItems)

    @property
    def policy(self) -> Policy:
        """What the bundle may show."""
        quotas = tuple(one.quota for one in self.line_up)
        return Policy(self.repeats, self.candidates, quotas, self.diversity, self.new_items)


@dataclass(frozen=True)
class TrainResult:
    """A trained, evaluated and saved model."""

    bundle: Bundle
    directory: Path
    evaluation: Evaluation
    fitted: FittedRanker
    calibration_rows: RankerRows
    split: Split
    config: TrainConfig
    seconds: dict[str, float]


@dataclass(frozen=True)
class WindowRows:
    """What the ranker learns from one window.

    Attributes
    ----------
    keys
        `user_id`, `item_id` and `event_timestamp` of each row.
    columns
        Names of the matrix' columns.
    fusion
        How lists should become one, as this window teaches; for the windows after it. None: by reciprocal ranks.
    """

    keys: pd.DataFrame
    rows: RankerRows
    columns: tuple[str, ...]
    fusion: Fusion | None


class Stopwatch:
    """Seconds by phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(
    settings: Settings,
    config: TrainConfig,
    data_hash: str,
    progress: Progress | None = None,
    *,
    purchase: Path | None = None,
) -> TrainResult:
    """Train a two-stage model on the project's event log and offline features.

    The bundle learns from nothing at or after the start of the test window, so the figures in it are those of exactly
    the model that will serve.

    Parameters
    ----------
    purchase
        Directory of a purchase model for the bundle to carry (training/save_purchase.py).

    Raises
    ------
    BadInputError
        If the events are too few, or nobody takes anything in a window.
    """
    with recorded_run(settings) as figures:
        result = _train(settings, config, data_hash, progress or (lambda what, done, total: None), purchase)
        figures.update(_figures(result.evaluation))
    return result


def _train(
    settings: Settings, config: TrainConfig, data_hash: str, report: Progress, purchase: Path | None
) -> TrainResult:
    watch = Stopwatch()
    with watch.phase("read events"):
        log = read_log(settings)
        split = split_by_time(
            log.time_us, test_share=config.test_share, windows=config.windows + config.cuts_back, stride=config.stride
        ).earlier(config.cuts_back)
    if purchase is not None:
        read_purchase(purchase, split.test.start_us)  # what cannot be taken along is said before the work, not after
    windows: list[RankerRows] = []
    fusion: Fusion | None = None
    for number, window in enumerate(split.rolling, start=1):
        what = f"window {number} of {len(split.rolling)}"
        on_progress = partial(report, what)
        made = window_rows(settings, config, log, window, number, watch, on_progress, fusion)
        windows.append(made.rows)
        fusion = made.fusion
    reader, table, generators = _as_of(settings, config, log, split.test, watch)
    with watch.phase("fit ranker"):
        report("ranker", 0, 1)
        names = feature_columns(config.service, generators)
        fitted = fit_ranker(windows, names, config.ranker, seed=settings.seed, threads=settings.threads)
        report("ranker", 1, 1)
    golden = windows[-1].matrix[:: max(len(windows[-1]) // GOLDEN_ROWS, 1)][:GOLDEN_ROWS]
    with watch.phase("save bundle"):
        directory = save_bundle(
            settings.bundles_dir,
            name=settings.model_name,
            service=config.service,
            generators=generators,
            ranker=fitted.ranker,
            policy=config.policy,
            fusion=fusion,
            table=table,
            golden=golden,
            content={
                "data_hash": data_hash,
                "trained_until_us": split.test.start_us,
                "test_until_us": split.test.end_us,
                "target": config.target,
                "seed": settings.seed,
                "config": asdict(config),
            },
            volatile={"created_at": datetime.now(UTC).isoformat()},
            purchase=purchase,
        )
        bundle = load_bundle(directory)
    with watch.phase("evaluate"):
        evaluation = evaluate_bundle(bundle, reader, log, settings.seed, report, users=config.users)
    return TrainResult(bundle, directory, evaluation, fitted, windows[-1], split, config, watch.seconds)


def _figures(evaluation: Evaluation) -> dict[str, float]:
    warm = evaluation.metrics["warm"][TWO_STAGE]
    values = (warm["ndcg@10"], warm["recall@20"], evaluation.auc, evaluation.candidate_recall)
    return {name: float(per_user.mean()) for name, per_user in zip(FIGURES, values, strict=True)}


def read_log(settings: Settings) -> Log:
    """Read what splitting and fitting need of the project's event log."""
    return Log.of(read_events(settings, columns=["user_id", "item_id", "event_type", "event_timestamp", "received_at"]))


def window_rows(
    settings: Settings,
    config: TrainConfig,
    log: Log,
    window: Window,
    number: int,
    watch: Stopwatch,
    on_progress: Callable[[int, int], None],
    fusion: Fusion | None = None,
    fitted: tuple[AsOfReader, ItemTable, tuple[CandidateGenerator, ...]] | None = None,
) -> WindowRows:
    """Fit the generators before a window and label what they retrieve.

    Parameters
    ----------
    number
        Number of the window, from 1: other negatives are drawn for another one.
    fusion
        What the window before it taught; None: lists are fused by reciprocal ranks.
    fitted
        Features, items and the configuration's generators as of the window, where the caller has them.

    Raises
    ------
    BadInputError
        If nobody takes anything in the window.
    """
    targets = log.targets(window, config.target)
    if not targets:
        start = datetime.fromtimestamp(window.start_us / 1e6, UTC)
        raise BadInputError(f"no {config.target} events in the window from {start:%Y-%m-%d}: nothing to learn from")
    if config.users is not None:
        targets = drawn(targets, config.users, [settings.seed, 2, number])
    reader, table, generators = fitted or _as_of(settings, config, log, window, watch)
    with watch.phase("ranker rows"):
        keys, rows, ranks = candidate_rows(
            settings,
            reader,
            table,
            generators,
            config.policy,
            window,
            targets,
            service=config.service,
            sampling=config.sampling,
            seed=[settings.seed, number],  # not the window's time: moving a data set by weeks changes no figure
            fusion=fusion,
            on_progress=on_progress,
        )
        learned = fit_fusion(ranks) if config.fusion == "learned" else None
    return WindowRows(keys, rows, feature_columns(config.service, generators), learned or fusion)


def _as_of(
    settings: Settings, config: TrainConfig, log: Log, window: Window, watch: Stopwatch
) -> tuple[AsOfReader, ItemTable, tuple[CandidateGenerator, ...]]:
    with watch.phase("features as of the cut"):
        reader = AsOfReader(settings, window.start_us)
        table = offline_item_table(reader, window.start_us)
    with watch.phase("fit generators"):
        past = Past(log.before(window.start_us), table, window.start_us, settings.seed, settings.threads)
        generators = fit_line_up(config.line_up, past)
    return reader, table, generators
