"""What was served and what the model saw: the record of one answer, as it is handed over and as it is on disk.

`impression_log.py` writes the records; `larder features check` reads them back and computes the features again, the
rollout's controller counts them. Beside them: what a shadow candidate would have answered.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.cascade.exploration import ExploredSlot
from serving.cascade.recommender import RankedItem

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_LOG = logging.getLogger(__name__)
#: Why the assigned arm did not answer well. "fallback": its process is away, the stable model was asked at once.
Failure = Literal["error", "timeout", "non_finite", "empty", "fallback"]
FAILURES: tuple[Failure, ...] = ("error", "timeout", "non_finite", "empty", "fallback")
#: In place of a `seq`: Redis did not answer in time, so the model saw nulls whatever the row holds.
NOT_READ: Final = -1


@dataclass(slots=True)  # frozen, it would take several times as long to make; as the next one
class Seen:
    """What the ranker got for n items, by reference: nothing is encoded while the user waits.

    Attributes
    ----------
    service
        Feature service of the model; its features are the first columns of `matrix`, retrieval's follow.
    service_hash
        `services.service_hash` of it.
    candidates
        Ids of the n items where all candidates are kept; None where they are the first n of the list served.
    matrix
        Shape (n, features).
    item_seq, catalog_seq, pair_seq
        `seq` of the rows used, shape (n,); 0 where there was none, `NOT_READ` where it could not be read.
    category
        Position of each item's category in `category_names`, shape (n,).
    user
        The user's rows.
    """

    service: str
    service_hash: str
    candidates: list[str] | None
    matrix: F32
    item_seq: I64
    catalog_seq: I64
    pair_seq: I64
    category: I32
    category_names: tuple[str, ...]
    user: UserRows


@dataclass(slots=True)
class Impressions:
    """One answer.

    Attributes
    ----------
    time_us
        When the request was answered from, µs since the epoch (its `now`).
    assigned_arm
        Arm of the plan the user belongs to; guardrails count by it, so a fallback hides nothing.
    served_bundle
        Bundle that made the list; None where none did (popularity).
    user_seq, recent_seq
        `seq` of the user's row and of the recent events the model saw; 0 where there was none, `NOT_READ` where they
        could not be read.
    seen
        None where no model ranked anything.
    latency_ms
        From the request, decoded, to the list, not yet encoded: the reads of features and the model. None in records
        from before it was measured.
    failure
        Why the assigned arm did not answer well; None where it did. The user got a list all the same.
    epoch
        Epoch of the plan obeyed; 0 where there was none.
    propensities
        Probability with which each item came to its rank, in the order of `items`; 1 where nothing was drawn. None
        where nothing was explored, or in records from before there was exploration.
    explored
        What could have stood in the drawn places, for off-policy evaluation.
    """

    request_id: str
    time_us: int
    user_id: str
    assigned_arm: str
    served_bundle: str | None
    model_version: str | None
    level: str
    k: int
    items: list[RankedItem]
    user_seq: int
    recent_seq: int
    feature_age_s: float | None
    reasons: list[str]
    seen: Seen | None = None
    latency_ms: float | None = None
    failure: Failure | None = None
    epoch: int = 0
    propensities: list[float] | None = None
    explored: list[ExploredSlot] | None = None


class SeenRecord(msgspec.Struct, frozen=True):
    """`Seen` on disk.

    `packed` is base64 of zlib of: the matrix (float32, column after column, as most are the same for all items), then
    `item_seq`, `catalog_seq`, `pair_seq` (int64), and each item's position in `categories` (int32); all little
    endian, of length `rows`.
    """

    service: str
    service_hash: str
    candidates: list[str] | None
    rows: int
    columns: int
    categories: list[str]
    #: `seq` of the user's row of each of `categories`, like `pair_seq`.
    affinity_seq: list[int]
    packed: str

    def unpack(self) -> tuple[F32, I64, I32]:
        """Return the matrix (rows, columns); `item_seq`, `catalog_seq`, `pair_seq` (3, rows); the category's position.

        Raises
        ------
        ValueError
            If the record is damaged.
        """
        n, cells = self.rows, self.rows * self.columns
        try:
            data = zlib.decompress(base64.b64decode(self.packed, validate=True))
        except zlib.error as error:
            raise ValueError(f"the features of {n} items cannot be decompressed: {error}") from error
        if len(data) != 4 * cells + 28 * n:
            raise ValueError(f"the features of {n} items have {len(data)} bytes, expected {4 * cells + 28 * n}")
        matrix = np.frombuffer(data, "<f4", cells).reshape(self.columns, n).T
        seqs = np.frombuffer(data, "<i8", 3 * n, 4 * cells).reshape(3, n)
        return matrix, seqs, np.frombuffer(data, "<i4", n, 4 * cells + 24 * n)


class ImpressionRecord(msgspec.Struct, frozen=True):
    """`Impressions` on disk: one line of JSON."""

    request_id: str
    time_us: int
    user_id: str
    assigned_arm: str
    served_bundle: str | None
    model_version: str | None
    level: str
    k: int
    items: list[RankedItem]
    user_seq: int
    recent_seq: int
    feature_age_s: float | None
    reasons: list[str]
    seen: SeenRecord | None = None
    latency_ms: float | None = None
    failure: Failure | None = None
    epoch: int = 0
    propensities: list[float] | None = None
    explored: list[ExploredSlot] | None = None


class ShadowRecord(msgspec.Struct, frozen=True):
    """A shadow candidate's answer to a request, compared with the stable model's: one line of JSON.

    Attributes
    ----------
    bundle_id, stable_bundle
        The candidate, and the bundle that made the list the user got.
    k
        Length of the list wanted.
    overlap
        Share of the longer list's items that both lists have, 0 to 1; None, like the next two, where the candidate
        did not answer.
    rank_correlation
        Spearman's, of the items in both lists; None with fewer than two.
    score_shift
        Mean score of the candidate's list less that of the list served.
    latency_ms, served_latency_ms
        The candidate's time with its read of pair rows, but not the user's rows, and the served list's time with all.
    error
        Why the candidate did not answer; None where it did.
    known, level, category, events
        Segments: whether anything was known of the user, the answer's rung of the ladder, the category the user did
        most in ("" if none), and how many events the user has: "0", "1-9", "10-99" or "100+".
    dropped
        Requests for the shadow that were dropped since this process's last record.
    """

    request_id: str
    time_us: int
    user_id: str
    bundle_id: str
    stable_bundle: str | None
    epoch: int
    k: int
    overlap: float | None
    rank_correlation: float | None
    score_shift: float | None
    latency_ms: float | None
    served_latency_ms: float | None
    error: Failure | None
    known: bool
    level: str
    category: str
    events: str = ""
    dropped: int = 0


def to_record(served: Impressions) -> ImpressionRecord:
    """Return an answer as it is written down; takes about 0.1 ms, in the log's thread."""
    fields = {name: getattr(served, name) for name in ImpressionRecord.__struct_fields__ if name != "seen"}
    return ImpressionRecord(**fields, seen=None if served.seen is None else _seen_record(served.seen))


def _seen_record(seen: Seen) -> SeenRecord:
    codes = seen.category.tolist()
    place = {code: n for n, code in enumerate(sorted(set(codes)))}
    places = np.array([place[code] for code in codes], "<i4")
    categories = [seen.category_names[code] for code in place]
    row = {name: i for i, name in enumerate(seen.user.categories)}
    affinities = seen.user.affinities
    held = np.append(np.where(affinities.present, affinities.seq, 0), 0)
    rows, columns = seen.matrix.shape
    seqs = np.stack([seen.item_seq, seen.catalog_seq, seen.pair_seq])
    parts = (seen.matrix.T.astype("<f4"), seqs.astype("<i8"), places)
    data = b"".join(part.tobytes() for part in parts)
    return SeenRecord(
        service=seen.service,
        service_hash=seen.service_hash,
        candidates=seen.candidates,
        rows=rows,
        columns=columns,
        categories=categories,
        affinity_seq=held[[row.get(name, -1) for name in categories]].tolist(),
        packed=base64.b64encode(zlib.compress(data, 1)).decode(),
    )


def keeps_all_candidates(request_id: str, share: float) -> bool:
    """Whether all candidates of a request are written down: the same answer for the same id, everywhere."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def day_of(time_us: int) -> str:
    """Return the directory a record belongs into: its UTC day."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d")


class _Timed(Protocol):
    @property
    def time_us(self) -> int: ...


R = TypeVar("R", bound=_Timed)


def read_impressions(directory: Path, since_us: int = 0) -> Iterator[ImpressionRecord]:
    """Yield the records of answers from a time on, file by file, each file in its own order.

    A line that is no record (the last one of a process that was killed) is skipped and logged.
    """
    return _read(directory, msgspec.json.Decoder(ImpressionRecord), since_us)


def read_shadow(directory: Path, since_us: int = 0) -> Iterator[ShadowRecord]:
    """Yield the records of a shadow's comparisons (`Settings.shadow_dir`) like `read_impressions`."""
    return _read(directory, msgspec.json.Decoder(ShadowRecord), since_us)


def read_as(kind: type[R], directory: Path, since_us: int = 0) -> Iterator[R]:
    """Yield records as a struct of the caller's that names some of their fields only: the rest is skipped, unread."""
    return _read(directory, msgspec.json.Decoder(kind), since_us)


def _read(directory: Path, decoder: msgspec.json.Decoder[R], since_us: int) -> Iterator[R]:
    for path in sorted(directory.glob("*/*.jsonl")):
        if path.parent.name < day_of(since_us):
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    _LOG.warning("line %d of %s is no record of an answer: %s", number, path, error)
                    continue
                if record.time_us >= since_us:
                    yield record
