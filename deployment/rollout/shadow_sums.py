"""Sums over the shadow's answers: failures, distance from what was served, and where it is largest. PURE."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from deployment.rollout.evidence import ShadowEvidence
from deployment.rollout.histogram import BUCKETS, bucket_of, quantile
from serving.rollout_status import ShadowStatus

#: Segments kept apart; a field with more values than this says nothing to people.
_MAX_SEGMENTS: Final = 60
#: A segment with fewer answers is not shown.
_MIN_ANSWERS: Final = 20
_SHOWN: Final = 8
#: Fields of a record that are segments.
_SEGMENTS: Final = ("known", "level", "events", "category")
_MEANS: Final = ("overlap", "rank_correlation", "score_shift")


class ShadowSums(msgspec.Struct):
    """Goes to and from JSON; `sums` holds count and sum of each mean, `segments` the same of the overlap."""

    compared: int = 0
    errors: int = 0
    slow: int = 0
    dropped: int = 0
    sums: dict[str, tuple[int, float]] = {}
    segments: dict[str, tuple[int, float]] = {}
    latency: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    served_latency: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)

    def add(self, record: dict[str, Any], objective_ms: float) -> None:
        """Take in one record of the shadow's log."""
        self.compared += 1
        self.dropped += int(_number(record.get("dropped")) or 0)
        latency, served = _number(record.get("latency_ms")), _number(record.get("served_latency_ms"))
        if record.get("error"):
            self.errors += 1
        elif latency is not None:
            self.latency[bucket_of(latency)] += 1
            self.slow += latency > objective_ms
        if served is not None:
            self.served_latency[bucket_of(served)] += 1
        for name in _MEANS:
            value = _number(record.get(name))
            if value is not None:
                count, total = self.sums.get(name, (0, 0.0))
                self.sums[name] = (count + 1, total + value)
        overlap = _number(record.get("overlap"))
        if overlap is not None:
            self._add_segments(record, overlap)

    def evidence(self) -> ShadowEvidence:
        """Return what decides."""
        return ShadowEvidence(self.compared, self.errors, self.slow)

    def status(self) -> ShadowStatus:
        """Return what is shown; of the segments, those that differ most."""
        means = {name: total / count for name, (count, total) in self.sums.items() if count}
        large = {name: total / count for name, (count, total) in self.segments.items() if count >= _MIN_ANSWERS}
        return ShadowStatus(
            compared=self.compared,
            errors=self.errors,
            dropped=self.dropped,
            overlap=means.get("overlap"),
            rank_correlation=means.get("rank_correlation"),
            score_shift=means.get("score_shift"),
            p95_ms=quantile(self.latency, 0.95),
            served_p95_ms=quantile(self.served_latency, 0.95),
            segments=dict(sorted(large.items(), key=lambda one: one[1])[:_SHOWN]),
        )

    def _add_segments(self, record: dict[str, Any], overlap: float) -> None:
        for field in _SEGMENTS:
            value = record.get(field)
            if value is None or (field == "events" and not value):  # records from before it was kept
                continue
            name = f"{field} {_word(value)}"
            if name not in self.segments and len(self.segments) >= _MAX_SEGMENTS:
                continue
            count, total = self.segments.get(name, (0, 0.0))
            self.segments[name] = (count + 1, total + overlap)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:60] or "(none)"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
