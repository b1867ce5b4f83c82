"""The online store empty, half gone or ten days old, and everything away at the start: lists go on by what is known."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import httpx
import pytest

from feature_repo.views import DAY_US
from tests.fault_load import ServedShop, served_shop, statuses, wait_ms
from tests.running_api import plan_for, publish
from tests.tiny_bundle import make_bundle, make_shop, write_shop

pytestmark = pytest.mark.faults

K = 10


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedShop]:
    with served_shop(tmp_path_factory.mktemp("stored")) as shop:
        yield shop


@pytest.fixture(autouse=True)
def whole(shop: ServedShop) -> None:
    """Begin each test with everything in the store."""
    shop.client.flushall()
    write_shop(shop.small, shop.client, shop.settings.project)
    publish(shop.client, shop.settings, plan_for(shop.bundle_id))


def lists(shop: ServedShop, **fields: object) -> list[dict]:
    """Ask for the list of every user, and of one nobody knows."""
    answers = []
    for user in [*shop.small.user_ids, "nobody"]:
        response = shop.http.post("/v1/recommendations", json={"user_id": user, "k": K, **fields})
        assert response.status_code == 200, response.text
        answers.append(response.json())
    return answers


def test_the_store_is_emptied(shop: ServedShop) -> None:
    with shop.load() as load:
        shop.processes.pause(1.0)
        shop.client.flushall()
        emptied = time.monotonic()
        shop.processes.pause(3.0)
        answers = lists(shop)
    after = load.since(emptied + 0.2)
    print(f"emptied: {len(after)} answers, p99 {wait_ms(after, 0.99):.0f} ms")
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert all(answer.reasons == ("unknown_user",) for answer in after)
    assert all(len(answer["items"]) == K for answer in answers)
    assert shop.http.get("/v1/items/popular").status_code == 200


def test_a_start_on_an_empty_store(shop: ServedShop) -> None:
    """Redis lost its disk, then the API was started again: the plan and the popular items are on its own."""
    shop.client.flushall()
    shop.processes.stop("api")
    shop.processes.start("api").wait()
    answers = lists(shop)
    print(f"started on an empty store: {answers[0]['level']} {answers[0]['reasons']}, {len(answers[0]['items'])} items")
    assert all(len(answer["items"]) == K for answer in answers)
    assert all(answer["level"] == "popularity_file" and answer["reasons"] for answer in answers)
    assert shop.http.get("/readyz").json()["problems"]
    write_shop(shop.small, shop.client, shop.settings.project)
    shop.wait_full()


def test_six_of_ten_keys_are_gone(shop: ServedShop) -> None:
    rows = sorted(shop.client.scan_iter(f"{shop.settings.project}:fs:*", count=1000))
    gone = random.Random(4).sample(rows, round(0.6 * len(rows)))
    with shop.load() as load:
        shop.processes.pause(0.5)
        shop.client.delete(*gone)
        shop.processes.pause(2.0)
        answers = lists(shop)
    unknown = sum(answer["reasons"] == ["unknown_user"] for answer in answers)
    print(f"{len(gone)} of {len(rows)} rows gone: {unknown} of {len(answers)} users are not known any more")
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert all(answer["level"] == "full" and len(answer["items"]) == K for answer in answers)
    assert 1 < unknown < len(answers), "those whose rows are left are known, the others are marked"


@pytest.mark.parametrize("days", [10, 800])
def test_values_are_old(shop: ServedShop, days: int) -> None:
    """Ten days count in full, and answers tell the age; pairs of more than two years are not counted (max_age_us)."""
    old = make_shop(time.time_ns() // 1000 - days * DAY_US)
    shop.client.flushall()
    write_shop(old, shop.client, shop.settings.project)
    publish(shop.client, shop.settings, plan_for(shop.bundle_id))
    shop.processes.stop("api")
    shop.processes.start("api").wait()
    shop.wait_full()
    answers = lists(shop)
    ages = {round(answer["feature_age_s"] / 86_400) for answer in answers}
    print(f"{days} days old: level {answers[0]['level']}, feature age {ages} days")
    assert all(answer["level"] == "full" and len(answer["items"]) == K for answer in answers)
    assert ages == {days}


def test_a_start_with_everything_away(shop: ServedShop) -> None:
    """Redis, control plane and MLflow are gone; bundle, plan and popularity come from the disk."""
    shop.wait_full()
    shop.kill_redis()
    shop.processes.stop("api")
    began = time.monotonic()
    # Not ready, as nobody can be served as usual: it is the answers that are waited for.
    shop.processes.start("api")
    shop.processes.wait_until("it lives", lambda: alive(shop), 60)
    up_s = time.monotonic() - began
    answers = lists(shop)
    waits = [shop.one().seconds for _ in range(50)]
    print(f"all away: answers {up_s:.1f} s after the start, {answers[0]['level']}, slowest {max(waits) * 1e3:.0f} ms")
    for answer in answers:
        assert (answer["level"], answer["reasons"]) == ("popularity_file", ["no_item_table"])
        assert answer["bundle_id"] == shop.bundle_id
        assert len(answer["items"]) == K
    assert shop.http.get("/readyz").status_code == 503
    shop.start_redis()
    back_s = shop.wait_full()
    print(f"full {back_s:.1f} s after Redis is back")
    assert back_s < 10.0


def alive(shop: ServedShop) -> bool:
    try:
        return shop.http.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_a_reload_without_mlflow(shop: ServedShop) -> None:
    """The settings name an MLflow where nobody listens: a new plan is loaded all the same, and no list fails."""
    shop.wait_full()
    second = make_bundle(shop.settings.bundles_dir, shop.small, seed=11)
    with shop.load() as load:
        shop.processes.pause(1.0)
        publish(shop.client, shop.settings, plan_for(second, epoch=2))

        def served() -> bool:
            return shop.http.get("/readyz").json()["bundle_id"] == second

        shop.processes.wait_until("the new bundle is served", served, 30)
        shop.processes.pause(1.0)
    print(f"reload: {len(load.answers)} answers, max {wait_ms(load.answers, 1):.0f} ms")
    assert statuses(load.answers) == {200}, shop.processes.log("api")[-4000:]
    assert {answer.level for answer in load.answers} == {"full"}
