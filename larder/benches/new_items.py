"""How soon a good new item is found with and without the slot, and what the slot costs in clicks, on the simulator."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.backfill import backfill
from feature_repo.event_log import write_dataset
from feature_repo.rows import UserRows
from feature_repo.settings import Settings
from feature_repo.simulator.clicks import seen_probability
from feature_repo.simulator.params import SimulatorParams
from larder.benches.simulated_rounds import FoldedFeatures, World, client_events, make_world
from larder.progress import Progress, progress
from serving.candidates.contract import F32, I32, DenseQuery
from serving.cascade.items import ItemTable
from serving.cascade.recommender import RankedItem, Recommender
from serving.cascade.rerank import NewItems, is_new
from training.generators.als import Als
from training.line_up import default_line_up
from training.metrics import bootstrap_mean
from training.rankers.catboost_ranker import CatBoostParams
from training.train import TrainConfig, train

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Seeds the simulator's parameters were not chosen on.
SEEDS = (301, 302, 303)
N_NEW = 50
DAYS = 14
LISTS_A_DAY = 200
#: How often a visitor looks at the list of the day: on so many pages.
LOOKS = 5
K = 10
#: An item is found when, outside the slot, it had as many places as the average item, over so many days.
SPAN = 3
SLOT = NewItems(slots=1)
#: How people meet new items: also by themselves (they look through the shop), or in lists alone.
WAYS = ("browsing", "lists_only")
PARAMS = SimulatorParams(n_users=800, n_items=500, span_days=180 + DAYS)
EVENTS = 80_000
_CONFIG = TrainConfig(
    windows=2,
    test_share=0.05,
    line_up=tuple(replace(one, factors=16, iterations=5) if isinstance(one, Als) else one for one in default_line_up()),
    ranker=CatBoostParams(iterations=120),
)


@dataclass(frozen=True)
class Newcomers:
    """New items of the user's categories, the newest first.

    A stand-in: it knows nothing but category and age, so that the slot has something to choose from in a bundle without
    a generator for new items.
    """

    rule: NewItems
    name: str = "newcomers"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Score by the user's views in the category, halved with every week of age."""
        views = dict(zip(user.categories, np.nan_to_num(user.affinities.column("affinity_views")), strict=True))
        weight = np.array([views.get(name, 0.0) for name in table.category_names])[table.category_code]
        new = is_new(table, np.arange(len(table), dtype=np.int32), now_us, self.rule) & table.available
        age_days = np.nan_to_num(now_us - table.columns["item_created_at"]) / 86_400e6
        return DenseQuery(np.where(new, weight * np.exp2(-age_days / 7.0), 0.0))


class WithNewcomers(Recommender):
    """A recommender with one more generator, whose columns the ranker does not know."""

    def matrix(self, user: UserRows, table: ItemTable, items: I32, pairs: object, retrieval: F32, now_us: int) -> F32:
        """Leave the last generator's score and rank out."""
        return super().matrix(user, table, items, pairs, retrieval[:, :-2], now_us)  # type: ignore[arg-type] # Rows


@dataclass
class Arm:
    """What one policy showed, and what came of it.

    Attributes
    ----------
    shown, in_slot
        Places each new item had on each day, in all and in the slot, shape (days, new items).
    clicks
        Expected clicks of each list, by day.
    cost
        Expected clicks of a list minus those had the slot not been kept in it, all else equal; of every fourth list.
    mean_places
        Places of the average item that was on sale, by day.
    """

    shown: I64
    in_slot: I64
    clicks: list[list[float]] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    mean_places: list[float] = field(default_factory=list)

    def found_on(self) -> F64:
        """Day on which each new item was found, from 1; infinity: never; shape (new items,)."""
        outside = self.shown - self.in_slot
        total = np.cumsum(outside, axis=0)
        total[SPAN:] -= np.cumsum(outside, axis=0)[:-SPAN]
        enough = np.array([sum(self.mean_places[max(d - SPAN + 1, 0) : d + 1]) for d in range(len(outside))])
        reached = total >= enough[:, None]
        reached[: SPAN - 1] = False  # fewer days than the span say little
        return np.where(reached.any(axis=0), reached.argmax(axis=0) + 1.0, np.inf)

    def places_until(self, day: F64) -> F64:
        """Places each new item had until a day (all days where it is infinite), shape (new items,)."""
        total = np.cumsum(self.shown, axis=0)
        last = np.minimum(day, len(total)).astype(int) - 1
        return np.asarray(total[last, np.arange(total.shape[1])], np.float64)


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Let every shop live on with and without the slot, on the same visits and the same luck."""
    worlds: list[World] = []
    arms: dict[str, list[dict[bool, Arm]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        world = make_world(PARAMS, seed, n_events=EVENTS, n_new=N_NEW, days=DAYS, end=datetime(2026, 1, 1, tzinfo=UTC))
        recommender = trained(settings, world)
        with progress(f"shop {seed}: lists", len(WAYS) * 2 * DAYS * LISTS_A_DAY) as shown:
            for way in WAYS:
                lived = {slot: _live(world, way, _with_slot(recommender, slot), shown) for slot in (False, True)}
                arms[way].append(lived)
        worlds.append(world)
    good = np.concatenate([good_items(world) for world in worlds])
    figures = {"items": float(len(good)), "good_items": float(good.sum())}
    for way in WAYS:
        figures |= {f"{way}.{name}": value for name, value in _figures(good, arms[way]).items()}
    _plot(good, arms, settings.results_dir / "new_items.png")
    return figures, {}


def trained(settings: Settings, world: World) -> Recommender:
    """Train on the history, and make sure that some candidates are new items."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work, progress(f"shop {world.shop.seed}: train"):
        own = replace(settings, home=Path(work), project="simulator", seed=world.shop.seed)
        write_dataset(world.history, own)
        backfill(own)
        recommender = train(own, _CONFIG, "made by the bench").bundle.recommender
    if any(generator.name == "new_items" for generator in recommender.generators):
        return recommender
    policy = replace(recommender.policy, quotas=(*recommender.policy.quotas, 30))
    generators = (*recommender.generators, Newcomers(SLOT))
    return WithNewcomers(generators, recommender.ranker, recommender.service, policy)


def _with_slot(recommender: Recommender, slot: bool) -> Recommender:
    return replace(recommender, policy=replace(recommender.policy, new_items=replace(SLOT, slots=int(slot))))


def _live(world: World, way: str, recommender: Recommender, shown: Progress) -> Arm:
    """Show lists day by day; what users answer and do by themselves is in the features of the next day."""
    features, plain, seed = FoldedFeatures(), _with_slot(recommender, False), world.shop.seed
    features.add(world.history.events)
    place = {world.shop.catalogue.ids[i]: n for n, i in enumerate(world.new)}
    arm = Arm(np.zeros((DAYS, N_NEW), np.int64), np.zeros((DAYS, N_NEW), np.int64))
    for day in range(DAYS):
        now = world.cut + timedelta(days=day, hours=12)
        table, now_us = features.table(world, now), round(now.timestamp() * 1e6)
        answers, clicks, cost = [], list[float](), list[float]()
        for number, user in enumerate(world.visitors(now, LISTS_A_DAY, np.random.default_rng([seed, 5, day]))):
            draft = recommender.draft(features.user(user, now_us), table, now_us, k=K)
            pairs = features.pairs(user, draft.item_ids, now_us)
            items = recommender.finish(draft, pairs).items
            for item in items:
                if (new := place.get(item.item_id)) is not None:
                    arm.shown[day, new] += 1
                    arm.in_slot[day, new] += item.slot is not None
            truth = world.click_if_seen(user, now)
            clicks.append(expected_clicks(world, truth, items))
            if not number % 4:  # ranking every list twice would take half as long again
                cost.append(clicks[-1] - expected_clicks(world, truth, plain.finish(draft, pairs).items))
            # The same luck at every rank in both arms.
            rng = np.random.default_rng([seed, 6, day, number])
            for look in range(LOOKS):
                ids = [item.item_id for item in items]
                answers += world.answers(user, ids, truth, now, rng, f"{day}-{number}-{look}")
            shown.advance()
        arm.clicks.append(clicks)
        arm.cost += cost
        arm.mean_places.append(len(clicks) * K / int(table.available.sum()))
        features.add(events_of_day(world, way, day, answers))
    return arm


def events_of_day(world: World, way: str, day: int, answers: list[dict[str, object]]) -> pa.Table:
    """Return what users did by themselves, in `lists_only` not with new items, and what they answered."""
    start = world.cut + timedelta(days=day)
    time = world.later["event_timestamp"]
    until = pa.scalar(start + timedelta(days=1), time.type)
    own = world.later.filter(pc.and_(pc.greater_equal(time, pa.scalar(start, time.type)), pc.less(time, until)))
    if way == "lists_only":
        new = pa.array([world.shop.catalogue.ids[i] for i in world.new])
        own = own.filter(pc.invert(pc.is_in(own["item_id"], new)))
    answered = client_events(answers, world.items)
    return pa.concat_tables([own, answered]).sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])


def expected_clicks(world: World, truth: F64, items: list[RankedItem]) -> float:
    """Return the expected clicks: the hidden truth x the chance that the rank is looked at; no luck in it."""
    seen = seen_probability(world.shop.params, np.arange(1, len(items) + 1, dtype=np.float64))
    return float(seen @ truth[[int(item.item_id[1:]) for item in items]])


def good_items(world: World) -> Mask:
    """Return which new items are in the fifth with the highest true appeal."""
    return np.asarray(world.appeal >= np.quantile(world.appeal, 0.8))


def _figures(good: Mask, arms: list[dict[bool, Arm]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    found: dict[bool, F64] = {}
    for slot, name in ((True, "with"), (False, "without")):
        day = found[slot] = np.concatenate([arm[slot].found_on() for arm in arms])
        places = np.concatenate([arm[slot].places_until(arm[slot].found_on()) for arm in arms])
        for which, of in (("good", good), ("other", ~good)):
            with_interval(figures, f"{which}_found_{name}", np.isfinite(day[of]).astype(np.float64))
        # An item that was not found counts with the days and places it had: the medians are at least these.
        _median(figures, f"good_days_until_found_{name}", np.minimum(day[good], DAYS))
        _median(figures, f"good_places_until_found_{name}", places[good])
        clicks = np.concatenate([np.array(arm[slot].clicks).ravel() for arm in arms])
        figures[f"clicks_a_list_{name}"] = float(clicks.mean())
        total = np.concatenate([arm[slot].shown.sum(axis=0) for arm in arms])
        figures[f"good_places_{name}"], figures[f"other_places_{name}"] = total[good].mean(), total[~good].mean()
    gained = np.isfinite(found[True][good]).astype(float) - np.isfinite(found[False][good]).astype(float)
    with_interval(figures, "good_found_gain", gained)
    base = figures["clicks_a_list_without"]
    cost = np.concatenate([arm[True].cost for arm in arms])
    net = np.concatenate([(np.array(arm[True].clicks) - np.array(arm[False].clicks)).ravel() for arm in arms])
    last = np.concatenate([(np.array(arm[True].clicks) - np.array(arm[False].clicks))[-SPAN:].ravel() for arm in arms])
    for name, values in (("of_the_slot_itself", cost), ("in_all", net), (f"last_{SPAN}_days", last)):
        with_interval(figures, f"clicks_change_{name}", values / base)
    return figures


def with_interval(figures: dict[str, float], name: str, values: F64) -> None:
    """Add a mean and its bootstrap interval to the figures."""
    figures[name], figures[f"{name}_low"], figures[f"{name}_high"] = bootstrap_mean(values, seed=1)


def _median(figures: dict[str, float], name: str, values: F64) -> None:
    """Median with a percentile bootstrap interval."""
    rng = np.random.default_rng(1)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    figures[name] = float(np.median(values))
    figures[f"{name}_low"], figures[f"{name}_high"] = (float(q) for q in np.quantile(medians, [0.025, 0.975]))


def _plot(good: Mask, arms: dict[str, list[dict[bool, Arm]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(WAYS) + 1, figsize=(12, 3.5), layout="constrained")
    days = np.arange(1, DAYS + 1)
    for axis, way in zip(axes, WAYS, strict=False):
        for slot, style, name in ((True, "-", "with the slot"), (False, "--", "without")):
            day = np.concatenate([arm[slot].found_on() for arm in arms[way]])
            for of, colour, which in ((good, "#2b6cb0", "best fifth"), (~good, "#a0aec0", "others")):
                axis.plot(days, [(day[of] <= d).mean() for d in days], style, color=colour, label=f"{which}, {name}")
        title = {"browsing": "Also met by browsing", "lists_only": "Met in lists alone"}[way]
        axis.set(xlabel="days since they came", ylabel="share of new items found", title=title, ylim=(0, 1))
        axis.legend(fontsize=7)
    for way, colour in zip(WAYS, ("#2b6cb0", "#c05621"), strict=True):
        change = [
            np.concatenate([np.array(arm[True].clicks[d]) - np.array(arm[False].clicks[d]) for arm in arms[way]]).mean()
            for d in range(DAYS)
        ]
        axes[-1].plot(days, change, color=colour, label=way.replace("_", " "))
    axes[-1].axhline(0.0, color="black", linewidth=0.8)
    axes[-1].set(xlabel="days since they came", ylabel="expected clicks a list", title="With the slot minus without")
    axes[-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
