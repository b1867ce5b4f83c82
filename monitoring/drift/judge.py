"""What one window means: compared with the reference and with the windows before it. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from monitoring.drift.columns import CLUSTERS, Answer, Column, Values, watched
from monitoring.drift.comparison import Finding, Rules, compare, remembered
from monitoring.drift.estimate import Estimate, expected_precision
from monitoring.drift.records import DriftState, FindingRecord, WindowRecord, kept, restored


@dataclass(frozen=True, slots=True)
class Window:
    """One window's sample.

    Attributes
    ----------
    columns
        Values by column.
    """

    start_us: int
    end_us: int
    answers: Sequence[Answer]
    columns: Mapping[str, Values]


def judge(
    service: str, window: Window, reference: Mapping[str, Values], state: DriftState, rules: Rules
) -> tuple[list[Finding], DriftState]:
    """Compare a window, and return what it says and the state after it.

    Columns no replay can have (outcomes, the rung of the ladder), and all where the state says `served`, are compared
    with the champion's own first windows, which are thereby taken to be as they should be.

    Parameters
    ----------
    reference
        Values by column of the replay; empty where the state says `served`.
    """
    columns = watched(service)
    learning = state.baseline_windows < rules.baseline
    own = [column for column in columns if column.baseline or state.against == "served"]
    mine = {} if learning else {name: restored(values) for name, values in state.baseline.items()}
    sides = {column.name: mine if column in own else reference for column in columns}
    findings = compare(columns, sides, window.columns, state.history, rules)
    scores = sides["score"].get("score", np.empty(0))
    record = WindowRecord(
        state.bundle_id,
        window.start_us,
        window.end_us,
        len(window.answers),
        [_record(one) for one in findings],
        _interval(expected_precision([answer.scores for answer in window.answers])),
        _interval(expected_precision([np.array([score]) for score in scores])),
    )
    return findings, msgspec.structs.replace(
        state,
        next_us=window.end_us,
        windows=state.windows + 1,
        history=remembered(state.history, findings, rules),
        baseline=_learned(state.baseline, own, window.columns) if learning else state.baseline,
        baseline_windows=state.baseline_windows + learning,
        last=record,
    )


def _learned(
    known: Mapping[str, list[float | str | None]], own: Sequence[Column], columns: Mapping[str, Values]
) -> dict[str, list[float | str | None]]:
    names = [column.name for column in own] + [name for name in CLUSTERS if name in columns]
    return {name: [*known.get(name, ()), *kept(columns[name])] for name in names if name in columns}


def _record(one: Finding) -> FindingRecord:
    column = one.column
    first, second = (None if np.isnan(mean) else mean for mean in one.means)
    return FindingRecord(
        column.name, column.group, column.scale, column.expected, one.effect, column.floor, one.p_value, one.hit,
        one.alarm, one.rows, (first, second),
    )  # fmt: skip


def _interval(estimate: Estimate) -> tuple[float, float, float] | None:
    return (estimate.precision, estimate.low, estimate.high) if estimate.requests else None
