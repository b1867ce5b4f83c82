"""First half of the demo: data, features, a trained model, and the gate's verdict. Each step reuses what is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from feature_repo.errors import LarderError
from feature_repo.settings import Settings
from larder.services.stack import Stack
from larder.story.data import ensure_data
from larder.story.steps import PhaseProgress
from serving.bundle import load_bundle
from serving.plan import Plan


class Clock:
    """Seconds of each part of the demo, for the summary."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def chapter(number: int, title: str) -> None:
    """Print a chapter heading."""
    print(f"\n{number}. {title}\n{'-' * (len(title) + 3)}", flush=True)


def prepare_features(settings: Settings, dataset: str, clock: Clock, options: dict[str, int]) -> str:
    """Import the data set, fold it, tell Feast, fill Redis; return the data hash."""
    from feature_repo.backfill import backfill
    from feature_repo.event_log import read_report
    from feature_repo.materialize import materialize
    from feature_repo.store import apply

    chapter(1, "Events in")
    with clock.part("import"):
        data_hash = ensure_data(settings, dataset, end=datetime.now(UTC), options=options)
    report = read_report(settings)
    print(f"{report.accepted:,} events of {report.users:,} users on {report.items:,} items were accepted; of")
    print(f"{report.rows_read:,} rows read, {sum(report.quarantined.values()):,} are in quarantine", end="")
    print("".join(f"\n  {count:>9,} {reason}" for reason, count in report.quarantined.items()))
    if report.shift_weeks:
        print(f"All times were moved by {report.shift_weeks} whole weeks, so that the history ends now.")

    chapter(2, "One definition of every feature: Parquet for training, Redis for serving")
    with clock.part("features"), PhaseProgress() as report_phase:
        folded = backfill(settings, on_progress=partial(report_phase, "backfill"))
        report_phase("feast apply", 0, 1)
        apply(settings)
        report_phase("feast apply", 1, 1)
        loaded = materialize(settings, on_progress=partial(report_phase, "materialize to Redis"))
    print(f"{folded.events:,} new events folded; rows in Redis: ", end="")
    print(", ".join(f"{count:,} {view}" for view, count in loaded.rows.items()))
    return data_hash


def prepare_champion(
    stack: Stack, data_hash: str, clock: Clock, *, windows: int, retrain: bool, sample: bool = False
) -> dict[str, float] | None:
    """Train, register, gate and promote, unless there is a champion already.

    Returns
    -------
    dict or None
        Figures of the evaluation; None where the champion of an earlier run stays.
    """
    from deployment.promotion import ControlPlane
    from larder.commands.models import print_verdict

    settings = stack.settings
    chapter(3, "A two-stage model, trained and judged on what came after")
    with clock.part("start MLflow"):
        stack.wait()
    plane = ControlPlane(settings)
    if not retrain and _has_champion(settings, plane.store.plan()):
        plane.publish()
        return None
    version, figures = train_and_register(settings, data_hash, clock, windows=windows, sample=sample)

    chapter(4, "The gate")
    with clock.part("gate"), PhaseProgress() as report:
        promotion = plane.promote(version, why="demo", progress=report)
    print_verdict(settings, promotion)
    if promotion.plan is None:
        raise LarderError("the demo's model did not pass the gate; the verdict above says why")
    return figures


def train_and_register(
    settings: Settings, data_hash: str, clock: Clock, *, windows: int, sample: bool = False
) -> tuple[str, dict[str, float]]:
    """Train a model and register it; return the version's number and the figures of its evaluation."""
    from feature_repo.event_log import read_report
    from larder.commands.train import print_result
    from training.sample import sample_of
    from training.tracking import register_training
    from training.train import TrainConfig, train

    data = read_report(settings)
    config = TrainConfig(target=data.target, repeats=data.repeats, windows=windows)
    config = sample_of(config) if sample else config
    with clock.part("train"), PhaseProgress() as report:
        result = train(settings, config, data_hash, report)
    print_result(result)
    with clock.part("register"):
        registered = register_training(settings, result)
    print(f"MLflow has the run with parameters, figures, plots and the bundle: {registered.url(settings)}")
    return registered.version, result.evaluation.flat()


def _has_champion(settings: Settings, plan: Plan | None) -> bool:
    """Say whether there is a champion that this version of the code can serve."""
    if plan is None:
        return False
    version = plan.stable.model_version
    try:
        load_bundle(settings.bundles_dir / plan.stable.bundle_id)
    except LarderError as error:
        print(f"Version {version} is the champion, but cannot be served: {error}")
        return False
    print(f"There is a champion already: version {version} (--retrain trains anew)")
    return True
