"""Random faults of Redis under steady load: no errors, and nothing grows.

    python -m tests.soak --minutes 20

Writes `.larder/results/soak.json`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from feature_repo.settings import Settings
from larder.results import write_results
from tests.fault_place import USERS, Place, open_place
from tests.steady_load import SteadyLoad, quantile_ms

FAULTS = ("killed", "stopped", "refuse", "swallow", "slow")
#: Share of the time in which memory may still grow: caches fill, code is compiled.
WARM_UP = 0.3


def soak(place: Place, *, seconds: float, seed: int, rps: float = 50.0) -> dict[str, float]:
    """Let a fault of a second or two happen every five seconds or so, chosen by the seed; say what came of it."""
    rng, api, shop = np.random.default_rng(seed), place.api, place.shop
    began = time.monotonic()
    memory: list[tuple[float, float]] = []
    counts: list[tuple[int, int]] = []
    faults = 0
    with SteadyLoad(place.port, USERS, rps) as load:
        while time.monotonic() - began < seconds:
            _happen(place, FAULTS[rng.integers(len(FAULTS))], 0.5 + 1.5 * rng.random())
            faults += 1
            shop.pause(1.0 + 4.0 * rng.random())
            memory.append((time.monotonic() - began, api.memory_full_info().uss / 2.0**20))
            counts.append((api.num_threads(), api.num_fds()))
    place.healthy_within(10)
    at, mb = np.array([one for one in memory if one[0] > WARM_UP * seconds]).T
    slope = float(np.polyfit(at, mb, 1)[0]) * 600.0 if len(at) > 2 else 0.0
    least = [min(row) for row in zip(*counts, strict=True)]
    return {
        "answers": len(load.answers),
        "faults": faults,
        "errors": sum(one.status not in (200, 503) for one in load.answers),
        "refused": sum(one.status == 503 for one in load.answers),
        "degraded_share": float(np.mean([one.level != "full" for one in load.answers])),
        "p99_ms": quantile_ms(load.answers, 0.99),
        "memory_mb": float(mb[-1]),
        "memory_mb_per_10_min": slope,
        "threads_grown": counts[-1][0] - least[0],
        "descriptors_grown": counts[-1][1] - least[1],
    }


def _happen(place: Place, fault: str, seconds: float) -> None:
    shop = place.shop
    if fault == "killed":
        shop.stopped.add("redis")
        shop.signal("redis", signal.SIGKILL)
        shop.running["redis"].stop()  # takes note that it is gone
        time.sleep(seconds)
        shop.start("redis").wait()
    elif fault == "stopped":
        shop.signal("redis", signal.SIGSTOP)
        time.sleep(seconds)
        shop.signal("redis", signal.SIGCONT)
    else:
        place.proxy.mode = fault  # type: ignore[assignment]  # one of its modes
        time.sleep(seconds)
        place.proxy.mode = "pass"


def main() -> int:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ.setdefault("LARDER_SIGNING_KEY", secrets.token_hex(32))  # of this run only
    with tempfile.TemporaryDirectory(prefix="larder-soak-") as home, open_place(Path(home)) as place:
        figures = soak(place, seconds=60.0 * asked.minutes, seed=asked.seed)
    targets = {"errors": ("==", 0.0), "memory_mb_per_10_min": ("<", 1.0), "threads_grown": ("<=", 2.0)}
    path, missed = write_results(Settings.load(), "soak", figures, targets)
    for name, value in figures.items():
        print(f"  {name:<24}{value:12.4g}{'   MISSED' if name in missed else ''}")
    print(f"written to {path}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
