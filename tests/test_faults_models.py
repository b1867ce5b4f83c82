"""Damaged model files: 60 truncations and 60 flipped bits of every format, with wrong hashes and with right ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deployment.parser import Parser
from feature_repo.errors import BadInputError
from serving.bundle import MANIFEST, describe_files, load_bundle
from serving.cascade.ranker import MODEL_SUFFIXES
from tests.tiny_bundle import make_bundle, make_shop
from training.npz import write_npz

pytestmark = pytest.mark.faults

EACH = 60
NOW_US = 1_790_000_000_000_000


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    """One child process that forks for every file."""
    with Parser(seconds=20, memory_mb=4096) as made:
        yield made


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle for every kind of model."""
    directory, shop = tmp_path_factory.mktemp("models"), make_shop(NOW_US)
    made = {kind: directory / make_bundle(directory, shop, kind=kind) for kind in ("catboost", "lightgbm")}
    made["xgboost"] = _as_xgboost(made["lightgbm"], directory)
    made["npz"] = made["catboost"]
    return made


def _as_xgboost(like: Path, directory: Path) -> Path:
    """A bundle whose ranker is XGBoost, made from another's files."""
    import xgboost

    made = directory / "xgboost"
    shutil.copytree(like, made)
    (made / "ranker.txt").unlink()
    with np.load(like / "golden.npz") as golden:
        matrix = golden["matrix"]
    rows = np.vstack([matrix] * 20)
    label = (np.nan_to_num(rows[:, 0]) > 1).astype(float)
    model = xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(rows, label), 10)
    model.save_model(made / "ranker.json")
    score = model.inplace_predict(matrix, predict_type="margin").astype(np.float64)
    write_npz(made / "golden.npz", matrix=matrix, score=score)
    manifest = json.loads((made / MANIFEST).read_text())
    reseal(made, manifest | {"ranker": {"kind": "xgboost"}})
    return made


def reseal(directory: Path, manifest: dict[str, object]) -> None:
    """Write the manifest anew, with the hashes of what lies there: damage that no hash tells."""
    (directory / MANIFEST).write_text(json.dumps(manifest | {"files": describe_files(directory)}))


def damaged(data: bytes) -> Iterator[bytes]:
    """60 truncations and 60 flips of one bit, spread over the file."""
    rng = np.random.default_rng(7)
    for cut in np.linspace(0, len(data) - 1, EACH).astype(int):
        yield data[:cut]
    for place in rng.integers(0, len(data), EACH):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


@pytest.mark.parametrize("kind", ["catboost", "lightgbm", "xgboost", "npz"])
def test_by_its_hash_before_it_is_parsed(
    bundles: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one is refused by this process, which parses nothing and lives."""
    import serving.bundle

    process, copy = os.getpid(), tmp_path / "copy"
    shutil.copytree(bundles[kind], copy)
    file = copy / ("similar.npz" if kind == "npz" else f"ranker{MODEL_SUFFIXES[kind]}")
    data = file.read_bytes()

    def parsed(*args: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(serving.bundle, "_parse", parsed)
    for number, bad in enumerate(damaged(data)):
        file.write_bytes(bad)
        with pytest.raises(BadInputError, match=r"sha256|bytes"):
            load_bundle(copy)
        assert os.getpid() == process, number


@pytest.mark.parametrize("kind", ["catboost", "lightgbm", "xgboost", "npz"])
def test_with_the_right_hash(bundles: dict[str, Path], tmp_path: Path, parser: Parser, kind: str) -> None:
    """No truncated file gets through the child; of the flipped ones only those that still score the golden rows."""
    copy = tmp_path / "copy"
    shutil.copytree(bundles[kind], copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    name = manifest["ranker"]["kind"]
    assert parser.bundle(copy, (name,)).finite
    file = copy / ("similar.npz" if kind == "npz" else f"ranker{MODEL_SUFFIXES[kind]}")
    data = file.read_bytes()
    refused = []
    for number, bad in enumerate(damaged(data)):
        file.write_bytes(bad)
        reseal(copy, manifest)
        with suppress(BadInputError):
            parser.bundle(copy, (name,))
            continue
        refused.append(number)
    # What may be lost: a last line break; of LightGBM's text, the training parameters that follow the trees.
    whole = data.find(b"end of trees") if kind == "lightgbm" else len(data) - 2
    cuts = np.linspace(0, len(data) - 1, EACH).astype(int)
    assert [number for number, cut in enumerate(cuts) if cut < whole and number not in refused] == []
    file.write_bytes(data)
    reseal(copy, manifest)
    assert parser.bundle(copy, (name,)).finite, "the parser lives on"


def test_what_the_child_may_not(tmp_path: Path, bundles: dict[str, Path], parser: Parser) -> None:
    """A plain file that ends its process, one that is no model, one that is somewhere else: refused, with a reason."""
    text = (bundles["lightgbm"] / "ranker.txt").read_bytes()
    (tmp_path / "cut.txt").write_bytes(text[: len(text) // 2])
    with pytest.raises(BadInputError, match=r"cut\.txt was refused"):
        parser.model(tmp_path / "cut.txt", "lightgbm")
    (tmp_path / "no.cbm").write_bytes(b"CBM1" + b"\xff" * 64)
    with pytest.raises(BadInputError, match="was refused"):
        parser.model(tmp_path / "no.cbm", "catboost")
    with pytest.raises(BadInputError, match="was refused"):
        parser.model(tmp_path / "gone.json", "xgboost")


def test_a_deadline_ends_what_does_not_end(bundles: dict[str, Path]) -> None:
    """A child that takes too long is killed, and the next file is parsed as ever."""
    with Parser(seconds=0.001, memory_mb=4096) as hasty:
        with pytest.raises(BadInputError, match="within 0 s"):
            hasty.bundle(bundles["catboost"], ("catboost",))
        hasty._seconds = 20.0
        assert hasty.bundle(bundles["catboost"], ("catboost",)).finite


def test_memory_is_bounded(bundles: dict[str, Path]) -> None:
    """With next to no memory the file is refused; nobody is killed for it."""
    with Parser(seconds=20, memory_mb=0.01) as poor, pytest.raises(BadInputError, match="was refused"):
        poor.bundle(bundles["catboost"], ("catboost",))
