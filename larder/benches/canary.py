"""The decisions of a rollout on simulated traffic: how often they err, and how soon they find what is wrong.

Requests are simulated one by one: users come as often as they like (a few very often), more by day than by night, and
some fail or are slow again and again. The same requests go to the product's test, to a z-test that peeks and to a
threshold rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from deployment.statistics.alpha import ALPHA, guardrail_alpha
from deployment.statistics.clicks import ClickTest, Stratum, users_needed
from deployment.statistics.guardrail import RISK_RATIOS
from feature_repo.settings import Settings

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RUNS = 2_000
POWER_RUNS = 400
#: A step that lasts so many canary requests; a bad candidate must be found within it.
REQUESTS = 4_000
STEPS = 4
OBJECTIVE_MS = 100.0
RATES = (0.001, 0.005, 0.02, 0.05)
#: How the peeking tests look: every so many canary requests.
_PEEK = 100
_THRESHOLD = 0.01


@dataclass(frozen=True)
class Traffic:
    """Requests of the two arms in order of time, shape (n,): whose, in the canary or not, and whether they failed."""

    user: npt.NDArray[np.int64]
    canary: Bools
    failed: Bools


def traffic(rng: np.random.Generator, rates: tuple[float, float], requests: int, *, spread: float = 0.2) -> Traffic:
    """Simulate requests of two arms of equal shares.

    Parameters
    ----------
    rates
        Mean failure rates of baseline and canary.
    requests
        Requests of each arm.
    spread
        How unlike users are: beta distribution with `spread` as the intra-class correlation. 0.2 means that one who
        failed is far likelier to fail again.
    """
    n, users = 2 * requests, max(requests // 2, 50)
    activity = rng.pareto(1.5, users) + 0.2
    user = rng.choice(users, n, p=activity / activity.sum())
    in_canary = rng.random(users) < 0.5
    # Failures go with the hour: at night hardly any, in the evening twice the mean.
    cycle = 1.0 + 0.9 * np.sin(np.linspace(0.0, 4.0 * np.pi, n))
    mean = np.where(in_canary, rates[1], rates[0])
    a, b = mean * (1 / spread - 1), (1 - mean) * (1 / spread - 1)
    risk = rng.beta(a, b)
    return Traffic(user, in_canary[user], rng.random(n) < np.minimum(risk[user] * cycle, 1.0))


def slow_traffic(rng: np.random.Generator, added_ms: float, requests: int) -> Traffic:
    """Simulate latencies: lognormal around 20 ms, users near and far, the canary `added_ms` slower."""
    made = traffic(rng, (0.0005, 0.0005), requests)
    distance = rng.lognormal(0.0, 0.4, int(made.user.max()) + 1)
    latency = 20.0 * distance[made.user] * rng.lognormal(0.0, 0.5, len(made.user)) + added_ms * made.canary
    return Traffic(made.user, made.canary, latency > OBJECTIVE_MS)


def e_test(made: Traffic, alpha: float) -> int | None:
    """Return the canary requests until the product's test rolls back; None if it does not.

    Each user counts with the first failure only; `GuardrailTest` in one sweep.
    """
    at = np.flatnonzero(made.failed)
    _, first = np.unique(made.user[at], return_index=True)
    at = at[np.sort(first)]
    hits = np.cumsum(made.canary[at])
    misses = np.arange(1, len(at) + 1) - hits
    logs = [hits * math.log(2 * r / (1 + r)) + misses * math.log(2 / (1 + r)) for r in RISK_RATIOS]
    crossed = np.flatnonzero(np.logaddexp.reduce(logs, axis=0) - math.log(len(RISK_RATIOS)) >= -math.log(alpha))
    return int(made.canary[: at[crossed[0]] + 1].sum()) if len(crossed) else None


def _peeks(made: Traffic) -> tuple[F64, F64, F64, F64]:
    """Return the counts at each look: canary requests, its failures, baseline requests, its failures."""
    canary = np.cumsum(made.canary, dtype=np.float64)
    looks = np.searchsorted(canary, np.arange(_PEEK, canary[-1] + 1, _PEEK))
    failed_c = np.cumsum(made.failed & made.canary, dtype=np.float64)
    failed = np.cumsum(made.failed, dtype=np.float64)
    total = np.arange(1.0, len(canary) + 1)
    return canary[looks], failed_c[looks], (total - canary)[looks], (failed - failed_c)[looks]


def z_test(made: Traffic, p: float) -> int | None:
    """Return when a one-sided z-test of two shares, taken anew at every look, says p < `p`."""
    from scipy.stats import norm

    n1, k1, n0, k0 = _peeks(made)
    pooled = (k1 + k0) / (n1 + n0)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / np.maximum(n0, 1)))
    z = (k1 / n1 - k0 / np.maximum(n0, 1)) / np.where(error > 0, error, np.inf)
    found = np.flatnonzero(z > norm.isf(p))
    return int(n1[found[0]]) if len(found) else None


def threshold_rule(made: Traffic) -> int | None:
    """Return when the canary's rate is above the baseline's by a point, from the second look on."""
    n1, k1, n0, k0 = _peeks(made)
    found = np.flatnonzero(k1 / n1 - k0 / np.maximum(n0, 1) > _THRESHOLD)
    found = found[found >= 1]
    return int(n1[found[0]]) if len(found) else None


def _rules(alpha: float) -> dict[str, Callable[[Traffic], int | None]]:
    return {
        "e-process": lambda made: e_test(made, alpha),
        "peeking z, p < .05": lambda made: z_test(made, 0.05),
        "peeking z, p < .01": lambda made: z_test(made, 0.01),
        "threshold 1 point": threshold_rule,
    }


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Simulate, print the tables, draw the picture."""
    figures = _false_rollbacks() | _power() | _clicks()
    _picture(settings, figures)
    targets: dict[str, tuple[str, float]] = {f"aa.{rate:g}.e-process": ("<=", 0.01) for rate in RATES}
    targets |= {
        "aa.whole_rollout": ("<=", 0.01),
        "errors_5_percent.e-process.median_requests": ("<=", 400),
        "errors_5_percent.e-process.found": (">=", 1.0),
        "slower_200_ms.e-process.median_requests": ("<=", 400),
        "slower_200_ms.e-process.found": (">=", 1.0),
        "clicks.aa_wrong": ("<=", 0.06),
    }
    return figures, targets


def _false_rollbacks() -> dict[str, float]:
    """A/A: nothing is wrong, and every rollback is an error."""
    rng = np.random.default_rng(1)
    figures: dict[str, float] = {}
    whole = np.zeros(RUNS, np.bool_)
    print(f"\nA/A, {RUNS:,} runs of {REQUESTS:,} requests an arm: share rolled back")
    for step, rate in enumerate(RATES):
        rules = _rules(guardrail_alpha("error", step, STEPS))
        wrong = dict.fromkeys(rules, 0)
        for number in range(RUNS):
            made = traffic(rng, (rate, rate), REQUESTS)
            for name, rule in rules.items():
                found = rule(made) is not None
                wrong[name] += found
                if name == "e-process":
                    whole[number] |= found
        figures |= {f"aa.{rate:g}.{name}": count / RUNS for name, count in wrong.items()}
        print(f"  failures {rate:6.1%}  " + "  ".join(f"{name} {count / RUNS:.2%}" for name, count in wrong.items()))
    figures["aa.whole_rollout"] = float(whole.mean())
    print(f"  all four as the steps of one rollout, the e-process: {whole.mean():.2%} (alpha {ALPHA:.0%})")
    return figures


def _power() -> dict[str, float]:
    """Something is wrong: how soon, and how often, it is found in the first step."""
    rng = np.random.default_rng(2)
    figures: dict[str, float] = {}
    cases: dict[str, tuple[Callable[[], Traffic], str]] = {
        "errors_5_percent": (lambda: traffic(rng, (0.005, 0.05), REQUESTS, spread=0.02), "error"),
        "errors_5_percent_clustered": (lambda: traffic(rng, (0.005, 0.05), REQUESTS), "error"),
        "errors_2_percent": (lambda: traffic(rng, (0.005, 0.02), REQUESTS, spread=0.02), "error"),
        "slower_200_ms": (lambda: slow_traffic(rng, 200.0, REQUESTS), "slow"),
        "slower_30_ms": (lambda: slow_traffic(rng, 30.0, REQUESTS), "slow"),
    }
    print(f"\nSomething is wrong, {POWER_RUNS} runs: found in the first step, and after how many canary requests")
    for case, (make, guardrail) in cases.items():
        rules = _rules(guardrail_alpha(guardrail, 0, STEPS))
        when: dict[str, list[float]] = {name: [] for name in rules}
        for _ in range(POWER_RUNS):
            made = make()
            for name, rule in rules.items():
                found = rule(made)
                when[name].append(math.inf if found is None else found)
        for name, values in when.items():
            figures[f"{case}.{name}.found"] = float(np.mean(np.isfinite(values)))
            median = float(np.median(values))
            if math.isfinite(median):
                figures[f"{case}.{name}.median_requests"] = median
            print(f"  {case:<28} {name:<20} found {np.mean(np.isfinite(values)):7.1%}  median {median:7.0f}")
    return figures


def _clicks(rate: float = 0.1) -> dict[str, float]:
    """Compare click rates: errors of the planned looks, and the users that changes take."""
    rng = np.random.default_rng(3)
    figures: dict[str, float] = {}
    print(f"\nShare of users who click {rate:.0%}: decisions of the planned looks")
    for change in (0.0, -0.2, 0.1):
        planned = users_needed(rate, change or -0.2)
        decisions, users = [], []
        for _ in range(POWER_RUNS):
            state, hits = ClickTest(planned), [0, 0]
            for part in range(1, 5):
                new = planned * part // 4 - planned * (part - 1) // 4
                hits[0] += int(rng.binomial(new, rate * (1 + change)))
                hits[1] += int(rng.binomial(new, rate))
                seen = planned * part // 4
                state = state.look({"s": Stratum(seen, hits[0])}, {"s": Stratum(seen, hits[1])})
                if state.decision != "open":
                    break
            decisions.append(state.decision)
            users.append(seen)
        wanted = {"worse", "better"} if not change else {"worse" if change < 0 else "better"}
        share = float(np.mean([one in wanted for one in decisions]))
        key = "clicks.aa_wrong" if not change else f"clicks.{change:+.0%}".replace("%", "_percent")
        figures |= {key: share} if not change else {f"{key}.found": share, f"{key}.users": float(np.mean(users))}
        print(f"  change {change:+5.0%}  {' or '.join(sorted(wanted))} {share:6.1%}  "
              f"users an arm: planned {planned:,}, mean {np.mean(users):,.0f}")  # fmt: skip
    return figures


def _picture(settings: Settings, figures: dict[str, float]) -> None:
    """Draw false rollbacks by rule and failure rate."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(_rules(ALPHA))
    figure, axes = plt.subplots(figsize=(7.0, 3.5))
    for i, name in enumerate(names):
        places = np.arange(len(RATES)) + (i - 1.5) * 0.2
        axes.bar(places, [figures[f"aa.{rate:g}.{name}"] for rate in RATES], 0.19, label=name)
    axes.axhline(ALPHA, color="black", linewidth=0.8, linestyle="--", label=f"{ALPHA:.0%}")
    axes.set_xticks(range(len(RATES)), [f"{rate:.1%}" for rate in RATES])
    axes.set(xlabel="failure rate of both arms", ylabel="rolled back though nothing is wrong", ylim=(0, 1))
    axes.legend(fontsize=8)
    path = settings.home / "canary" / "false_rollbacks.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\npicture: {path}")
