"""The demo's chapter of rollouts: what is registered while people use the shop, and what becomes of it."""

from __future__ import annotations

from typing import Final

from larder.services.stack import Stack
from larder.story.prepare import Clock, train_and_register
from larder.story.rollout_teller import RATE, Ended, RolloutTeller, judge_again, open_gate, shoppers, start_controller
from larder.story.weighted import register_weighted

#: Windows the better model of a small demonstration learns from.
SAMPLE_WINDOWS: Final = 2
#: What the chapter promises: nobody meets a server error, the better one wins, the bad one goes back.
ROLLOUT_TARGETS: Final[dict[str, tuple[str, float]]] = {
    "rollout.better_is_champion": ("==", 1),
    "rollout.bad_was_stopped_by_the_gate": ("==", 1),
    "rollout.bad_was_rolled_back": ("==", 1),
    "rollout.server_errors": ("==", 0),
    "rollout.failed": ("==", 0),
    "rollout.seconds": ("<=", 180),
}


def roll_out(
    stack: Stack, data_hash: str, clock: Clock, *, windows: int, sample: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Train a model, register it under load, and let it win; then let a bad one be stopped, and rolled back.

    Returns
    -------
    tuple
        Figures of the new model's evaluation, and of the rollouts.
    """
    settings = stack.settings
    # The first champion is a sample; where all is to be small, the better one still has more to learn from.
    windows = min(windows, SAMPLE_WINDOWS) if sample else windows
    version, quality = train_and_register(settings, data_hash, clock, windows=windows)
    with clock.part("start controller"):
        start_controller(stack)
    print(f"\n{RATE:.0f} visits a second; profile `demo` (deployment/rollout/profiles.toml). The ledger says:\n")
    teller = RolloutTeller(settings)
    with clock.part("rollouts"), shoppers(stack) as met:
        better = teller.follow(version)
        _tell_end(teller, better)
        print("\nThe champion's ranker with its sign turned is registered. The gate:\n", flush=True)
        bad = register_weighted(settings, settings.bundles_dir / teller.champion, -1.0)
        stopped = teller.follow(bad)
        print("\nFor once the gate lets it through (docs/gate.md, thresholds.toml). The canary:\n", flush=True)
        with open_gate(settings):
            judge_again(settings, bad, "demo")
        back = teller.follow(bad)
        _tell_end(teller, back)
    print(
        f"\n{met.get('visits', 0):.0f} visits at {met.get('rps', 0):.0f} a second meanwhile: "
        f"{met.get('server_errors', 0):.0f} met a server error, {met.get('failed', 0):.0f} got no good answer; "
        f"p50 {met.get('p50_ms', 0):.1f} ms, p95 {met.get('p95_ms', 0):.1f} ms."
    )
    print(
        f"Registration to champion: {better.seconds:.0f} s; past the open gate to the rollback: {back.seconds:.0f} s."
    )
    return quality, _figures(better, stopped, back, met)


def _tell_end(teller: RolloutTeller, ended: Ended) -> None:
    """Print the arms of a rollout that was, and how it ended; a verdict that stopped it has been told."""
    if not ended.rollout_seconds:
        print(f"\n    There was no rollout: {ended.state}.")
        return
    status = teller.status()
    print()
    for arm in status.arms:
        ctr = f"{arm.ctr:.3f} clicks a user" if arm.ctr is not None else ""
        p95 = f"p95 {arm.p95_ms:.0f} ms" if arm.p95_ms is not None else ""
        print(f"    {arm.arm:<9} version {arm.model_version:<3} {arm.requests:>7,} requests {p95:<12} {ctr}")
    for test in status.tests:
        print(f"    {test.name:<12} {test.text or test.state}")


def _figures(better: Ended, stopped: Ended, back: Ended, met: dict[str, float]) -> dict[str, float]:
    figures = {
        "better_is_champion": float(better.state == "champion"),
        "better_seconds": better.seconds,
        "bad_was_stopped_by_the_gate": float(stopped.state == "rejected"),
        "bad_was_rolled_back": float(back.state == "rolled_back"),
        "bad_seconds": back.seconds,
        "seconds": better.rollout_seconds + back.rollout_seconds,
        **met,
    }
    return {f"rollout.{name}": value for name, value in figures.items()}
