"""The controller on a real database and a real Redis: it moves on, goes back, waits, takes over. Made up: the logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from deployment.promotion import ControlPlane
from deployment.rollout.controller import Controller
from deployment.rollout.kept import Kept
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.errors import ConflictError
from feature_repo.settings import Settings
from larder.rollout_commands import RolloutCommands
from serving.plan import Arm, load_plan
from serving.rollout_status import decode_status, rollout_status_key
from serving.signature import signing_key
from tests.rollout_traffic import CANDIDATE, STABLE, Clock, Traffic, begin, first_champion, published, tiny_profile

SHADOW = {"comparisons": 100, "minutes": 0.05, "error_share": 0.05, "slow_share": 0.2, "overlap_floor": 0.1}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


class Scene:
    """A shop with a champion, a rollout, its traffic and a controller whose clocks the test moves."""

    def __init__(self, settings: Settings, profile=None, **traffic) -> None:
        self.settings = settings
        self.store = first_champion(settings)
        begin(settings, profile)
        self.clock = Clock()
        self.traffic = Traffic(settings, **traffic)
        self.controller = self.another()

    def another(self, **options) -> Controller:
        return Controller(self.settings, now=self.clock.now, clock=self.clock, **options)

    @property
    def kept(self) -> Kept:
        current = self.controller.moves.current()
        assert current is not None
        return current.kept

    def tick(self, requests: int = 150, seconds: float = 1.0) -> str:
        if requests:
            self.traffic.serve(self.store.plan(), requests)
        self.clock.pass_(seconds)
        return self.controller.tick()

    def run(self, ticks: int = 40, requests: int = 150) -> list[tuple[str, int]]:
        """Tick until the rollout ends; return the states and weights on the way."""
        way = []
        for _ in range(ticks):
            self.tick(requests)
            rollout = self.kept.rollout
            if (rollout.state, rollout.weight) not in way[-1:]:
                way.append((rollout.state, rollout.weight))
            if not rollout.active:
                break
        return way


def actions(store: ControlStore) -> list[str]:
    return [entry.action for entry in reversed(store.ledger())]


def test_a_good_candidate_becomes_the_champion_step_by_step(settings, client):
    scene = Scene(settings, tiny_profile(shadow=SHADOW))
    assert scene.run() == [("shadow", 0), ("canary", 2000), ("canary", 5000), ("champion", 0)]
    plan = scene.store.plan()
    assert (plan.stable, plan.canary, plan.shadow, plan.release) == (CANDIDATE, None, None, "")
    assert published(settings, client) == plan == load_plan(settings.plan_path, signing_key(settings))
    assert actions(scene.store) == ["promote", "rollout_start", "rollout_step", "rollout_step", "promote"]
    assert scene.store.verify() == 5
    status = decode_status(client.get(rollout_status_key(settings.project)))
    assert (status.state, status.candidate_version, status.epoch) == ("champion", "2", plan.epoch)
    assert {arm.arm: arm.requests > 0 for arm in status.arms} == {"stable": False, "baseline": True, "canary": True}
    assert {test.state for test in status.tests if test.name in ("error", "slow")} == {"not worse"}
    assert status.shadow.compared > 100
    assert status.shadow.segments["known no"] < status.shadow.segments["known yes"]


@pytest.mark.parametrize(
    ("trouble", "named"),
    [
        ({"failing": {"canary": 0.4}}, "error"),
        ({"failing": {"canary": 0.4}, "failure": "timeout"}, "error"),
        ({"failing": {"canary": 0.4}, "failure": "non_finite"}, "non_finite"),
        ({"slow": {"canary": 0.5}}, "slow"),
        ({"click": {"canary": 0.02, "baseline": 0.6}}, "ctr"),
    ],
)
def test_a_bad_candidate_goes_back_for_what_is_bad_of_it(settings, client, trouble, named):
    scene = Scene(settings, **trouble)
    way = scene.run()
    assert way[-1] == ("rolled_back", 0)
    assert "champion" not in dict(way)
    assert scene.kept.rollout.reason.startswith(f"worse than the baseline at {named}: ")
    assert scene.store.plan().stable == STABLE
    assert published(settings, client) == scene.store.plan()


def test_failures_of_both_arms_are_nobodys_fault(settings):
    scene = Scene(settings, failing={"canary": 0.05, "baseline": 0.05})
    assert scene.run(ticks=60)[-1] == ("champion", 0)


def test_a_shadow_that_fails_meets_no_user(settings):
    scene = Scene(settings, tiny_profile(shadow=SHADOW), failing={"shadow": 0.5})
    assert scene.run() == [("shadow", 0), ("rolled_back", 0)]
    assert "answers of the shadow failed" in scene.kept.rollout.reason


def test_restarts_count_nothing_twice_and_forget_nothing(settings, tmp_path, monkeypatch):
    """One controller watches all the time, the other is a new process at every tick: they count and decide alike."""
    monkeypatch.setattr("deployment.rollout.moves.secrets.token_hex", lambda n: "ab" * n)  # the same users in each arm
    steps = [{"weight": 2000, "requests": 100, "minutes": 0.05}, {"weight": 5000, "requests": 10**6, "minutes": 0}]
    ends = []
    for restarts in (False, True):
        scene = Scene(
            replace(settings, home=tmp_path / str(restarts)), tiny_profile(steps=steps), seed=3,
            click={"canary": 0.3, "baseline": 0.2}, failing={"canary": 0.02, "baseline": 0.02},
        )  # fmt: skip
        for _ in range(14):
            if restarts:
                scene.controller.leadership.release()
                scene.controller = scene.another()
                scene.controller.tick()  # fills the table of users; no time has passed for it
            scene.tick(100)
        kept = scene.kept
        ends.append((
            kept.collected.offsets, kept.collected.seq, kept.collected.tests, kept.rollout.state, kept.rollout.step,
            {arm: (counts.requests, counts.failures) for arm, counts in kept.collected.arms.items()},
        ))  # fmt: skip
        logged = sum(path.stat().st_size for path in scene.settings.impressions_dir.glob("*/*"))
        assert sum(kept.collected.offsets.values()) == logged
    assert ends[0][0] == ends[1][0]
    assert ends[0] == ends[1]
    assert ends[0][2].clicks["ctr"].done


def test_jumps_of_the_clocks_neither_promote_early_nor_hang(settings):
    scene = Scene(settings, tiny_profile(steps=[{"weight": 5000, "requests": 50, "minutes": 0.5}]))
    for jump in (10 * 3600, -30 * 3600, 400 * 86_400, -400 * 86_400):
        scene.clock.wall += timedelta(seconds=jump)
        scene.traffic.time_us += jump * 1_000_000
        assert scene.tick(60) == "canary"
    scene.clock.seconds += 7 * 3600  # the machine slept
    assert scene.tick(60) == "canary"
    assert scene.kept.rollout.elapsed_s <= 4 + 5.1
    assert scene.kept.collected.arms["canary"].requests + scene.kept.collected.arms["baseline"].requests == 300
    scene.clock.seconds -= 3600  # no monotonic clock does that; still
    assert scene.tick(60) == "canary"
    assert scene.run()[-1] == ("champion", 0)
    assert scene.kept.rollout.elapsed_s == 0.0


def test_no_traffic_ends_in_a_rollback(settings):
    scene = Scene(settings, tiny_profile(max_hold_minutes=0.2))
    assert scene.run(ticks=15, requests=0) == [("canary", 2000), ("rolled_back", 0)]
    assert "nothing could be concluded in 12 s: 0 of 100 requests in each arm" in scene.kept.rollout.reason


def test_of_two_controllers_one_waits_and_takes_over_what_the_other_left(settings):
    scene = Scene(settings)
    second = scene.another(ttl_s=20.0)
    assert scene.tick() == "canary"
    scene.clock.wall -= timedelta(hours=5)  # ends of leases lie far in the future now
    for _ in range(15):
        scene.clock.pass_(1)
        assert scene.controller.tick() == "canary"
        assert second.tick() == "standby"
    waited = 0
    while second.tick() == "standby":  # the first one hangs
        scene.clock.pass_(1)
        waited += 1
    assert 15 <= waited <= 28
    scene.traffic.serve(scene.store.plan(), 150)
    before = scene.store.rollout().revision
    scene.clock.pass_(1)
    scene.controller.leadership._renewed = scene.clock()  # it wakes up and believes that it is still the one
    assert scene.controller.tick_safely().startswith("looks again: the lease of")
    assert scene.store.rollout().revision == before
    assert scene.controller.tick() == "standby"
    scene.controller = second
    assert scene.run()[-1] == ("champion", 0)


def test_a_released_lease_is_taken_at_once(settings):
    scene = Scene(settings)
    scene.tick()
    scene.controller.leadership.release()
    assert scene.another().tick() == "canary"


def test_with_the_database_away_nothing_moves_and_it_goes_on_afterwards(settings, client):
    scene = Scene(settings)
    scene.tick()
    before = published(settings, client)
    aside = settings.platform_uri.with_suffix(".aside")
    settings.platform_uri.rename(aside)
    settings.platform_uri.mkdir()
    for _ in range(3):
        scene.clock.pass_(1)
        assert scene.controller.tick_safely().startswith("waits: the control plane's database")
    assert published(settings, client) == before
    settings.platform_uri.rmdir()
    aside.rename(settings.platform_uri)
    assert scene.run()[-1] == ("champion", 0)


def test_with_redis_away_the_plan_on_disk_moves(settings):
    scene = Scene(replace(settings, redis_port=9))
    assert scene.run()[-1] == ("champion", 0)
    assert load_plan(settings.plan_path, signing_key(settings)).stable == CANDIDATE
    assert "not published" in scene.controller.problem


def test_a_champion_moved_by_hand_ends_the_rollout(settings):
    scene = Scene(settings)
    scene.tick()
    plan = scene.store.plan()
    other = Arm("3" * 32, "3")
    entry = NewEntry("ann", "rollback", "complaints", other.bundle_id, other.model_version)
    scene.store.commit(
        lambda old: replace(old, stable=other, canary=None, weight=0, release="", salt=""), expected_epoch=plan.epoch,
        entry=entry, now=scene.clock.now(),
    )  # fmt: skip
    assert scene.tick() == "aborted"
    assert scene.store.plan().stable == other
    assert "moved by hand, to version 3" in scene.kept.rollout.reason
    assert scene.tick() == "aborted"


def test_commands_work_beside_a_controller_and_without_one(settings, client):
    scene = Scene(settings)
    commands = RolloutCommands(settings)
    scene.tick()
    commands.pause("sale begins")
    assert commands.status().paused
    for _ in range(8):
        assert scene.tick() == "canary"
    assert scene.kept.rollout.step == 0
    with pytest.raises(ConflictError, match="paused already"):
        commands.pause("again")
    commands.resume("sale is over")
    counted = scene.kept.collected.arms["canary"].requests
    while scene.kept.rollout.step == 0:
        assert scene.tick() == "canary"
    assert counted > 100
    # and without the controller
    forced = commands.force("looked at by hand", promote=False)
    assert forced.rollout.state == "champion"
    assert published(settings, client).stable == CANDIDATE
    assert scene.tick() == "champion"
    assert actions(scene.store)[2:] == ["pause", "resume", "rollout_step", "force"]
    assert scene.store.ledger(1)[0].why == "forced: looked at by hand"


def test_an_aborted_rollout_stays_aborted(settings, client):
    scene = Scene(settings)
    scene.tick()
    RolloutCommands(settings).abort("wrong data")
    assert published(settings, client).canary is None
    for _ in range(5):
        assert scene.tick() == "aborted"
    assert scene.store.plan().stable == STABLE
    with pytest.raises(Exception, match="no rollout is running"):
        RolloutCommands(settings).force("please", promote=True)


def test_pausing_costs_no_evidence(settings):
    scene = Scene(settings, tiny_profile(steps=[{"weight": 2000, "requests": 10**6, "minutes": 0}]))
    scene.tick()
    scene.traffic.serve(scene.store.plan(), 100)
    RolloutCommands(settings).pause("look")
    RolloutCommands(settings).resume("looked")
    scene.tick(50)
    counts = scene.kept.collected.arms
    assert sum(one.requests for one in counts.values()) == 300


def test_slow_looks_at_much_are_cut_into_pieces(settings, monkeypatch):
    monkeypatch.setattr("deployment.rollout.log_tail.LOOK_BYTES", 10_000)
    monkeypatch.setattr("deployment.rollout.log_tail._CHUNK", 4_000)
    scene = Scene(settings, tiny_profile(steps=[{"weight": 2000, "requests": 10**6, "minutes": 0}]))
    scene.traffic.serve(scene.store.plan(), 500)
    ticks = 0
    while not ticks or scene.controller._collector.behind:
        scene.clock.pass_(0.5)
        scene.controller.tick()
        ticks += 1
    assert ticks > 5
    scene.tick(0)
    assert sum(one.requests for one in scene.kept.collected.arms.values()) == 500


def test_the_first_control_plane_and_a_controller_share_a_store(settings):
    """`larder models rollback` ends a rollout; the controller notices."""
    scene = Scene(settings)
    scene.tick()
    with pytest.raises(ConflictError, match="is running"):
        ControlPlane(settings)._require_movable(  # what `models promote` asks first
            type("V", (), {"bundle_id": "4" * 32, "version": "4"})(), scene.store.plan(), scene.store.plan().epoch
        )


def test_answers_under_another_plan_count_for_nothing(settings):
    scene = Scene(settings)
    plan = scene.store.plan()
    for other in (replace(plan, epoch=plan.epoch - 1), replace(plan, epoch=plan.epoch + 1)):
        scene.traffic.failing = {"canary": 1.0}
        scene.traffic.serve(other, 200)
    assert scene.tick(0) == "canary"
    assert scene.tick(0) == "canary"
    assert scene.kept.collected.arms == {}
    assert scene.kept.collected.tests.guardrails["error"].canary_users == 0
