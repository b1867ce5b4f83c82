"""The rules of a rollout: properties of `decide` over every evidence there can be."""

from __future__ import annotations

import math
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.rollout import states
from deployment.rollout.evidence import Evidence, ShadowEvidence
from deployment.rollout.profile import CLICKS, GUARDRAILS, RolloutProfile
from deployment.rollout.profile_file import SHIPPED, load_profile, profile_path
from deployment.rollout.states import Decision, Rollout
from feature_repo.errors import BadInputError, ConflictError, NotFoundError
from feature_repo.settings import Settings
from serving.rollout_status import TestStatus as Asked
from tests.rollout_traffic import CANDIDATE, STABLE, START, tiny_profile

WITH_SHADOW = {"comparisons": 100, "minutes": 0.05, "error_share": 0.05, "slow_share": 0.2, "overlap_floor": 0.1}


def asked(state: str) -> Asked:
    return Asked("x", state, 0.0, -0.1, 0.1, 0.05)


STATES = st.sampled_from(["open", "worse", "not worse"])
CLICK_STATES = st.sampled_from(["open", "worse", "not worse", "better", "undecided"])
EVIDENCE = st.builds(
    Evidence,
    requests=st.fixed_dictionaries({"canary": st.integers(0, 500), "baseline": st.integers(0, 500)}),
    guardrails=st.dictionaries(st.sampled_from(GUARDRAILS), STATES.map(asked)),
    ratio=st.none() | st.sampled_from(["open", "worse"]).map(asked),
    clicks=st.dictionaries(st.sampled_from(CLICKS), CLICK_STATES.map(asked)),
    shadow=st.builds(ShadowEvidence, st.integers(0, 300), st.integers(0, 40), st.integers(0, 100)),
)
PROFILES = st.builds(
    lambda shadow, required: tiny_profile(
        **({"shadow": WITH_SHADOW} if shadow else {}),
        clicks={
            "users": 400, "looks": 2, "minutes": 1, "margins": {"ctr": 0.5, "conversion": 0.9}, "required": required,
        },
    ),
    st.booleans(),
    st.sampled_from([[], ["ctr"]]),
)  # fmt: skip
SECONDS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-10, 10)


def begin(profile: RolloutProfile) -> Rollout:
    return states.begin("r", CANDIDATE, STABLE, profile, epoch=2, now=START, who="test", why="try")


@st.composite
def rollouts(draw) -> Rollout:
    """A rollout anywhere on its way."""
    rollout = begin(draw(PROFILES))
    for _ in range(draw(st.integers(0, 3))):
        if not (rollout.state == "canary" and rollout.is_last_step):
            rollout = states.apply(rollout, Decision("advance", "on"), epoch=rollout.epoch + 1, now=START, who="test")
    for seconds in draw(st.lists(SECONDS, max_size=3)):
        rollout = states.passed(rollout, seconds)
    if draw(st.booleans()):
        rollout = msgspec.structs.replace(rollout, elapsed_s=draw(st.floats(0, 300)))
    return states.pause(rollout, now=START, who="test", why="stop") if draw(st.booleans()) else rollout


@given(rollouts(), EVIDENCE)
def test_nothing_goes_on_without_everything_it_needs(rollout, evidence):
    decision = states.decide(rollout, evidence)
    if decision.kind not in ("advance", "promote"):
        return
    assert not rollout.paused
    if rollout.state == "shadow":
        assert decision.kind == "advance"
        assert evidence.shadow.compared >= 100
        assert rollout.elapsed_s >= 3
        return
    step = rollout.profile.steps[rollout.step]
    assert {name: evidence.guardrails[name].state for name in GUARDRAILS} == dict.fromkeys(GUARDRAILS, "not worse")
    assert min(evidence.requests.values()) >= step.requests
    assert rollout.elapsed_s >= step.minutes * 60
    assert evidence.ratio is None or evidence.ratio.state != "worse"
    assert all(test.state != "worse" for test in evidence.clicks.values())
    assert (decision.kind == "promote") == rollout.is_last_step
    if decision.kind == "promote":
        assert all(evidence.clicks[name].state in ("not worse", "better") for name in rollout.profile.clicks.required)


@given(rollouts(), EVIDENCE)
def test_what_is_worse_goes_back_at_once_also_in_a_pause(rollout, evidence):
    worse = [test for test in (*evidence.guardrails.values(), *evidence.clicks.values()) if test.state == "worse"]
    if rollout.state == "canary" and worse:
        assert states.decide(rollout, evidence).kind == "roll_back"


@given(rollouts(), EVIDENCE)
def test_a_decision_moves_one_step_at_most(rollout, evidence):
    decision = states.decide(rollout, evidence)
    after = states.apply(rollout, decision, epoch=rollout.epoch + 1, now=START, who="test")
    assert after.step - rollout.step == (1 if decision.kind == "advance" else 0)
    assert after.weight <= 5_000
    if decision.kind == "advance":
        assert after.weight > rollout.weight
        assert after.elapsed_s == 0.0
        assert states.decide(after, Evidence()).kind != "promote"
    if decision.kind != "hold":
        assert after.history[-1].reason == decision.reason


@given(rollouts(), EVIDENCE, st.sampled_from(["abort", "roll_back", "promote"]))
def test_what_has_ended_stays_as_it_is(rollout, evidence, how):
    if how == "abort":
        ended = states.abort(rollout, epoch=9, now=START, who="test", why="enough")
    else:
        ended = states.apply(rollout, Decision(how, "so"), epoch=9, now=START, who="test")
    assert not ended.active
    assert ended.weight == 0
    assert states.decide(ended, evidence).kind == "hold"
    assert states.passed(ended, 4.0) == ended
    with pytest.raises(ConflictError, match="has ended"):
        states.apply(ended, Decision("advance", "on"), epoch=10, now=START, who="test")
    with pytest.raises(ConflictError, match="has ended"):
        states.pause(ended, now=START, who="test", why="stop")


@given(rollouts(), EVIDENCE)
def test_a_pause_holds(rollout, evidence):
    paused = rollout if rollout.paused else states.pause(rollout, now=START, who="test", why="stop")
    assert states.decide(paused, evidence).kind in ("hold", "roll_back")
    assert states.passed(paused, 4.0).elapsed_s == paused.elapsed_s
    assert states.resume(paused, now=START, who="test", why="on").elapsed_s == paused.elapsed_s


@given(st.lists(SECONDS, max_size=20))
def test_no_clock_makes_time_pass_by_more_than_a_tick_or_backwards(all_seconds):
    rollout = begin(tiny_profile())
    for seconds in all_seconds:
        after = states.passed(rollout, seconds)
        assert 0.0 <= after.elapsed_s - rollout.elapsed_s <= states.MAX_TICK_S + 1e-6
        rollout = after
    assert math.isfinite(rollout.elapsed_s)


@given(rollouts())
def test_a_rollout_survives_json(rollout):
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(rollout)), Rollout) == rollout


def test_clicks_that_stay_undecided_stop_only_where_they_are_required():
    clicks = {"ctr": asked("undecided")}
    optional = begin(tiny_profile())
    needed = begin(tiny_profile(clicks={**msgspec.to_builtins(optional.profile.clicks), "required": ["ctr"]}))
    assert states.decide(optional, Evidence(clicks=clicks)).kind == "hold"
    decision = states.decide(needed, Evidence(clicks=clicks))
    assert decision.kind == "roll_back"
    assert "plan more users" in decision.reason


def test_no_data_is_waited_for_and_then_rolled_back():
    rollout = begin(tiny_profile())
    kinds = []
    for _ in range(130):
        rollout = states.passed(rollout, 1.0)
        decision = states.decide(rollout, Evidence())
        kinds.append(decision.kind)
    assert kinds == ["hold"] * 119 + ["roll_back"] * 11
    assert decision.reason.startswith("nothing could be concluded in 2 min: 0 of 100 requests in each arm")


def test_the_shadow_goes_back_as_soon_as_its_outcome_is_certain():
    rollout = states.passed(begin(tiny_profile(shadow=WITH_SHADOW)), 4.0)
    assert states.decide(rollout, Evidence(shadow=ShadowEvidence(50, 5, 20))).kind == "hold"
    assert states.decide(rollout, Evidence(shadow=ShadowEvidence(50, 6, 0))).kind == "roll_back"
    assert states.decide(rollout, Evidence(shadow=ShadowEvidence(50, 0, 21))).kind == "roll_back"
    assert states.decide(rollout, Evidence(shadow=ShadowEvidence(300, 15, 60))).kind == "advance"
    assert states.decide(rollout, Evidence(shadow=ShadowEvidence(300, 16, 0))).kind == "roll_back"


def test_shipped_profiles_are_as_documented(tmp_path):
    settings = Settings(home=tmp_path)
    production, demo = load_profile(settings, "production"), load_profile(settings, "demo")
    assert [step.weight for step in production.steps] == [100, 500, 2500, 5000]
    assert [step.weight for step in demo.steps] == [1000, 5000]
    assert production.alpha == demo.alpha == 0.01
    assert max(production.margins.values()) <= 0.01
    assert "300 requests a second" in demo.description
    with pytest.raises(NotFoundError, match="there are: demo, production"):
        load_profile(settings, "nightly")


def test_a_projects_own_profile_changes_values_of_a_shipped_one(tmp_path):
    settings = Settings(home=tmp_path)
    profile_path(settings).parent.mkdir()
    profile_path(settings).write_text("[demo]\nmax_hold_minutes = 9\n[demo.margins]\nslow = 0.5\n")
    profile = load_profile(settings, "demo")
    assert (profile.max_hold_minutes, profile.margins["slow"]) == (9.0, 0.5)
    assert profile.margins["error"] == 0.1
    profile_path(settings).write_text("[demo]\nmargin = 1\n")
    with pytest.raises(BadInputError, match="margin"):
        load_profile(settings, "demo")
    profile_path(settings).write_text("demo = 1\n")
    with pytest.raises(BadInputError, match="outside any profile"):
        load_profile(settings, "demo")
    assert SHIPPED.is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": []}, "steps must have rising weights"),
        ({"steps": [{"weight": 6000, "requests": 1, "minutes": 0}]}, "rising weights from 1 to 5000"),
        ({"steps": [{"weight": w, "requests": 1, "minutes": 0} for w in (500, 100)]}, "rising weights"),
        ({"margins": {"error": 0.1}}, "margins must name"),
        ({"alpha": 0.0}, "alpha must lie between 0 and 1"),
        ({"alpha": math.nan}, "alpha must lie between 0 and 1"),
        ({"window_s": 0}, "window_s must be above 0"),
        ({"max_hold_minutes": 0.01}, "longer than every step"),
        ({"nonsense": 1}, "nonsense"),
        ({"latency_objective_ms": "fast"}, "Expected `float`"),
    ],
)
def test_impossible_profiles_are_refused(changes, said):
    with pytest.raises(BadInputError, match=said):
        tiny_profile(**changes)


def test_history_says_who_when_and_why():
    rollout = begin(tiny_profile())
    later = START + timedelta(hours=1)
    ended = states.abort(rollout, epoch=3, now=later, who="ann", why="wrong data")
    assert [(line.state, line.who) for line in ended.history] == [
        ("gated", "test"),
        ("canary", "test"),
        ("aborted", "ann"),
    ]
    assert ended.history[-1].at == later.isoformat()
