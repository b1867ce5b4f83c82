"""The index of pairs: the same numbers as a dictionary that counts up, over many calls, growing."""

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.pair_index import PairIndex

KEYS = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 40), st.integers(0, 9).map(lambda n: n << 32))


@hypothesis_settings(deadline=None)
@given(st.lists(st.lists(KEYS, max_size=60), max_size=6))
def test_numbers_by_first_appearance(calls: list[list[int]]) -> None:
    index, expected = PairIndex(), dict[int, int]()
    for keys in calls:
        rows = index.rows(np.array(keys, np.int64))
        assert rows.tolist() == [expected.setdefault(key, len(expected)) for key in keys]
    assert index.keys.tolist() == list(expected)
    assert len(index) == len(expected)
    assert PairIndex(index.keys).rows(index.keys).tolist() == list(range(len(expected)))


def test_grows_over_many_keys() -> None:
    index = PairIndex()
    keys = np.random.default_rng(1).permutation(200_000) << 16
    for part in np.split(keys, 8):
        index.rows(part)
    assert np.array_equal(index.rows(keys), np.arange(200_000))
