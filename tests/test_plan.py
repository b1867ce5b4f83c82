"""The plan: what is published comes back, what cannot be meant is refused, a reader never sees half of one."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import BadInputError
from serving.plan import Arm, Plan, decode_plan, encode_plan, load_plan, plan_key, save_plan

BUNDLE = "0123456789abcdef" * 2
PLAN = Plan(3, Arm(BUNDLE, "7"), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))

plans = st.builds(
    Plan,
    st.integers(1, 2**53),
    st.builds(Arm, st.text("0123456789abcdef", min_size=32, max_size=32), st.text(min_size=1)),
    st.datetimes(timezones=st.just(UTC)),
)


@given(plans)
def test_a_plan_survives_encoding(plan: Plan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


def test_the_format_is_what_other_programs_were_told() -> None:
    assert encode_plan(PLAN) == (
        b'{"epoch":3,"stable":{"bundle_id":"' + BUNDLE.encode() + b'","model_version":"7"},'
        b'"published_at":"2026-01-02T03:04:05.000006Z"}'
    )
    assert plan_key("shop") == "shop:plan"


@pytest.mark.parametrize(
    "change",
    [
        (b'"epoch":3', b'"epoch":0'),
        (b'"epoch":3', b'"epoch":-1'),
        (b'"epoch":3', b'"epoch":"3"'),
        (b'"epoch":3,', b""),
        (BUNDLE.encode(), b"../../etc"),
        (BUNDLE.encode(), b"0123"),
        (BUNDLE.encode(), BUNDLE.upper().encode()),
        (b'"7"', b'""'),
        (b'"7"', b"7"),
        (b"06Z", b"06"),
        (b"{", b"["),
        (b"7", b"\xff"),
        (b"}", b""),
    ],
)
def test_what_cannot_be_meant_is_refused(change: tuple[bytes, bytes]) -> None:
    data = encode_plan(PLAN).replace(*change)
    assert data != encode_plan(PLAN)
    with pytest.raises(BadInputError):
        decode_plan(data)


def test_no_file_is_no_plan_and_a_broken_file_an_error(tmp_path: Path) -> None:
    assert load_plan(tmp_path / "plan.json") is None
    (tmp_path / "plan.json").write_bytes(b"{}")
    with pytest.raises(BadInputError):
        load_plan(tmp_path / "plan.json")


def test_a_reader_sees_whole_plans_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    versions = [Plan(n, Arm(BUNDLE, "x" * n * 50), PLAN.published_at) for n in range(1, 60)]
    save_plan(versions[0], path)
    stop = threading.Event()
    seen: list[Plan | None] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(load_plan(path))

    thread = threading.Thread(target=read)
    thread.start()
    for plan in versions:
        save_plan(plan, path)
    stop.set()
    thread.join(10)
    assert load_plan(path) == versions[-1]
    assert all(plan in versions for plan in seen)
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"], "no temporary files are left"
