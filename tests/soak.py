"""A soak: load and random faults for minutes on end, and what the API's process holds meanwhile.

`python -m tests.soak --minutes 20` writes `.larder/results/soak.json`; `tests/test_faults_soak.py` runs a short one.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo.settings import Settings
from larder.results import write_results
from serving.signature import ENVIRONMENT
from tests.fault_load import Held, ServedShop, held, served_shop, wait_ms
from tests.fault_proxy import Mode

#: Least and most seconds of a fault, and of the quiet after it.
_FAULT_S, _QUIET_S = (0.5, 4.0), (2.0, 6.0)
#: The first share of a run fills caches, pools and the allocator; memory is looked at afterwards. In 20 minutes it also
#: fills what is bounded by design: the status page's ten minutes, and the 20,000 lists remembered for feedback.
_WARM_UP = 0.5
_LOOK_S = 0.5
SHED = 503


@dataclass(frozen=True)
class Soaked:
    """What came of a soak: all looks at the process with their seconds, and the answers' figures."""

    figures: dict[str, float]
    at: list[float]
    looks: list[Held]
    faults: dict[str, int]


def _killed(shop: ServedShop, pause: Callable[[float], None], seconds: float) -> None:
    shop.kill_redis()
    pause(seconds)
    shop.start_redis()


def _stopped(shop: ServedShop, pause: Callable[[float], None], seconds: float) -> None:
    shop.redis.send_signal(signal.SIGSTOP)
    try:
        pause(seconds)
    finally:
        shop.redis.send_signal(signal.SIGCONT)


def _proxy(mode: Mode) -> Callable[[ServedShop, Callable[[float], None], float], None]:
    def fault(shop: ServedShop, pause: Callable[[float], None], seconds: float) -> None:
        shop.proxy.mode = mode
        try:
            pause(seconds)
        finally:
            shop.proxy.mode = "pass"

    return fault


_MODES: tuple[Mode, ...] = ("reset", "slow", "swallow", "refuse")
FAULTS = {"killed": _killed, "stopped": _stopped} | {mode: _proxy(mode) for mode in _MODES}


def soak(home: Path, seconds: float, seed: int, *, rps: float = 50.0) -> Soaked:
    """Serve for some time with faults at moments drawn from a seed.

    Returns
    -------
    Soaked
        `memory_slope_mb_per_10min` is a least-squares line through what follows the warm-up.
    """
    rng = random.Random(seed)
    at: list[float] = []
    looks: list[Held] = []
    faults, left = dict.fromkeys(FAULTS, 0), list[str]()
    with served_shop(home) as shop, shop.load(rps=rps) as load:
        began = time.monotonic()

        def pause(duration: float) -> None:
            end = time.monotonic() + duration
            while time.monotonic() < end:
                shop.processes.pause(_LOOK_S)
                at.append(time.monotonic() - began)
                looks.append(held(shop.api))

        pause(5.0)
        while time.monotonic() - began < seconds:
            left = left or rng.sample(sorted(FAULTS), len(FAULTS))  # each as often as the others
            name = left.pop()
            FAULTS[name](shop, pause, rng.uniform(*_FAULT_S))
            faults[name] += 1
            pause(rng.uniform(*_QUIET_S))
        recovery_s = shop.wait_full(10.0)
        pause(2.0)
        answers = tuple(load.answers)
        restarts = shop.processes.starts["api"] - 1
    moments, memory = np.array(at), np.array([look.memory_mb for look in looks])
    late = moments > _WARM_UP * moments[-1]
    first = looks[int(np.argmax(late))]
    figures = {
        "minutes": float(moments[-1] / 60),
        "seed": seed,
        "faults": sum(faults.values()),
        "answers": len(answers),
        "server_errors": sum(answer.status >= 500 and answer.status != SHED for answer in answers),
        "unanswered": sum(answer.status <= 0 for answer in answers),
        "shed_share": sum(answer.status == SHED for answer in answers) / len(answers),
        "marked_share": sum(answer.marked for answer in answers) / len(answers),
        "p99_ms": wait_ms(answers, 0.99),
        "max_ms": wait_ms(answers, 1.0),
        "recovery_s": recovery_s,
        "restarts": restarts,
        "memory_mb": float(memory[-1]),
        "memory_slope_mb_per_10min": float(np.polyfit(moments[late], memory[late], 1)[0] * 600),
        "threads_growth": looks[-1].threads - first.threads,
        "descriptors_growth": looks[-1].descriptors - first.descriptors,
    }
    return Soaked(figures, at, looks, faults)


#: Of a long run; in a short one the slope is noise of the allocator.
TARGETS: dict[str, tuple[str, float]] = {
    "server_errors": ("==", 0),
    "unanswered": ("==", 0),
    "restarts": ("==", 0),
    "p99_ms": ("<", 200),
    "recovery_s": ("<", 10),
    "memory_slope_mb_per_10min": ("<", 1.0),
    "threads_growth": ("<=", 2),
    "descriptors_growth": ("<=", 8),
}


def main() -> int:
    """Run one, print the figures, write the results; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="Serve under load and random faults.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    os.environ.setdefault(ENVIRONMENT, secrets.token_hex(32))  # of the plan; API and test must have the same
    with tempfile.TemporaryDirectory() as home:
        done = soak(Path(home), chosen.minutes * 60, chosen.seed)
    path, missed = write_results(Settings.load(), "soak", done.figures, TARGETS)
    for name, value in done.figures.items():
        print(f"{name:28} {value:.3f}")
    print(f"faults: {done.faults}\n{path}; missed: {', '.join(missed) or 'nothing'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
