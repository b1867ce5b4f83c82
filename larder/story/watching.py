"""The demo of watching: a shop whose prices rise threefold, an ingest worker that dies, and what notices either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import httpx

from deployment.store.signals import SignalStore
from feature_repo.errors import UnavailableError
from feature_repo.event_log import read_items
from feature_repo.settings import Settings
from larder.progress import progress
from larder.services.process import RunningService
from larder.services.stack import Stack, project_name, project_service
from larder.story.serve import serve
from larder_client.answers import Item
from larder_client.client import LarderClient
from monitoring.drift.state import read_state

#: Much shorter windows than a shop's, which last a day: three of them are the reference, two more must be calm.
WINDOW_MINUTES: Final = 0.3
CALM_WINDOWS: Final = 5
#: What prices are multiplied by.
FACTOR: Final = 3
#: What the demo promises.
TARGETS: Final[dict[str, tuple[str, float]]] = {
    "calm_windows": ("==", CALM_WINDOWS),
    "drift_found": ("==", 1),
    "drift_windows": ("<=", 4),
    "price_alarms_before": ("==", 0),
    "drift_alert": ("==", 1),
    "ingest_alert": ("==", 1),
}
#: In the names of the features that must be in alarm then.
_PRICE: Final = "price"
_DRIFT: Final = "LarderDrift"
_LOOK_S: Final = 1.0
_LONGEST_S: Final = 300.0
#: Prometheus looks, and asks its rules, every 5 s.
_CATCH_UP_S: Final = 30.0
_ITEMS_PER_CALL: Final = 500


def start_monitor(stack: Stack) -> RunningService:
    """Start the worker that watches, every few seconds, and compares the shop with its own first windows."""
    often = replace(stack.settings, drift_window_minutes=WINDOW_MINUTES, drift_reference="served", monitor_every_s=3.0)
    return stack.start(project_service(often, "monitor", ["monitor", "run"], ready=lambda _port: True))


def quiet_shop(settings: Settings, prometheus: str | None) -> dict[str, float]:
    """Let windows pass before anything is changed; return how many, and how many columns were in alarm.

    What fires in a shop that nobody touched is said, for nothing of it is what the prices do afterwards.
    """
    before, seen = _windows(settings), 0
    with progress(f"{CALM_WINDOWS} windows of {60 * WINDOW_MINUTES:.0f} s", CALM_WINDOWS) as shown:
        for _ in _looks():
            judged = min(_windows(settings) - before, CALM_WINDOWS)
            shown.advance(judged - seen)
            seen = judged
            if seen == CALM_WINDOWS:
                break
    alarms = _drifted(settings)
    print(f"Columns in alarm: {', '.join(alarms) or 'none'}", flush=True)
    if alarms:
        print("They are right: fifty visits a second began a moment ago, where there were none, and counts rise.")
    if prometheus is not None:
        _wait_for(lambda: _told(prometheus) >= set(_drifted(settings)), _CATCH_UP_S)
        alarms = _drifted(settings)
        for kind, columns in _named(prometheus).items():
            print(f"{_DRIFT} fires already ({kind}), for {', '.join(columns)}.")
    priced = [subject for subject in alarms if _PRICE in subject]
    print(f"Columns of prices among them: {', '.join(priced) or 'none'}", flush=True)
    return {
        "calm_windows": float(seen),
        "calm_alarms": float(len(alarms)),
        "price_alarms_before": float(len(priced)),
    }


def drifting_prices(settings: Settings, base_url: str, prometheus: str | None) -> dict[str, float]:
    """Raise all prices until the worker is sure that they drifted, and the alert says so; put them back.

    The alert counts once its description names a column of prices that was in alarm nowhere before: `LarderDrift` may
    fire already for others.
    """
    before, alarms, named = _windows(settings), set(_drifted(settings)), _named(prometheus)
    with _raised_prices(settings, base_url) as count:
        print(f"{count} items cost {FACTOR} times as much now.", flush=True)
        took = _wait_for(lambda: bool(_new_prices(_drifted(settings), alarms)))
        windows = _windows(settings) - before
        found = _new_prices(_drifted(settings), alarms)
        print(f"Noticed after {took or 0:.0f} s, in window {windows}: {', '.join(found) or 'nothing'}", flush=True)
        figures = {"drift_found": float(took is not None), "drift_windows": float(windows)}
        if prometheus is not None:
            figures["drift_alert"] = float(_told_of_prices(prometheus, named, took or 0.0))
    print("Prices are as they were.")
    return figures


def _new_prices(columns: Iterable[str], before: Iterable[str]) -> list[str]:
    """Return the columns of prices that were not there before."""
    known = set(before)
    return [column for column in columns if _PRICE in column and column not in known]


def _told_of_prices(prometheus: str, before: Mapping[str, Sequence[str]], waited_s: float) -> bool:
    """Wait until the alert names a column of prices that it did not name before the prices rose; whether it did."""

    def news() -> dict[str, list[str]]:
        found = {kind: _new_prices(names, before.get(kind, ())) for kind, names in _named(prometheus).items()}
        return {kind: names for kind, names in found.items() if names}

    took = _wait_for(lambda: bool(news()))
    if took is None:
        print(f"{_DRIFT} named no column of prices within {_LONGEST_S:.0f} s: {prometheus}/alerts")
        return False
    for kind, names in news().items():
        was = (
            f"it fired before, without {'it' if len(names) == 1 else 'them'}"
            if kind in before
            else "it did not fire before"
        )
        print(f"Alert {_DRIFT} ({kind}) names {', '.join(names)} {waited_s + took:.0f} s after; {was}.", flush=True)
    return True


def _named(prometheus: str | None) -> dict[str, list[str]]:
    """Columns that the firing alerts of drift name, by kind; what the rule's description lists."""
    alerts = [] if prometheus is None else _alerts(prometheus)
    drifts = [one for one in alerts if one["labels"]["alertname"] == _DRIFT]
    return {one["labels"]["kind"]: one["annotations"]["description"].rpartition(": ")[2].split(", ") for one in drifts}


def dead_ingest(stack: Stack, prometheus: str) -> dict[str, float]:
    """Stop the ingest worker until an alert fires; start it again."""
    stack.services[project_name(stack.settings, "ingest")].stop()
    fired = _told_by(prometheus, "LarderIngestAway")
    serve(stack)
    print("It runs again. Nothing was lost: what was acknowledged waited in the stream.")
    return {"ingest_alert": float(fired)}


def _windows(settings: Settings) -> int:
    state = read_state(settings)
    return 0 if state is None else state.windows


def _drifted(settings: Settings) -> list[str]:
    """Subjects whose drift is in alarm."""
    return [row.subject for row in SignalStore(settings).open_alarms() if row.kind == "drift"]


@contextmanager
def _raised_prices(settings: Settings, base_url: str) -> Iterator[int]:
    table = read_items(settings).select(["item_id", "price"]).to_pylist()
    known = {row["item_id"]: row["price"] for row in table if row["price"] is not None}
    with LarderClient(base_url, timeout_s=10.0) as client:
        _set_prices(client, {item_id: price * FACTOR for item_id, price in known.items()})
        try:
            yield len(known)
        finally:
            _set_prices(client, known)


def _set_prices(client: LarderClient, prices: dict[str, int]) -> None:
    items = [Item(item_id=item_id, price=price) for item_id, price in prices.items()]
    for first in range(0, len(items), _ITEMS_PER_CALL):
        client.upsert_items(items[first : first + _ITEMS_PER_CALL])


def _told_by(prometheus: str, name: str) -> bool:
    """Wait until an alert fires and print it; whether it did."""
    took = _wait_for(lambda: name in _firing(prometheus))
    if took is None:
        print(f"The alert {name} did not fire within {_LONGEST_S:.0f} s: {prometheus}/alerts")
        return False
    summary = _firing(prometheus).get(name, {}).get("annotations", {}).get("summary", "")
    print(f"Alert {name} fires after {took:.0f} s: {summary}", flush=True)
    return True


def _firing(prometheus: str) -> dict[str, dict[str, Any]]:
    """Return alerts that fire now, by name."""
    return {one["labels"]["alertname"]: one for one in _alerts(prometheus)}


def _alerts(prometheus: str) -> list[dict[str, Any]]:
    """Return alerts that fire now.

    Raises
    ------
    UnavailableError
        If Prometheus does not answer.
    """
    try:
        answer = httpx.get(f"{prometheus}/api/v1/alerts", timeout=5.0).raise_for_status()
    except httpx.HTTPError as error:
        raise UnavailableError(f"Prometheus at {prometheus} does not answer: {error}") from error
    return [one for one in answer.json()["data"]["alerts"] if one["state"] == "firing"]


def _told(prometheus: str) -> set[str]:
    """Subjects that the firing alerts of drift name."""
    return {f"{kind}/{name}" for kind, names in _named(prometheus).items() for name in names}


def _wait_for(what: Callable[[], bool], longest_s: float = _LONGEST_S) -> float | None:
    """Wait until something is so; return after how many seconds, None where it did not come."""
    start = time.monotonic()
    for _ in _looks(longest_s):
        if what():
            return time.monotonic() - start
    return None


def _looks(longest_s: float = _LONGEST_S) -> Iterator[None]:
    end = time.monotonic() + longest_s
    while time.monotonic() < end:
        yield
        time.sleep(_LOOK_S)
