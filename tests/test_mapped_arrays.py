"""Arrays of a bundle are mapped: the same numbers, shared by processes, and no pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.candidates.mapped_arrays import LEAST_BYTES, read_mapped
from training.npz import ALIGNMENT, write_npz


def mapped(array: np.ndarray) -> bool:
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "factors": rng.normal(size=(2_000, 64)).astype(np.float32),
        "neighbours": rng.integers(-1, 9, (5_000, 7)).astype(np.int32),
        "ids": np.array(["é", "item"] * 9_000),
        "small": np.arange(3),
        "none": np.empty((0, 4)),
        "scalar": np.array(2.5),
    }


def test_what_is_written_is_read_and_large_ones_are_mapped(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_npz(tmp_path / "a.npz", **arrays)
    write_npz(tmp_path / "b.npz", **dict(reversed(arrays.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_mapped(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        assert set(plain) == set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert mapped(found[name]) == (array.nbytes >= LEAST_BYTES)
        assert not mapped(found[name]) or found[name].ctypes.data % ALIGNMENT == 0


def test_a_write_stays_in_the_process(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_npz(tmp_path / "a.npz", **arrays)
    before = (tmp_path / "a.npz").read_bytes()
    read_mapped(tmp_path / "a.npz")["factors"][:] = 0.0
    assert (tmp_path / "a.npz").read_bytes() == before


def test_a_removed_file_is_still_readable(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_npz(tmp_path / "a.npz", **arrays)
    found = read_mapped(tmp_path / "a.npz")
    (tmp_path / "a.npz").unlink()
    np.testing.assert_array_equal(found["factors"], arrays["factors"])


def test_files_of_others_are_read_too(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    for name in ("plain", "packed"):
        found = read_mapped(tmp_path / f"{name}.npz")
        assert set(found) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("length", [3, 50_000])
def test_pickles_are_refused(tmp_path: Path, length: int) -> None:
    np.savez(tmp_path / "a.npz", objects=np.array([{}] * length, object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_mapped(tmp_path / "a.npz")
