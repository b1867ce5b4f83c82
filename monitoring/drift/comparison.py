"""One window against the reference: every column tested, corrected over columns, alarmed where it persists. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monitoring.drift.columns import Column, Values
from monitoring.drift.tests_of_two import (
    Difference,
    benjamini_hochberg,
    chi_square,
    effective_rows,
    kolmogorov_smirnov,
    persists,
    two_shares,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Fixed before anything is looked at; `larder bench drift` says what they give.

    Attributes
    ----------
    sample
        Requests of a window, of as many different users.
    reference
        Rows of the reference.
    alpha
        Share of false finds among the columns of a window (Benjamini-Hochberg).
    needed, among
        An alarm is a find in the newest window, and in so many of so many newest windows.
    baseline
        First windows of a champion that are the reference of what no replay has.
    """

    sample: int = 300
    reference: int = 1_500
    alpha: float = 0.01
    needed: int = 2
    among: int = 3
    baseline: int = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What a window says of one column.

    Attributes
    ----------
    p_value
        Adjusted over the columns of the window.
    hit
        Significant, and large enough to matter.
    alarm
        A hit that persists.
    rows
        Of the reference and of the window.
    """

    column: Column
    effect: float
    p_value: float
    hit: bool
    alarm: bool
    rows: tuple[int, int]
    means: tuple[float, float]


def compare(
    columns: Sequence[Column],
    references: Mapping[str, Mapping[str, Values]],
    current: Mapping[str, Values],
    history: Mapping[str, Sequence[bool]],
    rules: Rules,
) -> list[Finding]:
    """Test all columns both sides have.

    Parameters
    ----------
    references
        For each column, by name, the sample it is compared with: values by column, `CLUSTERS` among them.
    current
        Values by column.
    history
        By column, whether the windows before were hits, oldest first.

    Returns
    -------
    list of Finding
        In the order of `columns`. Expected ones are measured, but are no part of the family and never hits.
    """
    there = [
        column
        for column in columns
        if len(references[column.name].get(column.name, ())) and len(current.get(column.name, ()))
    ]
    found = [_difference(column, references[column.name], current) for column in there]
    family = [i for i, column in enumerate(there) if not column.expected]
    adjusted = np.array([one.p_value for one in found])
    adjusted[family] = benjamini_hochberg([found[i].p_value for i in family])
    out = []
    for column, one, p_value in zip(there, found, adjusted.tolist(), strict=True):
        hit = not column.expected and p_value < rules.alpha and one.effect >= column.floor
        alarm = persists([*history.get(column.name, ()), hit], rules.needed, rules.among)
        sides = references[column.name][column.name], current[column.name]
        rows, means = (len(sides[0]), len(sides[1])), (_mean(column, sides[0]), _mean(column, sides[1]))
        out.append(Finding(column, one.effect, p_value, hit, alarm, rows, means))
    return out


def remembered(
    history: Mapping[str, Sequence[bool]], findings: Sequence[Finding], rules: Rules
) -> dict[str, list[bool]]:
    """Return the history with a window added: as much of it as the next decision needs."""
    return {one.column.name: [*history.get(one.column.name, ()), one.hit][-(rules.among - 1) :] for one in findings}


def _difference(column: Column, reference: Mapping[str, Values], current: Mapping[str, Values]) -> Difference:
    then, now = reference[column.name], current[column.name]
    sizes = tuple(
        effective_rows(side[column.cluster])  # type: ignore[arg-type] # labels
        if len(side.get(column.cluster, ())) == len(side[column.name])
        else float(len(side[column.name]))
        for side in (reference, current)
    )
    if column.scale == "category":
        return chi_square(then, now, sizes)  # type: ignore[arg-type] # labels
    if column.scale == "share":
        return two_shares(then, now, sizes)  # type: ignore[arg-type] # numbers
    return kolmogorov_smirnov(then, now, sizes)  # type: ignore[arg-type] # numbers


def _mean(column: Column, values: Values) -> float:
    """Mean of what is not missing; NaN of categories."""
    if column.scale == "category":
        return float("nan")
    known = values[~np.isnan(values.astype(np.float64))]
    return float(known.mean()) if len(known) else float("nan")
