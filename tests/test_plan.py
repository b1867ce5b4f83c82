"""The plan: what is published comes back, what cannot be meant is refused, a reader never sees half of one."""

from __future__ import annotations

import contextlib
import hmac
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.errors import BadInputError
from serving.plan import Arm, Plan, decode_plan, encode_plan, load_plan, plan_key, save_plan
from serving.signature import seal, unseal

BUNDLE = "0123456789abcdef" * 2
KEY = b"a key of at least thirty-two bytes"
PLAN = Plan(3, Arm(BUNDLE, "7"), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))

plans = st.builds(
    Plan,
    st.integers(1, 2**53),
    st.builds(Arm, st.text("0123456789abcdef", min_size=32, max_size=32), st.text(min_size=1)),
    st.datetimes(timezones=st.just(UTC)),
)


@given(plans)
def test_a_plan_survives_encoding(plan: Plan) -> None:
    assert decode_plan(encode_plan(plan, KEY), KEY) == plan


def test_the_format_is_what_other_programs_were_told() -> None:
    content = (
        b'{"epoch":3,"stable":{"bundle_id":"' + BUNDLE.encode() + b'","model_version":"7"},'
        b'"published_at":"2026-01-02T03:04:05.000006Z","release":"","salt":"","canary":null,"weight":0,"shadow":null}'
    )
    signature = hmac.new(KEY, content, "sha256").hexdigest().encode()
    assert encode_plan(PLAN, KEY) == b'{"content":' + content + b',"signature":"' + signature + b'"}'
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
        (b"}", b""),
    ],
)
def test_what_cannot_be_meant_is_refused(change: tuple[bytes, bytes]) -> None:
    content = unseal(encode_plan(PLAN, KEY), KEY, "plan")
    changed = content.replace(*change)
    assert changed != content
    with pytest.raises(BadInputError):
        decode_plan(seal(changed, KEY), KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 5_001},
        {"weight": -1},
        {"canary": None},
        {"salt": ""},
        {"release": ""},
        {"canary": Arm("../../etc", "8")},
        {"shadow": Arm(BUNDLE, "")},
    ],
)
def test_a_rollout_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    good = replace(PLAN, release="r1", salt="s", canary=Arm(BUNDLE, "8"), weight=100)
    assert decode_plan(encode_plan(good, KEY), KEY) == good
    with pytest.raises(BadInputError):
        decode_plan(encode_plan(replace(good, **wrong), KEY), KEY)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_of_a_signed_plan_can_be_changed(place: int, flip: int) -> None:
    data = bytearray(encode_plan(PLAN, KEY))
    data[place % len(data)] ^= flip
    with contextlib.suppress(BadInputError):  # a blank inside the envelope changes nothing
        assert decode_plan(bytes(data), KEY) == PLAN


def test_a_plan_of_another_key_is_refused() -> None:
    with pytest.raises(BadInputError, match="signature"):
        decode_plan(encode_plan(PLAN, b"k" * 32), KEY)


def test_no_file_is_no_plan_and_a_broken_file_an_error(tmp_path: Path) -> None:
    assert load_plan(tmp_path / "plan.json", KEY) is None
    (tmp_path / "plan.json").write_bytes(b"{}")
    with pytest.raises(BadInputError):
        load_plan(tmp_path / "plan.json", KEY)


def test_a_reader_sees_whole_plans_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    versions = [Plan(n, Arm(BUNDLE, "x" * n * 50), PLAN.published_at) for n in range(1, 60)]
    save_plan(versions[0], path, KEY)
    stop = threading.Event()
    seen: list[Plan | None] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(load_plan(path, KEY))

    thread = threading.Thread(target=read)
    thread.start()
    for plan in versions:
        save_plan(plan, path, KEY)
    stop.set()
    thread.join(10)
    assert load_plan(path, KEY) == versions[-1]
    assert all(plan in versions for plan in seen)
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"], "no temporary files are left"
