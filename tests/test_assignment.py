"""Assignment of users to arms: stable over time, fair, and only growing with the weight."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from serving.assignment import BUCKETS, assign, bucket
from serving.plan import Arm, Plan

PLAN = Plan(1, Arm("0" * 32, "1"), datetime(2026, 1, 1, tzinfo=UTC), "r1", "salt", Arm("1" * 32, "2"), 500)
USERS = [f"u{i}" for i in range(20_000)]


def test_arms_have_the_share_of_the_plan() -> None:
    arms = [assign(PLAN, user) for user in USERS]
    for arm in ("canary", "baseline"):
        assert abs(arms.count(arm) / len(USERS) - 0.05) < 0.01


@given(st.text(max_size=20), st.integers(0, 5_000), st.integers(0, 5_000))
def test_raising_the_weight_only_adds_users(user: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    before, after = (assign(replace(PLAN, weight=weight), user) for weight in (low, high))
    assert before in ("stable", after)


def test_at_half_everybody_is_in_one_of_two_arms() -> None:
    assert {assign(replace(PLAN, weight=BUCKETS // 2), user) for user in USERS} == {"canary", "baseline"}


def test_without_a_canary_all_are_stable() -> None:
    assert {assign(replace(PLAN, canary=None, weight=0), user) for user in USERS[:100]} == {"stable"}


def test_another_release_or_salt_draws_anew() -> None:
    mine = [bucket("salt", "r1", user) for user in USERS]
    for other in ([bucket("salt", "r2", user) for user in USERS], [bucket("pepper", "r1", user) for user in USERS]):
        assert sum(a == b for a, b in zip(mine, other, strict=True)) < 20
