"""An A/B test by simulated users over HTTP: the two-stage model, 7-day popularity, and what an oracle would do."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from deployment.statistics.uplift import Rate, click_rate, relative_uplift, users_per_arm
from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.event_log import write_dataset
from feature_repo.materialize import materialize
from feature_repo.settings import Settings
from feature_repo.simulator.clicks import seen_probability
from feature_repo.simulator.params import SimulatorParams
from feature_repo.simulator.world import Simulator
from feature_repo.store import apply
from larder.benches.popularity_bundle import save_popularity
from larder.benches.uplift_page import plot, tell
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import Service
from larder.services.stack import Stack, project_service, settings_env
from larder_client.answers import Event, Recommendations
from larder_client.client import LarderClient
from training.generators.als import Als
from training.line_up import default_line_up
from training.offline_table import offline_item_table
from training.rankers.catboost_ranker import CatBoostParams
from training.train import TrainConfig, train

F64 = npt.NDArray[np.float64]

#: Seeds the simulator's parameters were not chosen on, and no other bench uses.
SEEDS: Final = (501, 502, 503)
ARMS: Final = ("two_stage", "popularity")
K: Final = 10
VISITS: Final = 5
_PARAMS: Final = SimulatorParams(n_users=1_500, n_items=800)
_EVENTS: Final = 90_000
#: Smaller than the default in windows, trees and factors, as the shop is: minutes, not tens of them.
_CONFIG: Final = TrainConfig(
    windows=2,
    test_share=0.05,
    line_up=tuple(replace(one, factors=16, iterations=5) if isinstance(one, Als) else one for one in default_line_up()),
    ranker=CatBoostParams(iterations=200),
)
#: Rates and uplifts of the power table.
RATES: Final = (0.005, 0.01, 0.03, 0.05, 0.1)
UPLIFTS: Final = (0.02, 0.05, 0.1, 0.2)


@dataclass
class Seen:
    """What the users of one arm met, in the order of their first visit.

    Attributes
    ----------
    clicks, shown
        Of each user.
    expected
        Clicks that all lists shown would have by the truth, without luck.
    degraded
        Answers below the rung `full` of the ladder.
    strangers
        Answers to users of whom nothing was known.
    """

    clicks: dict[str, float] = field(default_factory=dict)
    shown: dict[str, float] = field(default_factory=dict)
    expected: float = 0.0
    degraded: int = 0
    strangers: int = 0

    def add(self, user: str, clicks: int, expected: float, answer: Recommendations) -> None:
        """Note one visit."""
        self.expected += expected
        self.clicks[user] = self.clicks.get(user, 0.0) + clicks
        self.shown[user] = self.shown.get(user, 0.0) + len(answer.items)
        self.degraded += answer.level != "full"
        self.strangers += "unknown_user" in answer.reasons

    @property
    def rate(self) -> Rate:
        """Clicks per item shown."""
        return click_rate(np.array(list(self.clicks.values())), np.array(list(self.shown.values())))


@dataclass(frozen=True)
class Tested:
    """One shop.

    Attributes
    ----------
    arms
        What the users of each arm met.
    expected
        Expected clicks of the first list each arm, and the oracle, has for every user, by the truth, shape (users,).
    """

    arms: dict[str, Seen]
    expected: dict[str, F64]


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Test in every shop, and say how many users such a test takes."""
    shops = [_test(settings, seed) for seed in SEEDS]
    figures: dict[str, float] = {}
    for seed, shop in zip(SEEDS, shops, strict=True):
        figures |= _figures(f"seed_{seed}.", [shop])
    figures |= _figures("", shops)
    correlation = float(np.mean([seen.rate.correlation for shop in shops for seen in shop.arms.values()]))
    shown = float(np.mean([seen.rate.shown for shop in shops for seen in shop.arms.values()]))
    figures |= {"correlation": correlation, "shown_a_user": shown}
    power = np.array(
        [[users_per_arm(rate, up, shown=shown, correlation=correlation) for up in UPLIFTS] for rate in RATES]
    )
    for rate, row in zip(RATES, power.tolist(), strict=True):
        figures |= {f"power.ctr_{rate:g}.uplift_{up:g}": float(users) for up, users in zip(UPLIFTS, row, strict=True)}
    print(tell(figures, RATES, UPLIFTS, power, VISITS, K))
    plot(figures, SEEDS, correlation, shown, settings.results_dir / "uplift.png")
    return figures, {"uplift": (">=", 0.1), "uplift_low": (">", 0.1), "degraded": ("==", 0.0)}


def _figures(prefix: str, shops: list[Tested]) -> dict[str, float]:
    rates = [{name: seen.rate for name, seen in shop.arms.items()} for shop in shops]
    found = relative_uplift([(one["two_stage"], one["popularity"]) for one in rates])
    figures = {"uplift": found.value, "uplift_low": found.low, "uplift_high": found.high}
    for name in ARMS:
        # The mean over shops; the interval of one is its own.
        values = [one[name] for one in rates]
        error = float(np.sqrt(sum(one.error**2 for one in values))) / len(values)
        mean = float(np.mean([one.value for one in values]))
        figures |= {
            f"{name}.ctr": mean,
            f"{name}.ctr_low": mean - 1.96 * error,
            f"{name}.ctr_high": mean + 1.96 * error,
        }
        arms = [shop.arms[name] for shop in shops]
        figures[f"{name}.true_ctr"] = sum(one.expected for one in arms) / sum(sum(one.shown.values()) for one in arms)
        figures[f"{name}.users"] = float(sum(one.users for one in values))
        figures[f"{name}.design_effect"] = float(np.mean([one.design_effect for one in values]))
    expected = {name: np.concatenate([shop.expected[name] for shop in shops]) / K for name in shops[0].expected}
    for name, values_of in expected.items():
        figures[f"true.{name}.ctr"] = float(values_of.mean())
    rng = np.random.default_rng(1)
    users = rng.integers(0, len(expected["oracle"]), (1000, len(expected["oracle"])))
    means = {name: of[users].mean(axis=1) for name, of in expected.items()}
    true = {name: float(of.mean()) for name, of in expected.items()}
    for name, part in (("uplift", _uplift), ("oracle_uplift", _oracle_uplift), ("share_of_oracle", _share)):
        low, high = np.quantile(part(means), [0.025, 0.975])
        figures |= {f"true.{name}": float(part(true)), f"true.{name}_low": float(low)}
        figures[f"true.{name}_high"] = float(high)
    figures["degraded"] = float(sum(seen.degraded for shop in shops for seen in shop.arms.values()))
    figures["strangers_share"] = sum(s.strangers for shop in shops for s in shop.arms.values()) / sum(
        sum(s.shown.values()) / K for shop in shops for s in shop.arms.values()
    )
    return {f"{prefix}{name}": value for name, value in figures.items()}


def _uplift(of: dict[str, float]) -> float:
    return of["two_stage"] / of["popularity"] - 1.0


def _oracle_uplift(of: dict[str, float]) -> float:
    return of["oracle"] / of["popularity"] - 1.0


def _share(of: dict[str, float]) -> float:
    return (of["two_stage"] - of["popularity"]) / (of["oracle"] - of["popularity"])


def arm_of(user: str, seed: int) -> str:
    """Return a user's arm: the same at every visit, half of them each."""
    digest = hashlib.blake2b(f"{seed}|{user}".encode(), digest_size=8).digest()
    return ARMS[digest[0] & 1]


def _test(settings: Settings, seed: int) -> Tested:
    """Make a shop, train, serve both bundles, and let its users visit."""
    now = datetime.now(UTC)
    shop = Simulator(_PARAMS, seed=seed)
    # Histories move by whole weeks: one that ends within the next week is cut off at this moment.
    made = shop.dataset(_EVENTS, now + timedelta(days=7))
    before = [
        pc.less(table[name], pa.scalar(now, table[name].type))
        for table, name in ((made.events, "event_timestamp"), (made.items, "created_at"))
    ]
    history = replace(made, events=made.events.filter(before[0]), items=made.items.filter(before[1]))
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        own = replace(
            settings,
            home=Path(work),
            project=f"uplift{seed}",
            seed=seed,
            redis_port=any_free_port(),
            request_budget_ms=0,  # lists are compared, not latencies
            redis_timeout_ms=1_000,
            user_events_per_s=0,
        )
        with Stack(own, mlflow=False) as stack:
            own = stack.settings
            with progress(f"shop {seed}: train"):
                report = write_dataset(history, own)
                backfill(own)
                apply(own)
                materialize(own)
                bundles = {"two_stage": train(own, _CONFIG, report.data_hash).bundle.bundle_id}
                until = round(now.timestamp() * 1e6)
                table = offline_item_table(AsOfReader(own, until), until)
                bundles["popularity"] = save_popularity(
                    own.bundles_dir, table, name=own.model_name, trained_until_us=until
                )
            stack.start(project_service(own, "ingest", ["ingest", "run"], ready=lambda _port: True))
            with _api(stack, own, bundles["two_stage"]) as one, _api(stack, own, bundles["popularity"]) as other:
                return _visits(shop, seed, dict(zip(ARMS, (one, other), strict=True)), table.ids, table.available)


@contextmanager
def _api(stack: Stack, settings: Settings, bundle_id: str) -> Iterator[LarderClient]:
    """Run an API process that serves one bundle, and give a client of it."""

    def ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "larder.cli", "serve", "--port", str(port), "--bundle", bundle_id]

    name = f"api-{bundle_id[:8]}"
    running = stack.start(Service(name, command, ready=ready, port=any_free_port(), env=settings_env(settings)))
    try:
        with LarderClient(f"http://127.0.0.1:{running.port}", timeout_s=10.0) as client:
            found = client.recommend("nobody", 1)
            if found.bundle_id not in (bundle_id, None):
                raise RuntimeError(f"the process serves {found.bundle_id}, not {bundle_id}")
            yield client
    finally:
        running.stop()


def _visits(
    shop: Simulator, seed: int, apis: dict[str, LarderClient], ids: tuple[str, ...], available: npt.NDArray[np.bool_]
) -> Tested:
    """Let everybody who is there visit, each by their own arm; first, all lists are held against the truth."""
    now, rng = datetime.now(UTC), np.random.default_rng([seed, 7])
    day = shop._day(now)
    there = np.flatnonzero((shop.users.arrival_day <= day) & (day < shop.users.leaving_day))
    users = [shop.users.ids[u] for u in there]
    on_sale = [item for item, here in zip(ids, available, strict=True) if here]
    expected: dict[str, list[float]] = {"oracle": [], **{name: [] for name in ARMS}}
    arms = {name: Seen() for name in ARMS}
    truths: dict[str, dict[str, float]] = {}
    with progress(f"shop {seed}: {len(users):,} users visit", len(users) * (VISITS + 1)) as shown:
        for user in users:
            truth = dict(zip(on_sale, shop.true_probability(user, on_sale, now).tolist(), strict=True))
            truths[user] = truth
            best = sorted(truth, key=lambda item: (-truth[item], item))[:K]
            expected["oracle"].append(_expected(shop, [truth[item] for item in best]))
            for name, api in apis.items():
                items = [item.item_id for item in api.recommend(user, K).items]
                expected[name].append(_expected(shop, [truth.get(item, 0.0) for item in items]))
            shown.advance()
        for visit in range(VISITS):
            for u in rng.permutation(len(users)).tolist():
                user, moment = users[u], datetime.now(UTC)
                name = arm_of(user, seed)
                answer = apis[name].recommend(user, K, request_id=f"{seed}-{visit}-{user}")
                listed = [item.item_id for item in answer.items]
                events = shop.respond(user, listed, moment, rng, answer.request_id)
                clicks = sum(one["event_type"] == "view" for one in events)
                arms[name].add(user, clicks, _expected(shop, [truths[user].get(i, 0.0) for i in listed]), answer)
                if events:
                    apis[name].send([Event(**{**one, "event_timestamp": moment}) for one in events])
                shown.advance()
    return Tested(arms, {name: np.array(values) for name, values in expected.items()})


def _expected(shop: Simulator, click: list[float]) -> float:
    """Return the expected clicks of a list, by P(click | seen) of its items."""
    seen = seen_probability(shop.params, np.arange(1, len(click) + 1, dtype=np.float64))
    return float(seen @ np.array(click))
