"""Last part of the demo: while people use the shop, a better model becomes the champion and a bad one goes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import httpx

from deployment.gate_worker import GateWorker
from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerEntry
from deployment.thresholds import override_path
from deployment.verdict import Verdict
from deployment.verdict_entries import record_verdict
from feature_repo.errors import LarderError
from feature_repo.settings import Settings
from larder.rollout_commands import RolloutCommands
from larder.services.ports import next_free_port
from larder.services.process import RunningService
from larder.services.stack import Stack, project_service
from serving.rollout_status import RolloutStatus
from serving.signature import signing_key

#: Visits a second: what two cores carry beside the controller, the gate and the candidate's process.
RATE: Final = 50.0
PROFILE: Final = "demo"
_LONGEST_S: Final = 600.0
#: What the gate demands of the bad version, so that the second defence can be seen.
OPEN_GATE: Final = """\
# Written by `larder demo` for one version, and taken away again: the gate lets everything through.
auc = 0.0
average_precision = -1.0
baseline_gain = -1.0
calibration_error = 1.0
ndcg_margin_share = 9.0
hard_auc_margin = 1.0
latency_p50_ms = 1000.0
latency_p95_ms = 2000.0
latency_p99_ms = 5000.0
halves_drop = 1.0
noise_drop = 1.0
missing_drop = 1.0
slice_drop = 1.0
segment_margin = 1.0
"""
_ENDS: Final = frozenset({"promote", "rollout_end", "rollback", "abort"})


@dataclass(frozen=True)
class Ended:
    """How one version fared.

    Attributes
    ----------
    seconds
        From when it was followed (its registration, or another verdict) to the end.
    rollout_seconds
        From the start of its rollout; 0 if there was none.
    """

    state: str
    why: str
    seconds: float
    rollout_seconds: float


class RolloutTeller:
    """Follows versions through gate and rollout, and tells what the ledger says as it says it.

    Parameters
    ----------
    settings
        Of a project whose controller runs.
    tell
        Takes one line of text.
    """

    def __init__(self, settings: Settings, tell: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
        self._store = ControlStore(settings, signing_key(settings))
        self._commands = RolloutCommands(settings)
        self._tell = tell
        newest = self._store.ledger(1)
        self._told = newest[0].entry if newest else 0

    def follow(self, version: str, longest_s: float = _LONGEST_S) -> Ended:
        """Tell every entry of the ledger until one ends the version's rollout, or a verdict stops it.

        Raises
        ------
        LarderError
            If nothing ended it in time.
        """
        began, started = time.monotonic(), 0.0
        while time.monotonic() - began < longest_s:
            for entry in self._new():
                self._tell(_line(entry))
                if entry.model_version != version:
                    continue
                now = time.monotonic()
                if entry.action == "rollout_start":
                    started = now
                if entry.action == "verdict" and not Verdict.from_dict(entry.body["verdict"]).passed:
                    return Ended("rejected", _line(entry), now - began, 0.0)
                if entry.action in _ENDS:
                    state = "champion" if entry.action == "promote" else self._commands.status().state
                    return Ended(state, entry.why, now - began, now - started if started else 0.0)
            time.sleep(0.3)
        raise LarderError(f"version {version} came to no end in {longest_s:.0f} s; see the controller's log")

    @property
    def champion(self) -> str:
        """Id of the champion's bundle.

        Raises
        ------
        LarderError
            If there is none.
        """
        plan = self._store.plan()
        if plan is None:
            raise LarderError("there is no champion")
        return plan.stable.bundle_id

    def status(self) -> RolloutStatus:
        """Return how the newest rollout stands."""
        return self._commands.status()

    def _new(self) -> list[LedgerEntry]:
        found = [entry for entry in reversed(self._store.ledger(20)) if entry.entry > self._told]
        if found:
            self._told = found[-1].entry
        return found


def start_controller(stack: Stack, profile: str = PROFILE) -> RunningService:
    """Start the controller with its gate, on the next free port; wait until its API answers."""
    settings = replace(stack.settings, admin_port=next_free_port(stack.settings.admin_port))

    def ready(_port: int) -> bool:
        try:
            httpx.get(f"http://127.0.0.1:{settings.admin_port}/admin/plan", timeout=2.0)  # refused without a token
        except httpx.TransportError:
            return False
        return True

    arguments = ["controller", "run", "--profile", profile]
    return stack.start(project_service(settings, "controller", arguments, ready=ready))


@contextmanager
def shoppers(stack: Stack, rate: float = RATE, seconds: float = 3600.0) -> Iterator[dict[str, float]]:
    """Let people use the shop while the block runs; the yielded figures are filled in when it ends."""
    settings, met = stack.settings, dict[str, float]()
    file = settings.root / "shoppers.json"
    file.unlink(missing_ok=True)
    arguments = ["shoppers", "--rate", f"{rate:g}", "--seconds", f"{seconds:g}", "--figures", str(file)]
    people = stack.start(project_service(settings, "shoppers", arguments, ready=lambda _port: True))
    try:
        yield met
    finally:
        people.stop()
        if file.is_file():
            met |= json.loads(file.read_text("utf-8"))


@contextmanager
def open_gate(settings: Settings) -> Iterator[None]:
    """Let the gate of a project pass everything that is safe to load, for the time of a block."""
    path = override_path(settings)
    kept = path.read_bytes() if path.is_file() else None
    path.write_text(OPEN_GATE, "utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if kept is not None:
            path.write_bytes(kept)


def judge_again(settings: Settings, version: str, who: str) -> None:
    """Judge a version once more, now, and write the verdict into the ledger."""
    with closing(GateWorker(settings)) as worker:
        verdict = worker.judge(worker.version(version))
    record_verdict(ControlStore(settings, signing_key(settings)), verdict, who, datetime.now(UTC))


def _line(entry: LedgerEntry) -> str:
    at = entry.at[11:19]
    failed = [one["name"] for one in entry.body.get("verdict", {}).get("checks", []) if one["result"] != "pass"]
    more = f": {', '.join(failed)}" if failed else ""
    return f"    {at}  version {entry.model_version:<3} {entry.action:<14} {entry.why}{more}"
