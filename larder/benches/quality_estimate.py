"""The estimate of precision without labels, beside what was taken: windows with and without shifts, simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from larder.benches.drift import HOURS, OpenShop, between, open_shop, served, span
from larder.benches.drift_shifts import SHIFTS, Shift
from larder.benches.simulated_rounds import FoldedFeatures, World
from larder.progress import progress
from monitoring.drift.columns import DEPTH
from monitoring.drift.estimate import expected_precision

F64 = npt.NDArray[np.float64]

#: Seeds that no other bench of the estimate's parts has seen.
SEEDS: Final = (421, 422, 423, 424)
#: Windows without a shift come first; their mean is the baseline. As many again follow, with each shift and without.
BEFORE: Final = 6
AFTER: Final = 6
#: The shop goes on so long, until everything is known that the last windows' people take.
DAYS: Final = 32
#: People with fewer events than this are light users.
LIGHT: Final = 30
DRAWS: Final = 2_000


_NOTHING: Final = Shift("nothing")


@dataclass(frozen=True)
class Scenario:
    """What happens after the first windows.

    Attributes
    ----------
    light
        Whether only people with little history ask for lists from then on.
    """

    name: str
    shift: Shift = _NOTHING
    light: bool = False


_BY_NAME: Final = {shift.name: shift for shift in SHIFTS}
#: What nobody has bought or viewed before, as far as the ranker knows: what it leans on most.
_PAIRS: Final = Shift("pairs_missing", feature="f_pair_*", wrong=lambda columns: np.full_like(columns, np.nan))
_TASTE: Final = "taste"
SCENARIOS: Final = (
    Scenario("nothing"),
    Scenario("light_users", light=True),
    Scenario("prices", _BY_NAME["prices"]),
    Scenario("feature_missing", _BY_NAME["feature_missing"]),
    Scenario("feature_in_other_units", _BY_NAME["feature_in_other_units"]),
    Scenario("pairs_missing", _PAIRS),
    Scenario(_TASTE, _BY_NAME["taste"]),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One window: the precision of the first places that was estimated, and that there was.

    Attributes
    ----------
    chance
        Standard error of `realised`, from the requests of the window.
    """

    shop: int
    scenario: str
    estimate: float
    realised: float
    chance: float


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Open shops, let each scenario happen in each, and hold estimates against what was taken."""
    windows: list[Judged] = []
    for seed in SEEDS:
        with (
            open_shop(settings, seed, days=DAYS) as shop,
            progress(f"shop {seed}: windows", BEFORE + AFTER * len(SCENARIOS)) as shown,
        ):
            _require_outcomes(shop)
            windows += _windows(shop, seed, shown.advance)
    return _figures(windows), {}


def _require_outcomes(shop: OpenShop) -> None:
    """Check that the shop goes on until it is known what the last windows' people take."""
    last_us = span(shop.world.cut + timedelta(hours=HOURS * (BEFORE + AFTER)))[0] + _horizon_us(shop)
    if last_us > pc.max(shop.world.later["event_timestamp"]).cast("int64").as_py():
        raise BadInputError(f"the shop ends after {DAYS} days, before it is known what the last windows' people take")


def _horizon_us(shop: OpenShop) -> int:
    """Return the time within which the model's probabilities say that an item is taken: its test window's length."""
    manifest = shop.bundle.manifest
    return int(manifest["test_until_us"] - manifest["trained_until_us"])


def _windows(shop: OpenShop, seed: int, advance: Callable[[], None]) -> list[Judged]:
    """Judge the windows before any shift once, then those of each scenario."""
    before = _judged(shop, seed, "before", _NOTHING, range(BEFORE), advance)
    for scenario in SCENARIOS:
        before += _judged(
            shop, seed, scenario.name, scenario.shift, range(BEFORE, BEFORE + AFTER), advance, light=scenario.light
        )
    return before


def _judged(
    shop: OpenShop,
    seed: int,
    scenario: str,
    shift: Shift,
    numbers: range,
    advance: Callable[[], None],
    *,
    light: bool = False,
) -> list[Judged]:
    world = shop.world
    begins = world.cut + timedelta(hours=HOURS * numbers.start)
    changed = shift.world(world, begins)
    features = FoldedFeatures()
    features.add(world.history.events)
    features.add(between(changed.later, world.cut, begins))
    horizon_us, taken = _horizon_us(shop), _taken(changed, shop.bundle.manifest["target"])
    found = []
    for number in numbers:
        start = world.cut + timedelta(hours=HOURS * number)
        events = between(changed.later, start, start + timedelta(hours=HOURS))
        asking = _of_light(events, features) if light else events
        records = served(shop, shift, changed, features, asking, start)
        first = [record.items[:DEPTH] for record in records]
        estimate = expected_precision([np.array([item.score for item in items]) for items in first])
        hits = np.array(
            [
                np.mean(
                    [
                        _within(taken.get((record.user_id, item.item_id), ()), record.time_us, horizon_us)
                        for item in items
                    ]
                )
                for record, items in zip(records, first, strict=True)
            ]
        )
        found.append(
            Judged(seed, scenario, estimate.precision, float(hits.mean()), float(hits.std() / np.sqrt(len(hits))))
        )
        features.add(events)
        advance()
    return found


def _taken(world: World, target: str) -> dict[tuple[str, str], list[int]]:
    """Return the times at which each user takes each item after the cut, µs."""
    events = world.later.filter(pc.equal(world.later["event_type"], target))
    times = events["event_timestamp"].cast("int64").to_pylist()
    found: dict[tuple[str, str], list[int]] = {}
    for user, item, time in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), times, strict=True):
        found.setdefault((user, item), []).append(time)
    return found


def _within(times: Sequence[int], start_us: int, horizon_us: int) -> bool:
    return any(start_us < time <= start_us + horizon_us for time in times)


def _of_light(events: pa.Table, features: FoldedFeatures) -> pa.Table:
    """Return the events of people of whom little was known when the window began."""
    users = events["user_id"].unique().to_pylist()
    light = [user for user in users if len(features.user(user, 0).recent.item_ids) < LIGHT]
    return events.filter(pc.is_in(events["user_id"], pa.array(light, pa.string())))


@dataclass(frozen=True)
class _Changes:
    """Windows as changes against the mean of their shop's first ones, shape (n,) each; `raw`: estimate less taken."""

    estimate: F64
    realised: F64
    raw: F64
    scenario: npt.NDArray[np.str_]
    run: npt.NDArray[np.int64]

    def at(self, which: npt.NDArray[np.generic]) -> _Changes:
        """Return some of the windows, by positions or a mask."""
        parts = (self.estimate, self.realised, self.raw, self.scenario, self.run)
        return _Changes(*(part[which] for part in parts))


_MEASURES: Final[dict[str, Callable[[_Changes], float]]] = {
    "correlation": lambda some: float(np.corrcoef(some.estimate, some.realised)[0, 1]),
    "mae": lambda some: float(np.abs(some.raw).mean()),
    # Of the change against the first windows, by the estimate, and by who says that nothing changes.
    "mae_of_change": lambda some: float(np.abs(some.estimate - some.realised).mean()),
    "mae_of_no_change": lambda some: float(np.abs(some.realised).mean()),
}


def _figures(windows: list[Judged]) -> dict[str, float]:
    changes = _changes(windows)
    first = [one for one in windows if one.scenario == "before"]
    figures = {
        "windows": float(len(windows)),
        "before.taken": float(np.mean([one.realised for one in first])),
        "before.estimate": float(np.mean([one.estimate for one in first])),
        # What even an exact estimate would be off by: windows have some hundred requests.
        "mae_by_chance": float(np.mean([one.chance for one in windows]) * np.sqrt(2 / np.pi)),
    }
    for scenario in SCENARIOS:
        some = changes.at(changes.scenario == scenario.name)
        figures[f"{scenario.name}.taken_change"] = float(some.realised.mean())
        figures[f"{scenario.name}.estimate_change"] = float(some.estimate.mean())
    for name, some in {"all": changes, "without_taste": changes.at(changes.scenario != _TASTE)}.items():
        for measure, function in _MEASURES.items():
            value, low, high = _interval(some, function)
            figures |= {f"{name}.{measure}": value, f"{name}.{measure}.low": low, f"{name}.{measure}.high": high}
    return figures


def _changes(windows: list[Judged]) -> _Changes:
    before = {
        shop: [
            np.mean([getattr(one, what) for one in windows if (one.shop, one.scenario) == (shop, "before")])
            for what in ("estimate", "realised")
        ]
        for shop in {one.shop for one in windows}
    }
    after = [one for one in windows if one.scenario != "before"]
    runs = {run: number for number, run in enumerate(dict.fromkeys((one.shop, one.scenario) for one in after))}
    return _Changes(
        np.array([one.estimate - before[one.shop][0] for one in after]),
        np.array([one.realised - before[one.shop][1] for one in after]),
        np.array([one.estimate - one.realised for one in after]),
        np.array([one.scenario for one in after]),
        np.array([runs[one.shop, one.scenario] for one in after]),
    )


def _interval(some: _Changes, measure: Callable[[_Changes], float]) -> tuple[float, float, float]:
    """Return a figure with its 95 % interval: windows of one shop and scenario are drawn together."""
    rng = np.random.default_rng(0)
    runs = [np.flatnonzero(some.run == run) for run in np.unique(some.run)]
    values = []
    for _ in range(DRAWS):
        at = np.concatenate([runs[i] for i in rng.integers(0, len(runs), len(runs))])
        values.append(measure(some.at(at)))
    low, high = np.quantile(values, [0.025, 0.975])
    return measure(some), float(low), float(high)
