"""A rollout in the terminal: arms, intervals as small bars, how they narrowed, the decision and its reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from feature_repo.errors import UnavailableError
from serving.rollout_status import RolloutStatus, TestStatus

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

_EVERY_S: Final = 1.0
_WIDTH: Final = 33
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_COLOURS: Final = {"worse": "red", "not worse": "green", "better": "green"}
_ENDS: Final = ("champion", "rejected", "rolled_back", "aborted")


def show(status: RolloutStatus) -> None:
    """Print a rollout once."""
    from rich.console import Console

    Console().print(screen(status))


def watch_rollout(read: Callable[[], RolloutStatus]) -> None:
    """Show a rollout until it ends or Ctrl-C; what is away for a moment is said and waited for."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    status = read()
    with Live(screen(status), refresh_per_second=4) as live:
        try:
            while status.state not in _ENDS:
                time.sleep(_EVERY_S)
                try:
                    status = read()
                    live.update(screen(status))
                except UnavailableError as error:
                    live.update(Group(Text(f"not up to date: {error}", style="red"), screen(status)))
        except KeyboardInterrupt:
            return


def screen(status: RolloutStatus) -> Group:
    """Return what is shown."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colour = {"champion": "green", "rolled_back": "red", "rejected": "red", "aborted": "red"}.get(status.state, "cyan")
    head = Text.assemble(
        (f" {'paused, ' if status.paused else ''}{status.state.replace('_', ' ')} ", f"bold reverse {colour}"),
        f"  version {status.candidate_version} against {status.stable_version}   {_steps(status)}",
    )
    lines = [head, Text(f"{status.decision}: {status.reason}", style="bold")]
    arms = Table(box=None, pad_edge=False, header_style="dim")
    guardrails = list(dict.fromkeys(name for arm in status.arms for name in arm.failures))
    for n, name in enumerate(["arm", "version", "requests", "users", *guardrails, "p50 ms", "p95 ms", "click", "buy"]):
        arms.add_column(name.replace("_", " "), justify="left" if n == 0 else "right")
    for arm in status.arms:
        compared = arm.arm != "stable"
        arms.add_row(
            arm.arm, arm.model_version, f"{arm.requests:,}", f"{arm.users:,}" if compared else "",
            *(f"{arm.failures.get(name, 0):,}" for name in guardrails), _number(arm.p50_ms), _number(arm.p95_ms),
            _share(arm.ctr), _share(arm.conversion),
        )  # fmt: skip
    parts: list[RenderableType] = [*lines, Text(""), arms, Text(""), _tests(status)]
    if status.shadow is not None:
        shadow = status.shadow
        said = f"shadow: {shadow.compared:,} answers, {shadow.errors:,} failed, {_share(shadow.overlap)} in common, "
        parts.append(Text(said + f"p95 {_number(shadow.p95_ms)} ms (served {_number(shadow.served_p95_ms)})"))
    return Group(*parts)


def _tests(status: RolloutStatus) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("test", "", "difference", "interval (┊: tolerated)", "bound over time", "evidence"):
        table.add_column(name, justify="right" if name in ("difference", "evidence") else "left")
    for test in status.tests:
        colour = _COLOURS.get(test.state, "yellow")
        low_is_bad = test.name in ("ctr", "conversion")
        evidence = (
            "" if test.e_value is None or test.threshold is None else f"{test.e_value:.3g} of {test.threshold:,.0f}"
        )
        table.add_row(
            test.name.replace("_", " "),
            Text(test.state, style=colour),
            "" if test.value is None else f"{100 * test.value:+.2f}",
            Text(interval_text(test, low_is_bad=low_is_bad), style=colour),
            sparkline(
                [point.tests[test.name][1 if low_is_bad else 2] for point in status.series if test.name in point.tests]
            ),
            evidence,
        )
    return table


def interval_text(test: TestStatus, *, low_is_bad: bool = False, width: int = _WIDTH) -> str:
    """Return an interval as a line of text, 0 in the middle, the margin as a dotted line."""
    if test.low is None or test.high is None:
        return ""
    margin = abs(test.margin or 0.0)
    reach = max(3.2 * margin, 1.3 * abs(test.value or 0.0), 1e-6)
    middle = width // 2

    def at(value: float) -> int:
        return middle + round(min(max(value / reach, -1.0), 1.0) * middle)

    cells = ["─"] * width
    for n in range(at(test.low), at(test.high) + 1):
        cells[n] = "━"
    cells[at(test.low)], cells[at(test.high)] = "╺", "╸"
    cells[middle] = "╂" if cells[middle] == "━" else "┼"
    if margin:
        cells[at(-margin if low_is_bad else margin)] = "┊"
    if test.value is not None:
        cells[at(test.value)] = "●" if test.value else cells[at(test.value)]
    return "".join(cells)


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """Return how the last values went, from the smallest to the largest size of them.

    Examples
    --------
    >>> sparkline([1.0, 0.5, 0.25, 0.0])
    '█▅▃▁'
    """
    known = [abs(value) for value in values if value is not None][-width:]
    largest = max(known, default=0.0)
    if not largest:
        return _SPARKS[0] * len(known)
    return "".join(_SPARKS[round(value / largest * (len(_SPARKS) - 1))] for value in known)


def _steps(status: RolloutStatus) -> str:
    steps = [f"{weight / 100:g} %" for weight in status.steps]
    if status.state == "canary":
        steps[status.step] = f"[{steps[status.step]}]"
    had_shadow = any(line.state == "shadow" for line in status.history)
    shadow = ["[shadow]" if status.state == "shadow" else "shadow"] if had_shadow else []
    return " → ".join([*shadow, *steps, "champion"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
