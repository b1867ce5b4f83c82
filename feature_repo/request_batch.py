"""Request-time features of one user and many items, kind by kind instead of one by one. PURE.

`request_features` says what a feature is. Of its kinds most are a decayed counter, a time passed or a plain column: all
of a kind are one NumPy call here, with the same operations on each number, so that the numbers are the same to the bit
(a test compares them). For the 300 candidates of a request, calls cost more than what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from feature_repo.request_features import FEATURES, Ages, Decayed, Feature, Raw, Since, inputs_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class _Side:
    """The features of the three common kinds whose columns are all in one block."""

    def __init__(self, columns: Sequence[str], features: Iterable[tuple[int, Feature]]) -> None:
        at, known = {name: row for row, name in enumerate(columns)}, list(features)
        decayed = [(place, one) for place, one in known if isinstance(one, Decayed)]
        since = [(place, one) for place, one in known if isinstance(one, Since)]
        raw = [(place, one) for place, one in known if isinstance(one, Raw)]
        moments = [one.time for _, one in decayed] + [one.time for _, one in since]
        times = list(dict.fromkeys(moments))
        self._places = _indices(place for place, _ in (*decayed, *since, *raw))
        self._columns = _indices([at[one.name] for _, one in decayed] + [at[one.name] for _, one in raw])
        self._times = _indices(at[name] for name in times)
        self._ages = _indices(times.index(name) for name in moments)
        self._half_lives = _column(-one.half_life_us for _, one in decayed)
        self._units = _column(one.unit_us for _, one in since)

    def fill(self, out: F32, block: F64, now: float) -> None:
        """Compute the features and put each into its row of `out`."""
        decayed = len(self._half_lives)
        values = block.take(self._columns, 0)
        ages = np.maximum(now - block.take(self._times, 0), 0.0).take(self._ages, 0)
        if decayed:
            ages[:decayed] /= self._half_lives
            np.exp2(ages[:decayed], out=ages[:decayed])
            ages[:decayed] *= values[:decayed]
        ages[decayed:] /= self._units
        out[self._places[: len(ages)]] = ages
        out[self._places[len(ages) :]] = values[decayed:]


class RequestBatch:
    """How the named features are computed from two blocks of state columns.

    Parameters
    ----------
    names
        Features, in the order wanted.
    user_columns, row_columns
        Names of the state columns of the user, and of each row.
    """

    def __init__(self, names: Sequence[str], user_columns: Sequence[str], row_columns: Sequence[str]) -> None:
        self._at = {name: (True, row) for row, name in enumerate(user_columns)}
        self._at |= {name: (False, row) for row, name in enumerate(row_columns)}
        of_user: list[tuple[int, Feature]] = []
        of_rows: list[tuple[int, Feature]] = []
        self._others: list[tuple[int, Feature]] = []
        for place, name in enumerate(names):
            feature = FEATURES[name][1]
            sides = {self._at[column][0] for column in inputs_of((name,))}
            if not isinstance(feature, Decayed | Since | Raw):
                self._others.append((place, feature))
            elif sides == {True}:
                of_user.append((place, feature))
            else:
                of_rows.append((place, feature))
        self._user, self._rows = _Side(user_columns, of_user), _Side(row_columns, of_rows)

    def compute(self, user: F64, rows: F64, now_us: int, out: F32) -> None:
        """Compute all features.

        Parameters
        ----------
        user, rows
            Shapes (user columns, 1) and (row columns, n), NaN for null.
        now_us
            Time of the request.
        out
            Takes the features, shape (names, n).
        """
        now = float(now_us)
        self._user.fill(out, user, now)
        self._rows.fill(out, rows, now)
        known, moment = Ages(_Columns(self._at, user, rows), np.array([now])), np.array([now])
        for place, feature in self._others:
            out[place] = feature(known, moment)


class _Columns(Mapping[str, F64]):
    """The columns of both blocks by name."""

    def __init__(self, at: Mapping[str, tuple[bool, int]], user: F64, rows: F64) -> None:
        self._at, self._user, self._rows = at, user, rows

    def __getitem__(self, name: str) -> F64:
        of_user, row = self._at[name]
        found: F64 = self._user[row] if of_user else self._rows[row]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _indices(values: Iterable[int]) -> Places:
    return np.fromiter(values, np.intp)


def _column(values: Iterable[float]) -> F64:
    return np.fromiter(values, np.float64)[:, None]
