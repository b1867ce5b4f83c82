"""Off-policy evaluation beside the truth: what a policy earned on Open Bandit, and what it earns in a simulator."""

from __future__ import annotations

from typing import Final

import numpy as np

from deployment.off_policy.answer import Answer, answer
from deployment.off_policy.estimators import F64, I64, Logged, Terms, folds_of
from deployment.off_policy.intervals import intervals
from feature_repo.settings import Settings
from feature_repo.simulator.clicks import seen_probability
from feature_repo.simulator.params import BASE_END, SimulatorParams
from feature_repo.simulator.world import Simulator
from larder.benches.open_bandit import CAMPAIGNS, FOLDS, POLICIES, Campaign, asked_about, load, shares
from larder.progress import progress
from serving.cascade.exploration import Exploration, Exploring, explore

#: Seeds the simulator's parameters were not chosen on.
SEEDS: Final = (401, 402, 403)
LOGS: Final = 100
VISITS: Final = 2_000
LOOKS: Final = 10
_PARAMS: Final = SimulatorParams(n_users=600, n_items=400, span_days=60)
_RANK: Final = 5
_LIST: Final = 10
_RULES: Final = {
    "epsilon": Exploration("epsilon", (_RANK,), epsilon=0.3, pool_size=11),
    "thompson": Exploration("thompson", (_RANK,), epsilon=0.3, pool_size=11),
}
_ESTIMATORS: Final = ("IPS", "SNIPS", "DR")


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Ask logs whose answer is known."""
    figures = _open_bandit(settings) | _simulator()
    targets = {
        "open_bandit.answered": (">=", 3.0),
        "open_bandit.snips_holds_truth": ("==", 1.0),
        "open_bandit.dr_holds_truth": ("==", 1.0),
        "open_bandit.unsupported_refused": ("==", 1.0),
        "simulator.refused_small": ("==", 1.0),
        "simulator.refused_wrong_propensities": ("==", 1.0),
    }
    targets |= {f"simulator.{rule}.{one}_coverage": (">=", 0.9) for rule in _RULES for one in _ESTIMATORS}
    return figures, targets


def _open_bandit(settings: Settings) -> dict[str, float]:
    """Ask each policy's log about the other; the other's own clicks are the truth, with an error of their own."""
    figures: dict[str, float] = {}
    held: dict[str, list[bool]] = {name: [] for name in _ESTIMATORS}
    refused = []
    for campaign in CAMPAIGNS:
        logs = {policy: load(settings.data_dir, policy, campaign) for policy in POLICIES}
        n_items = 1 + max(int(log.item.max()) for log in logs.values())
        uniform = np.full((3, n_items), 1.0 / n_items)
        for source, target in (POLICIES, POLICIES[::-1]):
            policy = uniform if target == "random" else shares(logs[target], n_items)
            found = answer(asked_about(logs[source], policy), seed=1)
            name = f"open_bandit.{campaign}.{source}_to_{target}"
            figures |= _told(name, found, logs[target])
            refused.append((campaign, target, bool(found.refused)))
            for one in found.estimates:
                held[one.estimator].append(one.low <= float(logs[target].click.mean()) <= one.high)
    figures["open_bandit.answered"] = float(len(held["IPS"]))
    for estimator, those in held.items():
        figures[f"open_bandit.{estimator.lower()}_holds_truth"] = float(np.mean(those))
    # In the women's campaign Thompson sampling gave some items one chance in a million: nothing is known of them.
    figures["open_bandit.unsupported_refused"] = float(("women", "random", True) in refused)
    return figures


def _told(name: str, found: Answer, truth: Campaign) -> dict[str, float]:
    clicks = Terms(truth.click, np.ones(len(truth)))
    low, high = intervals([clicks], np.arange(len(truth)), seed=1)[0]
    figures = {
        f"{name}.truth": clicks.value,
        f"{name}.truth_low": float(low),
        f"{name}.truth_high": float(high),
        f"{name}.effective_rounds": found.effective_rounds,
        f"{name}.effective_clicks": found.effective_rewards,
        f"{name}.largest_weight": found.largest_weight,
        f"{name}.clipped": found.clipped,
        f"{name}.refused": float(bool(found.refused)),
    }
    for one in found.estimates:
        figures[f"{name}.{one.estimator}"] = one.value
        figures[f"{name}.{one.estimator}_low"], figures[f"{name}.{one.estimator}_high"] = one.low, one.high
    return figures


def _simulator() -> dict[str, float]:
    """Let users answer lists whose fifth place is drawn as production draws it, and ask about a better one."""
    figures: dict[str, float] = {}
    small, wrong = [], []
    with progress("simulated logs", len(SEEDS) * len(_RULES) * LOGS) as shown:
        for kind, rule in _RULES.items():
            held: dict[str, list[bool]] = {name: [] for name in _ESTIMATORS}
            values: dict[str, list[float]] = {name: [] for name in _ESTIMATORS}
            widths: dict[str, list[float]] = {name: [] for name in _ESTIMATORS}
            gains = []
            for seed in SEEDS:
                shop = _Shop(seed, rule)
                truth = shop.truth
                gains.append(truth / shop.incumbent)
                for number in range(LOGS):
                    rng = np.random.default_rng([seed, number])
                    log = shop.log(VISITS, rng)
                    for one in answer(log, seed=number).estimates:
                        held[one.estimator].append(one.low <= truth <= one.high)
                        values[one.estimator].append(one.value / truth)
                        widths[one.estimator].append((one.high - one.low) / 2 / truth)
                    if number < 10:
                        small.append(bool(answer(shop.log(20, rng)).refused))
                        wrong.append(bool(answer(_misstated(log)).refused))
                    shown.advance()
            figures[f"simulator.{kind}.true_gain"] = float(np.mean(gains)) - 1.0
            for name in _ESTIMATORS:
                figures[f"simulator.{kind}.{name}_coverage"] = float(np.mean(held[name]))
                figures[f"simulator.{kind}.{name}_bias"] = float(np.mean(values[name])) - 1.0
                figures[f"simulator.{kind}.{name}_half_width"] = float(np.mean(widths[name]))
    figures["simulator.refused_small"] = float(np.mean(small))
    figures["simulator.refused_wrong_propensities"] = float(np.mean(wrong))
    return figures


def _misstated(log: Logged) -> Logged:
    """Return a log that claims its draws were uniform."""
    return Logged(
        log.reward, np.full(len(log), 1 / 12), log.target, log.unit, log.unsupported, log.predicted, log.expected
    )


class _Shop:
    """Users, lists of a poor model, and a better one that would fill the drawn place otherwise.

    Attributes
    ----------
    truth, incumbent
        Clicks a round in that place by the better model, and by the poor one without draws.
    """

    def __init__(self, seed: int, rule: Exploration) -> None:
        shop = Simulator(_PARAMS, seed=seed)
        rng = np.random.default_rng([seed, 1])
        seen = float(seen_probability(_PARAMS, np.array([float(_RANK)]))[0])
        arms, chances, clicks, scores, better = [], [], [], [], []
        for user in shop.users.ids:
            click = shop.true_probability(user, shop.catalogue.ids, BASE_END)
            known = np.flatnonzero(click > 0)
            poor = click[known] * np.exp(rng.normal(0.0, 1.0, len(known)))
            good = click[known] * np.exp(rng.normal(0.0, 0.5, len(known)))
            ranked = np.argsort(-poor, kind="stable")[:60]
            order = np.arange(len(ranked))
            probability = np.minimum(poor[ranked], 0.9)
            evidence = rng.integers(0, 300, len(ranked)).astype(np.float64)
            _, (drawn,) = explore(order[:_LIST], order, None, probability, evidence, Exploring(rule, user))
            mine = ranked[drawn.arms]
            arms.append(drawn.arms)
            chances.append(drawn.propensities)
            clicks.append(seen * click[known][mine])
            scores.append(drawn.scores)
            better.append(good[mine].argmax())
        self._chances, self._clicks, self._scores = np.array(chances), np.array(clicks), np.array(scores)
        self._better: I64 = np.array(better, np.int64)
        self.truth = float(self._clicks[np.arange(len(better)), self._better].mean())
        self.incumbent = float(self._clicks[:, 0].mean())

    def log(self, visits: int, rng: np.random.Generator) -> Logged:
        """Draw users, the item of each look, and whether it was clicked; a visit is a unit."""
        user = np.repeat(rng.integers(0, len(self._better), visits), LOOKS)
        unit = np.repeat(np.arange(visits), LOOKS)
        n = np.arange(len(user))
        ends = self._chances[user].cumsum(axis=1)
        action = np.minimum((rng.random((len(user), 1)) >= ends).sum(axis=1), ends.shape[1] - 1)
        reward = (rng.random(len(user)) < self._clicks[user, action]).astype(np.float64)
        scale = _scale(self._scores[user, action], reward, folds_of(unit, FOLDS))
        return Logged(
            reward,
            self._chances[user, action],
            (action == self._better[user]).astype(np.float64),
            unit,
            np.zeros(len(n)),
            scale * self._scores[user, action],
            scale * self._scores[user, self._better[user]],
        )


def _scale(score: F64, reward: F64, fold: I64) -> F64:
    """Return by what the model's probability is multiplied to be clicks at the place, learned from other folds."""
    out = np.empty(len(score))
    for one in range(FOLDS):
        others = fold != one
        out[fold == one] = reward[others].sum() / max(float(score[others].sum()), 1e-12)
    return out
