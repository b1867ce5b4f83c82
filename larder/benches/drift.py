"""Drift: alarms on shops where nothing changes, and how soon injected shifts are found, by the worker's own code."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.backfill import backfill
from feature_repo.event_log import write_dataset
from feature_repo.settings import Settings
from feature_repo.simulator.params import SimulatorParams
from larder.benches.drift_shifts import SHIFTS, Shift
from larder.benches.simulated_rounds import FoldedFeatures, World, make_world
from larder.progress import Progress, progress
from larder.watching.replay import answered, champion_reference
from monitoring.drift.columns import Answer, draw
from monitoring.drift.comparison import Finding, Rules
from monitoring.drift.judge import Window, judge
from monitoring.drift.records import DriftState
from monitoring.drift.reference import Reference
from monitoring.drift.served import Drawn, Watched, draw_window, event_columns, window_columns
from serving.bundle import Bundle
from serving.impressions import ImpressionRecord
from training.generators.als import Als
from training.line_up import default_line_up
from training.rankers.catboost_ranker import CatBoostParams
from training.train import TrainConfig, train

#: Seeds the simulator's parameters were not chosen on.
SEEDS: Final = (401, 402, 403, 404, 405)
HOURS: Final = 12
#: Windows of each shop: 200 in all.
WINDOWS: Final = 40
#: A shift comes with this window, is watched so long, and must be found within so many windows.
SHIFT_AT, SHIFT_WINDOWS, FOUND_WITHIN = 8, 6, 3
RULES: Final = Rules()
_EVENTS = 400_000
_DAYS = 20
#: No seasons: the world stands still but for people and items that come, age and go.
_PARAMS = SimulatorParams(n_users=3_000, n_items=500, season_amplitude=0.0)
_CONFIG = TrainConfig(
    windows=2,
    users=400,
    line_up=tuple(replace(one, factors=16, iterations=5) if isinstance(one, Als) else one for one in default_line_up()),
    ranker=CatBoostParams(iterations=120),
)
_US: Final = HOURS * 3_600_000_000


@dataclass(frozen=True)
class OpenShop:
    """A shop with its champion, and what that is compared with."""

    settings: Settings
    world: World
    bundle: Bundle
    watched: Watched
    reference: Reference


@dataclass(frozen=True)
class Told:
    """What the windows of one run said, in order."""

    findings: list[list[Finding]]
    states: list[DriftState]

    def alarms(self, number: int) -> list[str]:
        """Columns in alarm in a window."""
        return [one.column.subject for one in self.findings[number] if one.alarm]


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Watch every shop while nothing changes, and two of them through every shift."""
    quiet: list[Told] = []
    shifted: dict[str, list[Told]] = {shift.name: [] for shift in SHIFTS}
    for seed in SEEDS:
        with open_shop(settings, seed) as shop:
            with progress(f"shop {seed}: nothing changes", WINDOWS) as shown:
                still = _watch(shop, Shift("nothing"), range(WINDOWS), _begun(shop), shown)
            quiet.append(still)
            alarms = sum(bool(still.alarms(number)) for number in range(WINDOWS))
            print(f"  shop {seed}: {alarms} of {WINDOWS} windows in alarm where nothing changes", flush=True)
            for shift in SHIFTS if seed in SEEDS[:2] else ():
                with progress(f"shop {seed}: {shift.name}", SHIFT_WINDOWS) as shown:
                    numbers = range(SHIFT_AT, SHIFT_AT + SHIFT_WINDOWS)
                    shifted[shift.name].append(_watch(shop, shift, numbers, still.states[SHIFT_AT - 1], shown))
    figures = _quiet_figures(quiet)
    targets: dict[str, tuple[str, float]] = {"windows": (">=", 200.0), "alarm_share": ("<=", 0.01)}
    for shift in SHIFTS:
        found = [_found_after(told, shift) for told in shifted[shift.name]]
        figures[f"{shift.name}.windows_until_found"] = max(found)
        if shift.visible:
            targets[f"{shift.name}.windows_until_found"] = ("<=", float(FOUND_WITHIN))
        said = Counter(name for told in shifted[shift.name] for name in told.alarms(SHIFT_WINDOWS - 1))
        print(f"  {shift.name}: {', '.join(f'{name} ({count})' for name, count in said.most_common(8)) or 'no alarm'}")
    return figures, targets


def _quiet_figures(quiet: list[Told]) -> dict[str, float]:
    windows = [findings for told in quiet for findings in told.findings]
    for name, count in Counter(f.column.subject for one in windows for f in one if f.alarm).most_common(8):
        print(f"  nothing changes, in alarm: {name} in {count} windows")
    largest = {f.column.subject: f.effect for one in windows for f in one if not f.column.expected}
    for one in windows:
        for f in one:
            if not f.column.expected:
                largest[f.column.subject] = max(largest[f.column.subject], f.effect)
    for name, effect in sorted(largest.items(), key=lambda pair: -pair[1])[:8]:
        print(f"  nothing changes, largest effect: {name} {effect:.3f}")
    n = len(windows)
    tests = [f for one in windows for f in one if not f.column.expected]
    return {
        "windows": n,
        "columns": len(tests) / n,
        "alarm_share": sum(any(f.alarm for f in one) for one in windows) / n,
        "hit_share": sum(any(f.hit for f in one) for one in windows) / n,
        "significant_share": sum(any(f.p_value < RULES.alpha and not f.column.expected for f in one) for one in windows)
        / n,
        "significant_columns_share": sum(f.p_value < RULES.alpha for f in tests) / len(tests),
    }


def _found_after(told: Told, shift: Shift) -> float:
    """Return after how many windows the shift was found by a column that shows it; infinity: it was not."""
    for number in range(len(told.findings)):
        if any(name.startswith(shift.shows) for name in told.alarms(number)):
            return number + 1.0
    return float("inf")


@contextmanager
def open_shop(settings: Settings, seed: int, *, days: int = _DAYS) -> Iterator[OpenShop]:
    """Train a champion on 180 days of a simulated shop, of which so many `days` are yet to come.

    Makes what its windows are compared with, too.
    """
    params = replace(_PARAMS, span_days=180 + days)
    world = make_world(params, seed, n_events=_EVENTS, n_new=1, days=days, end=datetime(2026, 1, 1, tzinfo=UTC))
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(settings, home=Path(work), project="simulator", seed=seed)
        with progress(f"shop {seed}: train"):
            write_dataset(world.history, own)
            backfill(own)
            bundle = train(own, _CONFIG, "made by the bench").bundle
        watched = Watched.of(bundle.bundle_id, bundle.recommender.service, bundle.popular)
        with progress(f"shop {seed}: reference"):
            reference = champion_reference(own, bundle, watched, size=RULES.reference, every_us=_US)
        yield OpenShop(own, world, bundle, watched, reference)


def _begun(shop: OpenShop) -> DriftState:
    return DriftState(shop.watched.bundle_id, "training", round(shop.world.cut.timestamp() * 1e6))


def _watch(shop: OpenShop, shift: Shift, numbers: range, state: DriftState, shown: Progress) -> Told:
    """Let people come, ask for lists and do what they do; judge every window as the worker would."""
    world, features = shop.world, FoldedFeatures()
    begins = world.cut + timedelta(hours=HOURS * numbers.start)
    changed = shift.world(world, begins)
    write_dataset(replace(world.history, events=pa.concat_tables([world.history.events, changed.later])), shop.settings)
    features.add(world.history.events)
    features.add(between(changed.later, world.cut, begins))
    told = Told([], [])
    for number in numbers:
        start = world.cut + timedelta(hours=HOURS * number)
        events = between(changed.later, start, start + timedelta(hours=HOURS))
        drawn, (start_us, end_us) = _serve(shop, shift, changed, features, events, start), span(start)
        ours = event_columns(shop.settings, start_us, end_us, shop.reference.known, RULES.sample, _US)
        window = Window(start_us, end_us, drawn.answers, window_columns(drawn, shop.watched.service, ours))
        findings, state = judge(shop.watched.service, window, shop.reference.columns, state, RULES)
        told.findings.append(findings)
        told.states.append(state)
        features.add(events)
        shown.advance()
    return told


def served(
    shop: OpenShop, shift: Shift, world: World, features: FoldedFeatures, events: pa.Table, start: datetime
) -> list[ImpressionRecord]:
    """Answer those who come in a window, at their first event of it, as far as the sampler would draw them.

    Parameters
    ----------
    features
        State as of the window's start.
    events
        Of the window.
    """
    recommender = shift.recommender(shop.bundle.recommender)
    table, (start_us, _) = features.table(world, start), span(start)
    comes: dict[str, int] = {}
    for user, time in zip(
        events["user_id"].to_pylist(), events["event_timestamp"].cast("int64").to_pylist(), strict=True
    ):
        comes.setdefault(user, time)
    # Others need no list. Some are strangers.
    salt = str(start_us)
    asking = sorted(comes, key=lambda user: draw(salt, user))[: RULES.sample + 60]
    answers = (
        answered(recommender, features, table, shop.watched, user, comes[user], f"{start_us}-{user}") for user in asking
    )
    return [record for record in answers if record is not None]


def _serve(
    shop: OpenShop, shift: Shift, world: World, features: FoldedFeatures, events: pa.Table, start: datetime
) -> Drawn:
    """Draw a window's sample, with what came of it."""
    records = served(shop, shift, world, features, events, start)
    drawn = draw_window(records, shop.watched, *span(start), RULES.sample)
    of = {record.request_id: record for record in records}
    answers = [_with_outcome(shift, world, of[one.request_id], one) for one in drawn.answers]
    return replace(drawn, answers=answers)


def _with_outcome(shift: Shift, world: World, record: ImpressionRecord, answer: Answer) -> Answer:
    """Say whether the user clicks and buys, by the hidden truth."""
    now = datetime.fromtimestamp(record.time_us / 1e6, UTC)
    rng = np.random.default_rng(draw(record.request_id))
    truth = world.click_if_seen(shift.acts_as(world, record.user_id), now)
    ids = [item.item_id for item in record.items]
    made = world.answers(record.user_id, ids, truth, now, rng, record.request_id)
    kinds = {str(event["event_type"]) for event in made if rng.random() >= shift.lost_events}
    return replace(answer, clicked="view" in kinds, purchased="purchase" in kinds)


def between(events: pa.Table, start: datetime, end: datetime) -> pa.Table:
    """Return the events of [start, end)."""
    time = events["event_timestamp"]
    first, last = (pa.scalar(one, time.type) for one in (start, end))
    return events.filter(pc.and_(pc.greater_equal(time, first), pc.less(time, last)))


def span(start: datetime) -> tuple[int, int]:
    """Return a window's start and end, µs."""
    start_us = round(start.timestamp() * 1e6)
    return start_us, start_us + _US
