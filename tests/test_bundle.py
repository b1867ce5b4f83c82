"""The bundle format: what was changed, damaged or scores differently is refused before it can answer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.errors import BadInputError, LarderError, NotFoundError
from serving.bundle import MANIFEST, Bundle, check_golden, load_bundle, write_manifest
from serving.warm_up import warm_up
from tests.tiny_bundle import Shop, make_bundle, make_shop
from training.npz import write_npz


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(time.time_ns() // 1000)


@pytest.fixture(scope="module")
def sealed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles")
    return directory / make_bundle(directory, shop)


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(sealed, tmp_path / sealed.name))


def answers(bundle: Bundle, shop: Shop) -> list[Any]:
    class Reader:
        def user(self, user_id: str, now_us: int) -> Any:
            return shop.user(user_id)

        def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Any:
            return shop.pair_rows(user_id, item_ids)

    table = shop.table()
    return [bundle.recommender.recommend(Reader(), table, user, shop.now_us, k=20).items for user in shop.user_ids[:5]]


def test_a_bundle_is_named_by_its_content(sealed: Path, shop: Shop, tmp_path: Path) -> None:
    loaded = load_bundle(sealed)
    assert loaded.bundle_id == sealed.name
    assert len(sealed.name) == 32
    # The same inputs and seed give the same id, another seed another one.
    assert make_bundle(tmp_path, shop) == sealed.name
    assert make_bundle(tmp_path, shop, seed=4) != sealed.name


def test_a_bundle_may_hold_another_kind_of_ranker(shop: Shop, tmp_path: Path) -> None:
    bundle_id = make_bundle(tmp_path, shop, kind="lightgbm")
    loaded = load_bundle(tmp_path / bundle_id)
    assert loaded.manifest["ranker"] == {"kind": "lightgbm"}
    assert {"ranker.txt"} == {name for name in loaded.manifest["files"] if name.startswith("ranker.")}
    assert make_bundle(tmp_path / "again", shop, kind="lightgbm") == bundle_id
    assert len(answers(loaded, shop)[0]) == 20


def test_loading_twice_answers_the_same(sealed: Path, shop: Shop) -> None:
    assert answers(load_bundle(sealed), shop) == answers(load_bundle(sealed), shop)


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_refused(sealed: Path, shop: Shop, data: st.DataObject) -> None:
    file = sealed / data.draw(st.sampled_from(sorted(path.name for path in sealed.iterdir())))
    before = file.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    try:
        try:
            loaded = load_bundle(sealed)
        except LarderError:
            return
        # Only in the manifest can a change go through: as another id (serving compares it with the plan's), or in
        # white space.
        assert file.name == MANIFEST
        assert loaded.bundle_id != sealed.name or json.loads(changed) == json.loads(before)
    finally:
        file.write_bytes(before)


def truncate(bundle: Path) -> None:
    (bundle / "als.npz").write_bytes((bundle / "als.npz").read_bytes()[:-100])


def add_a_file(bundle: Path) -> None:
    (bundle / "extra.json").write_text("{}", "utf-8")


def remove_a_file(bundle: Path) -> None:
    (bundle / "popular.json").unlink()


def link_a_file(bundle: Path) -> None:
    (bundle / "popular.json").rename(bundle.parent / "popular.json")
    (bundle / "popular.json").symlink_to(bundle.parent / "popular.json")


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
        (bundle / MANIFEST).write_text(json.dumps(manifest | changes), "utf-8")

    return change


def reseal_with(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Change files and seal again: hashes are right, the content is not."""

    def resealed(bundle: Path) -> None:
        change(bundle)
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
        write_manifest(bundle, {key: value for key, value in manifest.items() if key not in ("format", "files")})

    return resealed


def outside_file(bundle: Path) -> None:
    """Let a generator name a file outside the bundle, which no hash covers."""
    for file in bundle.glob("*.npz"):
        shutil.copy(file, bundle.parent / file.name)
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    for entry in manifest["generators"]:
        if "file" in entry:
            entry["file"] = f"../{entry['file']}"
    (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def other_golden_scores(bundle: Path) -> None:
    golden = np.load(bundle / "golden.npz")
    write_npz(bundle / "golden.npz", matrix=golden["matrix"], score=golden["score"] + 1e-3)


def other_width(bundle: Path) -> None:
    golden = np.load(bundle / "golden.npz")
    write_npz(bundle / "golden.npz", matrix=golden["matrix"][:, :-1], score=golden["score"])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        add_a_file,
        remove_a_file,
        link_a_file,
        change_manifest(format=1),
        change_manifest(ranker={"kind": "pickle"}),
        change_manifest(ranker={"kind": "lightgbm"}),
        change_manifest(feature_service_hash="0"),
        change_manifest(feature_service="no such service"),
        change_manifest(features=["f_user_orders"]),
        change_manifest(files={"../ranker.cbm": {"size": 1, "sha256": ""}}),
        change_manifest(files={"run.py": {"size": 1, "sha256": ""}}),
        change_manifest(files=None),
        change_manifest(files={"ranker.cbm": {}}),
        change_manifest(generators=None),
        change_manifest(generators=[{}]),
        lambda bundle: (bundle / MANIFEST).write_bytes(b"[]"),
        lambda bundle: (bundle / MANIFEST).write_bytes(b"\xff"),
        lambda bundle: (bundle / MANIFEST).unlink(),
        reseal_with(change_manifest(golden_tolerance="none")),
        reseal_with(change_manifest(policy={})),
        reseal_with(outside_file),
        reseal_with(other_golden_scores),
        reseal_with(other_width),
    ],
    ids=lambda damage: getattr(damage, "__name__", "damage"),
)
def test_a_damaged_bundle_is_refused_by_a_clear_error(bundle: Path, damage: Callable[[Path], None]) -> None:
    damage(bundle)
    with pytest.raises((BadInputError, NotFoundError)) as refused:
        load_bundle(bundle)
    assert len(str(refused.value)) > 20


def test_golden_rows_must_reproduce_within_the_tolerance() -> None:
    expected = np.array([0.0, 1.0])
    check_golden(expected + 1e-7, expected, 1e-6)
    for wrong in (expected + 1e-5, expected * np.nan):
        with pytest.raises(BadInputError):
            check_golden(wrong, expected, 1e-6)


@pytest.mark.parametrize("popular", [[], ["i00001", "i00001"], ["other"]])
def test_warming_up_needs_no_item_table(bundle: Path, popular: list[str]) -> None:
    (bundle / "popular.json").write_text(json.dumps(popular), "utf-8")
    reseal_with(lambda path: None)(bundle)
    warm_up(load_bundle(bundle), None)
