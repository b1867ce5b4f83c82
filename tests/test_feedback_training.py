"""What feedback is in training: folded into rows as of its time, weight in the generators, a label where asked for."""

from __future__ import annotations

import time
from typing import Any

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.datasets import read_events
from feature_repo.materialize import materialize
from feature_repo.rows import null_rows
from feature_repo.settings import Settings
from feature_repo.views import DAY_US, ITEM_STATS, NULL_INT
from serving.cascade.items import build_item_table
from tests.live_shop import a_view, import_history
from tests.running_api import RunningApi, wait_until
from tests.test_api_entry import features, working
from training.generators.contract import Past
from training.generators.interactions import FOREVER_DAYS, interactions
from training.split import Log, Window

ITEMS = ["i1", "i2", "ï4"]


def pair_feedback(settings: Settings, user: str, at_us: int) -> list[Any]:
    rows = AsOfReader(settings, at_us).pairs(user, ITEMS, at_us)
    values = rows.ints[:, rows.view.ints.index("pair_feedback")]
    return [None if value == NULL_INT or not there else int(value)
            for value, there in zip(values, rows.present, strict=True)]  # fmt: skip


def test_verdicts_given_to_the_api_are_in_what_trainings_read(settings: Settings) -> None:
    now = time.time_ns() // 1000
    import_history(settings, [a_view(f"h{n}", user, at_us=now - DAY_US) for n, user in enumerate(("ann", "bob"))])
    backfill(settings)
    materialize(settings)
    with RunningApi(settings) as api, working(settings):
        wait_until(lambda: api.ready()["items"])
        shown = [item["item_id"] for item in api.recommend("ann", k=4, request_id="r1")["items"]]
        assert set(ITEMS) <= set(shown)
        before = time.time_ns() // 1000
        for item, verdicts in (("i1", ["reject", "confirm"]), ("i2", ["reject"])):
            for verdict in verdicts:
                said = {"request_id": "r1", "user_id": "ann", "item_id": item, "verdict": verdict}
                answer = api.http.post("/v1/feedback", json={"feedback": [said]}).json()
                assert answer["results"][0]["shown"] is True
        wait_until(lambda: (features(api, "ann")["user_stats"] or {}).get("user_dislikes") == 2)
    backfill(settings)
    after = time.time_ns() // 1000
    assert pair_feedback(settings, "ann", before) == [None, None, None], "nothing before it was said"
    assert pair_feedback(settings, "ann", after) == [1, -1, None], "the last verdict holds"
    events = read_events(settings)
    assert events["event_type"].to_pylist().count("reject") == 2, "and all of them are kept"
    log = Log.of(events).before(after)
    window = Window(before, after)
    assert log.targets(window, "confirm") == {"ann": {"i1"}}, "a label, where confirm is the target"
    assert log.targets(window, "purchase") == {}, "and of a shop's models none"
    weights, items = interactions(
        Past(log, build_item_table([], null_rows(ITEM_STATS, 0), after), after, 0, 1), FOREVER_DAYS
    )
    ann = dict(zip(items, weights.toarray()[0], strict=True))
    # A confirmation weighs 3, as a like does; her view of i1 was 1; a rejection says nothing to the generators.
    assert (ann["i1"], ann.get("i2", 0.0)) == (4.0, 0.0)
