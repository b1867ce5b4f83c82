"""Redis killed, half-open, slow, cut off or coming and going under 50 requests a second: every list is answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.fault_load import RATE, Answer, ServedShop, SteadyLoad, held, served_shop, statuses, wait_ms
from tests.fault_proxy import Mode

pytestmark = pytest.mark.faults

#: Seconds of an outage; by hand `LARDER_OUTAGE_S=30`.
OUTAGE_S = float(os.environ.get("LARDER_OUTAGE_S", "15"))
#: Seconds Redis is half-open; by hand `LARDER_HALF_OPEN_S=60`.
HALF_OPEN_S = float(os.environ.get("LARDER_HALF_OPEN_S", "20"))
#: What the issue asks of the slowest answer while Redis is half-open.
_NO_ANSWER_OVER_MS = 250.0
_P99_MS = 200.0
FLAPS: tuple[Mode, ...] = ("reset", "pass", "swallow", "pass") * 3


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedShop]:
    with served_shop(tmp_path_factory.mktemp("served"), item_refresh_ms=1000, plan_poll_ms=1000) as shop:
        yield shop


def warm(shop: ServedShop, load: SteadyLoad) -> None:
    """Wait until all is well, and for some load."""
    shop.wait_full()
    shop.processes.pause(2.0)
    began = time.monotonic()
    shop.processes.wait_until("the load runs", lambda: len(load.since(began)) > 0.5 * RATE)


def full_again(load: SteadyLoad, begin: float) -> float:
    """Seconds from a moment until a second begins whose answers are complete.

    Of twenty one may be late for its read: on a busy machine that happens without any fault.
    """
    for answer in load.since(begin):
        second = load.since(answer.at, answer.at + 1.0)
        if answer.level == "full" and sum(one.level == "full" for one in second) >= 0.95 * len(second):
            return answer.at - begin
    return float("inf")


def all_honest(answers: list[Answer]) -> bool:
    """Whether each answer is either complete without a reason, or marked with one."""
    return all(answer.marked or (answer.level == "full" and not answer.reasons) for answer in answers)


def test_redis_is_killed_and_comes_back(shop: ServedShop) -> None:
    with shop.load() as load:
        warm(shop, load)
        shop.kill_redis()
        killed = time.monotonic()
        shop.processes.pause(OUTAGE_S)
        up = time.monotonic()
        shop.start_redis()
        back = time.monotonic()
        shop.processes.pause(12.0)
    outage, everything = load.since(killed, up), load.since(killed)
    recovery_s = full_again(load, back)
    print(
        f"redis killed {OUTAGE_S:.0f} s: {len(outage)} answers, p99 {wait_ms(outage, 0.99):.0f} ms, "
        f"max {wait_ms(outage, 1):.0f} ms, with recovery {wait_ms(everything, 0.99):.0f}, full after {recovery_s:.1f} s"
    )
    assert len(outage) > 0.9 * RATE * OUTAGE_S, "the load was not what it should be"
    assert statuses(everything) == {200}, shop.processes.log("api")[-4000:]
    assert all(answer.marked for answer in outage)
    assert all_honest(everything)
    assert wait_ms(everything, 0.99) < _P99_MS
    assert recovery_s < 10.0


def test_redis_half_open_delays_and_piles_up_nothing(shop: ServedShop) -> None:
    """The kernel of a stopped process goes on accepting connections; no answer ever comes."""
    with shop.load() as load:
        warm(shop, load)
        before = held(shop.api)
        shop.redis.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            shop.processes.pause(HALF_OPEN_S / 2)
            middle = held(shop.api)
            shop.processes.pause(HALF_OPEN_S / 2)
            after, ended = held(shop.api), time.monotonic()
        finally:
            shop.redis.send_signal(signal.SIGCONT)
        shop.processes.pause(5.0)
        calm = held(shop.api)
    answers = load.since(stopped, ended)
    slowest = sorted(answer.seconds * 1e3 for answer in answers)[-5:]
    print(
        f"half-open {HALF_OPEN_S:.0f} s: {len(answers)} answers, p99 {wait_ms(answers, 0.99):.0f} ms, "
        f"max {wait_ms(answers, 1):.0f} ms; held {before} -> {middle} -> {after} -> {calm}"
    )
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert all_honest(answers)
    assert all(answer.marked for answer in load.since(stopped + 1.0, ended))
    assert wait_ms(answers, 1) < _NO_ANSWER_OVER_MS, slowest
    for later in (middle, after, calm):
        assert later.threads <= before.threads + 4
        assert later.descriptors <= before.descriptors + 16
    assert after.descriptors <= middle.descriptors + 4, "it grows"
    assert full_again(load, ended) < 4.0


@pytest.mark.parametrize("mode", ["slow", "reset", "swallow"])
def test_the_breaker_opens_and_asks_about_once_a_second(shop: ServedShop, mode: Mode) -> None:
    with shop.load() as load:
        warm(shop, load)
        shop.proxy.mode = mode
        began = time.monotonic()
        try:
            opened_s = shop.wait_open(2.0)
            shop.processes.pause(1.0)
            open_at, connections = time.monotonic(), shop.proxy.accepted
            shop.processes.pause(8.0)
            probes = sum(at > open_at for at in shop.proxy.asked)
            connections = shop.proxy.accepted - connections
            ended = time.monotonic()
        finally:
            shop.proxy.mode = "pass"
        shop.processes.pause(5.0)
    answers = load.since(began, ended)
    print(
        f"{mode}: open after {opened_s:.2f} s, {probes} reads asked and {connections} connections in 8 s, "
        f"p99 {wait_ms(answers, 0.99):.0f} ms, full after {full_again(load, ended):.1f} s"
    )
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert all_honest(answers)
    assert all(answer.marked for answer in load.since(open_at, ended))
    assert probes <= 12, "the breaker lets too much through"
    assert wait_ms(answers, 0.99) < _P99_MS
    assert full_again(load, ended) < 4.0


def test_redis_that_comes_and_goes(shop: ServedShop) -> None:
    with shop.load() as load:
        warm(shop, load)
        before, began = held(shop.api), time.monotonic()
        for mode in FLAPS:
            shop.proxy.mode = mode
            shop.processes.pause(1.5 if mode == "pass" else 0.5)  # it must have the time to be asked again
        ended = time.monotonic()
        shop.processes.pause(5.0)
        after = held(shop.api)
    answers = load.since(began, ended)
    marked = sum(answer.marked for answer in answers) / len(answers)
    print(f"flapping: p99 {wait_ms(answers, 0.99):.0f} ms, {marked:.0%} marked; held {before} -> {after}")
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert all_honest(answers)
    assert 0.1 < marked < 0.95, "the fault did not reach it, or it never came back"
    assert wait_ms(answers, 0.99) < _P99_MS
    assert full_again(load, ended) < 4.0
    assert after.threads <= before.threads + 4
    assert after.descriptors <= before.descriptors + 16
