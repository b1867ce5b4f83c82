"""What the live quality report says, and how it is kept as JSON. PURE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from monitoring.live_quality.ratio import Estimate, Kind, finite

#: Places that count for nDCG, and up to which an item shown is taken for "recommended" in precision and recall.
NDCG_AT: Final = 10
FIRST: Final = 5
SEGMENTS: Final = ("all", "warm", "cold", "new")
#: Figure to (kind of ratio, what a person is told).
FIGURES: Final[dict[str, tuple[Kind, str]]] = {
    "ctr": ("share", "clicked, of the items shown"),
    "seen_ctr": ("share", "clicked, of the items whose impression the client confirmed"),
    "click_rate": ("share", "lists with a click"),
    "cart_rate": ("share", "lists after which an item of theirs went into the cart"),
    "conversion": ("share", "lists after which an item of theirs was bought"),
    "ndcg": ("share", f"nDCG@{NDCG_AT} on clicks, of lists with a click"),
    "mrr": ("share", "1 / rank of the first click, of lists with a click"),
    "predicted": ("share", "mean probability the ranker gave"),
    "observed": ("share", "what became of those items"),
    "observed_to_predicted": ("quotient", "observed / predicted"),
    "confirmed": ("share", "confirmed, of the items with a verdict"),
    "precision": ("share", f"confirmed, of the verdicts on the first {FIRST}"),
    "recall": ("share", f"among the first {FIRST}, of the confirmed"),
    "f1": ("share", "their harmonic mean"),
    "novelty_bits": ("mean", "self-information of what was shown"),
    "popular_share": ("share", "of what was shown, among the items that make 80 % of the interactions"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of one bundle, arm and segment of users.

    Attributes
    ----------
    bundle_id, model_version
        Empty where no model made the lists.
    arm
        The arm the user was assigned to.
    figures
        By name of `FIGURES`; those nothing is known of are not there.
    coverage
        Share of the available catalogue that was shown to anybody; no interval.
    calibration_error, calibration_noise
        Mean distance of the reliability curve from the diagonal, weighted by items, and what it would be on average
        if the probabilities were right; None where no model scored.
    """

    bundle_id: str
    model_version: str
    arm: str
    segment: str
    requests: int
    users: int
    shown: int
    figures: dict[str, Estimate] = field(default_factory=dict)
    coverage: float | None = None
    calibration_error: float | None = None
    calibration_noise: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: a bundle and arm at a time (µs), rank, mean probability, or of a category."""

    bundle_id: str
    arm: str
    at: float | str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Settled:
    """Events that name a request, by what the log of what was served says of them.

    Attributes
    ----------
    claimed
        Whether the event has a rank: of feedback, whether the API itself could check it.
    rank_differs
        Those of them whose rank is not that of the list.
    """

    kind: str
    fate: str
    claimed: bool
    events: int
    rank_differs: int


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Live quality of one project in a stretch of time.

    Attributes
    ----------
    since_us, until_us
        Answers given in between.
    window_us
        How long after its list an event counts.
    target
        Event type the model's probability is of.
    champion
        Bundle that answered most lists of the stable arm lately; empty where none did.
    """

    project: str
    taken_at: str
    since_us: int
    until_us: int
    window_us: int
    target: str
    champion: str
    requests: int
    groups: tuple[Group, ...]
    by_time: tuple[Point, ...]
    by_rank: tuple[Point, ...]
    reliability: tuple[Point, ...]
    by_category: tuple[Point, ...]
    settled: tuple[Settled, ...]
    left_out: dict[str, int]
    bucket_us: int
    seconds: float = 0.0

    def of(self, segment: str = "all") -> Iterator[Group]:
        """Yield the groups of a segment."""
        return (group for group in self.groups if group.segment == segment)

    def events(self, *fates: str, kinds: tuple[str, ...]) -> int:
        """How many events of some kinds met one of these fates."""
        return sum(one.events for one in self.settled if one.fate in fates and one.kind in kinds)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in _NESTED}
        return plain | {
            "groups": [_group(one) for one in self.groups],
            **{name: [_point(one) for one in getattr(self, name)] for name in _CURVES},
            "settled": [asdict(one) for one in self.settled],
        }


_CURVES: Final = ("by_time", "by_rank", "reliability", "by_category")
_NESTED: Final = (*_CURVES, "groups", "settled")


def _group(one: Group) -> dict[str, Any]:
    plain = {name: getattr(one, name) for name in one.__slots__ if name != "figures"}
    plain |= {name: None if value is None else finite(value) for name, value in plain.items() if name in _MAY_LACK}
    return plain | {"figures": {name: estimate.to_dict() for name, estimate in one.figures.items()}}


_MAY_LACK: Final = ("coverage", "calibration_error", "calibration_noise")


def _point(one: Point) -> dict[str, Any]:
    return {"bundle_id": one.bundle_id, "arm": one.arm, "at": one.at, **one.estimate.to_dict()}
