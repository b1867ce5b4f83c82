"""kill -9 of the controller at every named point: it converges to before or after, and never to two champions."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import replace

import pytest

from deployment.rollout.moves import Moves
from deployment.rollout.report import report_path
from deployment.store.control_store import ControlStore
from feature_repo.settings import Settings
from serving.plan import load_plan
from serving.signature import signing_key
from tests.crashing_controller import Controllers
from tests.rollout_traffic import CANDIDATE, STABLE, begin, first_champion, tiny_profile

pytestmark = pytest.mark.faults

SHADOW = {"comparisons": 100, "minutes": 0.05, "error_share": 0.05, "slow_share": 0.2, "overlap_floor": 0.1}
#: Name of the point, and the visit at which the process dies.
GOOD = [
    ("tick", 3),
    ("lease_held", 1),
    ("before_publish_plan", 2),
    ("evidence_read", 4),
    ("window_closed", 2),
    ("window_closed", 5),
    ("decided_hold", 3),
    ("before_save", 2),
    ("after_save", 2),
    ("decided_advance", 1),
    ("before_commit_canary", 1),
    ("after_commit_canary", 1),
    ("before_commit_canary", 2),
    ("after_commit_canary", 2),
    ("before_publish", 1),
    ("after_publish", 1),
    ("decided_promote", 1),
    ("before_commit_champion", 1),
    ("after_commit_champion", 1),
    ("before_status", 4),
    ("before_report", 1),
    ("after_report", 1),
    ("before_reported", 1),
]
BAD = [
    ("decided_roll_back", 1),
    ("before_commit_rolled_back", 1),
    ("after_commit_rolled_back", 1),
    ("before_publish", 2),
    ("after_publish", 2),
]


def converges(
    controllers: Controllers, settings: Settings, store: ControlStore, failing: float, point: str, visit: int
) -> list[str]:
    """Kill at a point, start again, and return what is wrong in the end."""
    key = signing_key(settings)
    killed = controllers.run(settings, failing, point, visit)
    if killed["exit"] != -signal.SIGKILL:
        return [f"was not killed: {killed['state']}"]
    plan, current = store.plan(), Moves(settings, store, key).current()
    wrong = []
    # Before anything is started again: plan, rollout and ledger belong together.
    store.verify()
    if current.rollout.active != bool(plan.release) or (current.rollout.active and current.rollout.epoch != plan.epoch):
        wrong.append(f"rollout {current.rollout.state} of epoch {current.rollout.epoch} with a plan of {plan.epoch}")
    seen = load_plan(settings.plan_path, key)
    if seen is not None and seen.epoch > plan.epoch:
        wrong.append("serving saw a plan that was never committed")
    ended = controllers.run(settings, failing)["state"]
    expected = "rolled_back" if failing else "champion"
    if ended != expected:
        wrong.append(f"ended as {ended}, not {expected}")
    plan = store.plan()
    if plan.stable != (STABLE if failing else CANDIDATE) or plan.release or load_plan(settings.plan_path, key) != plan:
        wrong.append(f"the plan is {plan}")
    champions = [entry.model_version for entry in reversed(store.ledger()) if entry.action == "promote"]
    if champions != (["1"] if failing else ["1", "2"]):
        wrong.append(f"champions were {champions}")
    steps = [entry.body["weight"] for entry in reversed(store.ledger()) if entry.action == "rollout_step"]
    if steps != ([2000] if failing else [2000, 5000]):
        wrong.append(f"steps were {steps}")
    if not report_path(settings, current.row.rollout_id).is_file():
        wrong.append("there is no report")
    store.verify()
    kept = Moves(settings, store, key).current().kept
    if kept.rollout.state == "champion":
        counted = sum(counts.requests for counts in kept.collected.arms.values())
        logged = sum(
            line.count(f'"epoch":{kept.rollout.epoch - 1},'.encode())
            for path in settings.impressions_dir.glob("*/*.jsonl")
            for line in [path.read_bytes()]
        )
        if counted > logged:
            wrong.append(f"{counted} requests were counted in the last step, {logged} were logged")
    return wrong


@pytest.mark.parametrize(("failing", "points"), [(0.0, GOOD), (0.6, BAD)], ids=["good", "bad"])
def test_killed_anywhere_it_converges(settings, failing, points):
    assert len({point for point, _ in GOOD + BAD}) >= 12

    scenes = []
    for point, visit in points:
        mine = replace(settings, project=f"{settings.project}-{point}-{visit}")
        scenes.append((mine, first_champion(mine), failing, point, visit))
        begin(mine, tiny_profile(shadow=SHADOW))
    with closing(Controllers()) as controllers:
        found = {scene[3:]: converges(controllers, *scene) for scene in scenes}
    assert {place: wrong for place, wrong in found.items() if wrong} == {}
