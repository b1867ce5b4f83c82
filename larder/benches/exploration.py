"""What exploration costs in clicks and how many good new items it finds, on the simulator: none, epsilon, Thompson."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from feature_repo.settings import Settings
from larder.benches.new_items import (
    DAYS,
    EVENTS,
    I64,
    LISTS_A_DAY,
    LOOKS,
    N_NEW,
    PARAMS,
    Arm,
    K,
    Mask,
    events_of_day,
    expected_clicks,
    good_items,
    trained,
    with_interval,
)
from larder.benches.simulated_rounds import FoldedFeatures, World, make_world
from larder.progress import Progress, progress
from serving.cascade.exploration import Exploration, Exploring
from serving.cascade.recommender import Recommender
from serving.exploration import before_exploration

#: Seeds the simulator's parameters were not chosen on.
SEEDS: Final = (311, 312, 313)
#: New items are met in lists alone: what no list shows, nobody finds.
WAY: Final = "lists_only"
RULES: Final[dict[str, Exploration | None]] = {
    "none": None,
    "epsilon": Exploration("epsilon", (5,), epsilon=0.3),
    "thompson": Exploration("thompson", (5,), epsilon=0.1),
    "epsilon_new": Exploration("epsilon", (5,), epsilon=0.3, pool="new"),
    "thompson_new": Exploration("thompson", (5,), epsilon=0.1, pool="new"),
    "epsilon_new_3_places": Exploration("epsilon", (2, 4, 6), epsilon=0.5, pool="new", pool_size=30),
    "thompson_new_3_places": Exploration("thompson", (2, 4, 6), epsilon=0.1, pool="new", pool_size=30),
}
_LABELS: Final = {
    "epsilon": "epsilon .3, rank 5, below the list",
    "thompson": "Thompson, rank 5, below the list",
    "epsilon_new": "epsilon .3, rank 5, new",
    "thompson_new": "Thompson, rank 5, new",
    "epsilon_new_3_places": "epsilon .5, three places, new",
    "thompson_new_3_places": "Thompson, three places, new",
}
#: A new item is known of when so many clicks were made on it in lists.
KNOWN: Final = 5


@dataclass
class Explored(Arm):
    """An arm with the clicks in lists on each new item, shape (new items,)."""

    clicked: I64 = field(default_factory=lambda: np.zeros(N_NEW, np.int64))
    drawn: list[float] = field(default_factory=list)


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Let every shop live on under each policy, on the same visits and the same luck."""
    arms: dict[str, list[Explored]] = {name: [] for name in RULES}
    good = []
    for seed in SEEDS:
        world = make_world(PARAMS, seed, n_events=EVENTS, n_new=N_NEW, days=DAYS, end=datetime(2026, 1, 1, tzinfo=UTC))
        recommender = trained(settings, world)
        good.append(good_items(world))
        with progress(f"shop {seed}: lists", len(RULES) * DAYS * LISTS_A_DAY) as shown:
            for name, rule in RULES.items():
                arms[name].append(_live(world, recommender, rule, shown))
    figures = _figures(np.concatenate(good), arms)
    _plot(figures, settings.results_dir / "exploration.png")
    return figures, {}


def _live(world: World, recommender: Recommender, rule: Exploration | None, shown: Progress) -> Explored:
    """Show lists day by day; answers are in the features of the next day."""
    features, seed = FoldedFeatures(), world.shop.seed
    features.add(world.history.events)
    place = {world.shop.catalogue.ids[i]: n for n, i in enumerate(world.new)}
    arm = Explored(np.zeros((DAYS, N_NEW), np.int64), np.zeros((DAYS, N_NEW), np.int64))
    for day in range(DAYS):
        now = world.cut + timedelta(days=day, hours=12)
        table, now_us = features.table(world, now), round(now.timestamp() * 1e6)
        answers, clicks = [], list[float]()
        for number, user in enumerate(world.visitors(now, LISTS_A_DAY, np.random.default_rng([seed, 5, day]))):
            draft = recommender.draft(features.user(user, now_us), table, now_us, k=K)
            pairs = features.pairs(user, draft.item_ids, now_us)
            request = f"{seed}-{day}-{number}"
            slate = recommender.finish(draft, pairs, None if rule is None else Exploring(rule, request))
            for item in slate.items:
                if (new := place.get(item.item_id)) is not None:
                    arm.shown[day, new] += 1
                    arm.in_slot[day, new] += item.slot is not None
            truth = world.click_if_seen(user, now)
            clicks.append(expected_clicks(world, truth, slate.items))
            plain = before_exploration(slate.items, slate.explored)
            arm.cost.append(clicks[-1] - expected_clicks(world, truth, plain))
            arm.drawn.append(float(sum(one.taken > 0 for one in slate.explored)))
            rng = np.random.default_rng([seed, 6, day, number])  # the same luck at every rank under every policy
            ids = [item.item_id for item in slate.items]
            for look in range(LOOKS):
                found = world.answers(user, ids, truth, now, rng, f"{day}-{number}-{look}")
                for one in found:
                    if one["event_type"] == "view" and (new := place.get(one["item_id"])) is not None:
                        arm.clicked[new] += 1
                answers += found
            shown.advance()
        arm.clicks.append(clicks)
        arm.mean_places.append(len(clicks) * K / int(table.available.sum()))
        features.add(events_of_day(world, WAY, day, answers))
    return arm


def _figures(good: Mask, arms: dict[str, list[Explored]]) -> dict[str, float]:
    figures = {"items": float(len(good)), "good_items": float(good.sum())}
    found = {name: np.isfinite(np.concatenate([arm.found_on() for arm in those])) for name, those in arms.items()}
    clicks = {name: np.concatenate([np.array(arm.clicks).ravel() for arm in those]) for name, those in arms.items()}
    base = float(clicks["none"].mean())
    for name, those in arms.items():
        shown = np.concatenate([arm.shown.sum(axis=0) for arm in those])
        figures[f"{name}.clicks_a_list"] = float(clicks[name].mean())
        figures[f"{name}.good_places"] = float(shown[good].mean())
        clicked = np.concatenate([arm.clicked for arm in those])
        figures[f"{name}.good_clicks"] = float(clicked[good].mean())
        with_interval(figures, f"{name}.good_known", (clicked[good] >= KNOWN).astype(float))
        with_interval(figures, f"{name}.good_found", found[name][good].astype(float))
        with_interval(figures, f"{name}.other_found", found[name][~good].astype(float))
        if name == "none":
            continue
        figures[f"{name}.drawn_a_list"] = float(np.mean(np.concatenate([arm.drawn for arm in those])))
        gained = found[name][good].astype(float) - found["none"][good].astype(float)
        with_interval(figures, f"{name}.good_found_gain", gained)
        cost = np.concatenate([np.array(arm.cost) for arm in those])
        with_interval(figures, f"{name}.ctr_change_of_the_draws", cost / base)
        with_interval(figures, f"{name}.ctr_change_in_all", (clicks[name] - clicks["none"]) / base)
    return figures


def _plot(figures: dict[str, float], path: Path) -> None:
    """Draw what each policy costs against what it finds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    colours = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#00838f", "#ad1457")
    for name, colour in zip([name for name in RULES if name != "none"], colours, strict=True):
        x, y = (f"{name}.{what}" for what in ("ctr_change_of_the_draws", "good_known"))
        bars = [
            [[abs(figures[one] - figures[f"{one}_low"])], [abs(figures[f"{one}_high"] - figures[one])]]
            for one in (x, y)
        ]
        axis.errorbar(
            100 * figures[x],
            100 * figures[y],
            xerr=100 * np.array(bars[0]),
            yerr=100 * np.array(bars[1]),
            fmt="o",
            color=colour,
            label=_LABELS[name],
        )
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set(xlabel="change of expected clicks by the draws, %", ylabel="good new items known (5 clicks or more), %")
    axis.legend(fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
