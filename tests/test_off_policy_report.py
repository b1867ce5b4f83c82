"""The verdict's section on what the log says: from real logs of impressions and events, for information only."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import deployment.gate
from deployment.off_policy.candidate import as_logged, chosen_by, off_policy
from deployment.off_policy.explored_log import Round, read_rounds
from deployment.sealed_verdict import open_verdict, seal_verdict
from deployment.verdict import OffPolicy
from deployment.verdict_report import verdict_page
from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset
from feature_repo.event_log import write_dataset
from feature_repo.events import EVENT_SCHEMA
from feature_repo.settings import Settings
from serving.cascade.exploration import ExploredSlot, epsilon_propensities, pick, propensities_of, uniform
from serving.cascade.recommender import RankedItem
from serving.impressions import Impressions, to_record
from tests.test_verdict import KEY, check, verdict

CHAMPION = "c" * 32
DAY = datetime(2026, 2, 26, 9, tzinfo=UTC)
NOW_US = round((DAY + timedelta(days=1)).timestamp() * 1e6)
RANK, EPSILON, ROUNDS = 3, 0.5, 4_000
#: P(click) of the item that stands there and of the pool; the third is the best.
CLICK = np.array([0.08, 0.05, 0.3, 0.05, 0.05])


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[str]]:
    """A shop's features, the champion's explored lists, and the clicks on them."""
    settings = Settings(home=tmp_path_factory.mktemp("explored"), project="explored")
    made = load_dataset("simulator", settings, n_events=3_000, end=datetime(2026, 3, 1, tzinfo=UTC))
    items, users = made.items["item_id"].to_pylist()[:5], sorted(set(made.events["user_id"].to_pylist()))[:400]
    rng, records, clicks = np.random.default_rng(4), [], []
    for n in range(ROUNDS):
        request, user, time = f"x{n}", users[n % len(users)], DAY + timedelta(seconds=n)
        chances = epsilon_propensities(5, EPSILON)
        taken = pick(chances, uniform(request, RANK))
        slot = ExploredSlot(RANK, items, chances.tolist(), [0.05] * 5, taken)
        shown = [RankedItem(f"other{i}", i + 1, 0.1, "als") for i in range(4)]
        shown[RANK - 1] = RankedItem(items[taken], RANK, 0.05, "als", "explored" if taken else None)
        records.append(
            Impressions(
                request, round(time.timestamp() * 1e6), user, "stable", CHAMPION, "1", "full", 4, shown, 0, 0, None, [],
                propensities=propensities_of(4, [slot]), explored=[slot],
            )
        )  # fmt: skip
        for i, chance in ((taken, CLICK[taken]), (None, 0.2)):  # and clicks on what was not drawn
            if rng.random() < chance:
                item = items[i] if i is not None else made.items["item_id"][20].as_py()
                clicks.append({"event_id": f"{request}-{item}", "user_id": user, "item_id": item, "event_type": "view"})
                clicks[-1] |= {"event_timestamp": time, "received_at": time, "request_id": request, "rank": RANK}
    records.append(dataclasses.replace(records[0], request_id="other", served_bundle="d" * 32))
    records.append(dataclasses.replace(records[0], request_id="fresh", time_us=NOW_US - 1))
    records.append(dataclasses.replace(records[0], request_id="plain", explored=None, propensities=None))
    directory = settings.impressions_dir / f"{DAY:%Y-%m-%d}"
    directory.mkdir(parents=True)
    encode = msgspec.json.Encoder().encode_lines
    lines = encode([to_record(one) for one in records]) + b'{"explored":[{"rank": 1\n'
    (directory / "1-1.jsonl").write_bytes(lines)
    events = pa.concat_tables([made.events, pa.Table.from_pylist(clicks, schema=EVENT_SCHEMA)])
    events = events.sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])
    write_dataset(dataclasses.replace(made, events=events), settings)
    backfill(settings)
    return settings, items


def bundle(values: dict[str, float], bundle_id: str = CHAMPION) -> Any:
    """A model whose scores are known."""

    def score(user: Any, table: Any, items: Any, pairs: Any, now_us: int) -> Any:
        assert len(pairs.present) == len(items)
        return np.array([values[table.ids[i]] for i in items])

    return SimpleNamespace(bundle_id=bundle_id, recommender=SimpleNamespace(score=score))


def test_rounds_are_the_champions_settled_draws_with_their_clicks(logs: tuple[Settings, list[str]]) -> None:
    settings, items = logs
    rounds = read_rounds(settings, CHAMPION, NOW_US)
    assert len(rounds) == ROUNDS
    assert [one.time_us for one in rounds] == sorted(one.time_us for one in rounds)
    for arm in range(5):
        clicked = [one.clicked for one in rounds if one.slot.taken == arm]
        assert np.mean(clicked) == pytest.approx(CLICK[arm], abs=0.06)
    assert len(read_rounds(settings, CHAMPION, NOW_US, most=10)) == 10
    assert read_rounds(settings, "e" * 32, NOW_US) == []
    assert items[0] == rounds[0].slot.item_ids[0]


@pytest.mark.parametrize(("best", "word"), [(2, "is better"), (0, "not shown to be better or worse"), (3, "is worse")])
def test_the_candidates_choices_are_judged_by_what_they_earned(
    logs: tuple[Settings, list[str]], best: int, word: str
) -> None:
    settings, items = logs
    candidate = bundle({item: float(i == best) for i, item in enumerate(items)})
    said = off_policy(settings, candidate, bundle({}), NOW_US)
    lines = {what: (value, low, high) for what, value, low, high in said.lines}
    for name, truth in (("candidate", CLICK[best]), ("champion", CLICK[0])):
        for estimator in ("IPS", "SNIPS", "DR"):
            value, low, high = lines[f"{name}, {estimator}"]
            assert low <= value <= high
            assert value == pytest.approx(truth, abs=0.05)
    value, low, high = lines["candidate less champion, DR"]
    assert low <= value <= high
    if best != 3 or high < 0:  # .05 against .08 is at the edge of what 4,000 rounds can tell
        assert word in said.text


def test_an_item_that_was_not_known_that_day_is_not_chosen(logs: tuple[Settings, list[str]]) -> None:
    settings, items = logs
    slot = ExploredSlot(1, ["unheard of", items[1], items[2]], [0.5, 0.25, 0.25], [0.1] * 3, 0)
    one = Round("u", NOW_US, slot, True)
    assert chosen_by(settings, bundle({items[1]: 1.0, items[2]: 2.0}), [one]).tolist() == [2]
    only = dataclasses.replace(one, slot=dataclasses.replace(slot, item_ids=["a", "b", "c"]))
    assert chosen_by(settings, bundle({}), [only]).tolist() == [0]
    logged = as_logged([one], np.array([0]))
    assert (logged.reward[0], logged.propensity[0], logged.target[0]) == (1.0, 0.5, 1.0)


def test_where_the_log_cannot_tell_it_says_why(logs: tuple[Settings, list[str]], tmp_path: Path) -> None:
    settings, items = logs
    candidate = bundle({item: float(i) for i, item in enumerate(items)})
    assert "no log to ask" in off_policy(settings, candidate, None, NOW_US).text
    assert "exploration = epsilon" in off_policy(settings, candidate, bundle({}, "e" * 32), NOW_US).text
    early = round((DAY + timedelta(hours=1, seconds=60)).timestamp() * 1e6)
    said = off_policy(settings, candidate, bundle({}), early)
    assert "cannot tell" in said.text
    assert "are needed" in said.text
    assert said.lines == ()


def test_the_section_is_kept_and_shown_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = OffPolicy("Of <b>12</b> rounds.", (("candidate, DR", -0.01, -0.02, 0.0),))
    plain = verdict(check("auc"))
    one = dataclasses.replace(plain, off_policy=said)
    assert one.passed and (one.word, one.reason) == (plain.word, plain.reason)
    assert open_verdict(seal_verdict(one, KEY), KEY) == one
    old = {name: value for name, value in plain.to_dict().items() if name != "off_policy"}
    assert type(plain).from_dict(old) == plain
    page = verdict_page(one)
    assert "What the log says off policy" in page and "&lt;b&gt;12" in page and "Let through" in page
    assert "\N{MINUS SIGN}0.0100" in page
    assert "off policy" not in verdict_page(plain)

    def broken(*_: Any) -> OffPolicy:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(deployment.gate, "off_policy", broken)
    context = SimpleNamespace(settings=None, bundle=None, champion=None, now_us=0, report=None)
    assert "ZeroDivisionError: a bug" in deployment.gate._ask_the_log(context).text  # type: ignore[arg-type]
