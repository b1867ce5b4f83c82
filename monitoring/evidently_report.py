"""Evidently adapter: a window as a report for people, as HTML and in a workspace that Evidently's UI shows.

The tests are ours (drift/tests_of_two.py), handed to Evidently as a test of its own registry: its built-in ones change
their method at 1,000 rows, leave missing values out, and know nothing of the other columns or of earlier windows.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from monitoring.drift.columns import Values
from monitoring.drift.records import FindingRecord, WindowRecord

#: Name of our test in Evidently's registry, and in its reports.
METHOD: Final = "larder"
#: Columns of a report: those that drift, then those that differ most.
SHOWN: Final = 24
#: Scripts and styles of the page are inline; nothing may be asked for from anywhere, nor sent.
POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'"
)


def write_report(
    window: WindowRecord,
    reference: Mapping[str, Values],
    current: Mapping[str, Values],
    *,
    project: str,
    page: Path,
    workspace: Path,
) -> None:
    """Make the report of a window, and add it to the workspace.

    Takes 5 to 15 s and a few hundred MB, the first time 5 s more: a worker's work.

    Parameters
    ----------
    reference, current
        Values by column.
    page
        Where the HTML is written; whole or not at all.
    workspace
        Directory of Evidently's workspace, one project of it per project of ours.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snapshot = _run(window, reference, current, project)
        page.parent.mkdir(parents=True, exist_ok=True)
        scratch = page.with_suffix(".tmp")
        scratch.write_text(fenced(snapshot.get_html_str(as_iframe=False)), "utf-8")
        scratch.replace(page)
        _keep(snapshot, project, workspace)


def fenced(html: str) -> str:
    """Return a page with a policy before all else, so that nothing in it can reach out.

    >>> fenced("<html><head><title>x</title>")[:45]
    '<html><head><meta http-equiv="Content-Securit'
    """
    before, head, after = html.partition("<head>")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
    return f"{before}{head}{policy}{after}" if head else f"{policy}{html}"


def _run(window: WindowRecord, reference: Mapping[str, Values], current: Mapping[str, Values], project: str) -> Any:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import RowCount, ValueDrift

    shown = [one for one in window.findings if one.name in reference and one.name in current]
    shown.sort(key=lambda one: (not one.alarm, not one.hit, one.expected, -one.effect))
    shown = shown[:SHOWN]
    _register({one.name: one for one in shown})
    categories = [one.name for one in shown if one.scale == "category"]
    numbers = [one.name for one in shown if one.scale != "category"]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    sides = [_frame(side, shown, reference) for side in (current, reference)]
    datasets = [Dataset.from_pandas(side, data_definition=definition) for side in sides]
    name = f"{escape(project)} {_utc(window.start_us):%Y-%m-%d %H:%M} to {_utc(window.end_us):%Y-%m-%d %H:%M} UTC"
    report = Report([RowCount(), *(ValueDrift(column=one.name, method=METHOD) for one in shown)], include_tests=True)
    metadata = {"bundle_id": window.bundle_id, "requests": window.requests, "alarms": sum(one.alarm for one in shown)}
    return report.run(
        *datasets, timestamp=_utc(window.end_us).replace(tzinfo=None), name=name, metadata=metadata,
        tags=["alarm"] if metadata["alarms"] else [],
    )  # fmt: skip


def _register(findings: Mapping[str, FindingRecord]) -> None:
    """Make what was found Evidently's test: the score is the adjusted p-value, drift a hit."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def ours(
        reference: pd.Series[Any], current: pd.Series[Any], kind: ColumnType, threshold: float
    ) -> tuple[float, bool]:
        one = findings[str(reference.name)]
        return one.p_value, one.hit

    test = StatTest(
        name=METHOD,
        display_name="Larder: p-value, Benjamini-Hochberg over columns; drift where the effect matters too",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
        default_threshold=0.01,
    )
    register_stattest(test, ours)


def _frame(side: Mapping[str, Values], shown: Sequence[FindingRecord], reference: Mapping[str, Values]) -> pd.DataFrame:
    """Return columns of one side, as long as the longest; strings of the data escaped."""
    length = max(len(side[one.name]) for one in shown)
    columns: dict[str, Any] = {}
    for one in shown:
        values = side[one.name]
        if one.scale == "category":
            padded = np.full(length, None, object)
            padded[: len(values)] = [escape(str(value)) for value in values]
        else:
            padded = np.full(length, np.nan)
            padded[: len(values)] = values
            if np.isnan(padded).all():  # Evidently refuses a column of nothing: it shows as one value below all
                known = reference[one.name].astype(np.float64)
                padded[: len(values)] = (np.nanmin(known) if not np.isnan(known).all() else 0.0) - 1.0
        columns[one.name] = padded
    return pd.DataFrame(columns)


def _keep(snapshot: Any, project: str, workspace: Path) -> None:
    from evidently.ui.workspace import Workspace

    workspace.mkdir(parents=True, exist_ok=True)
    kept = Workspace.create(str(workspace))
    name = escape(project)
    found = [one for one in kept.list_projects() if one.name == name]
    kept.add_run((found[0] if found else kept.create_project(name)).id, snapshot)


def _utc(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)
