"""`larder monitor quality`: measures live quality, prints it, and leaves report, page and gauges."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from larder.progress import progress
from larder.session import settings_of
from larder.when import duration_us, moment_us

if TYPE_CHECKING:
    from feature_repo.settings import Settings
    from monitoring.live_quality.ratio import Estimate
    from monitoring.live_quality.report import QualityReport


def quality(
    ctx: typer.Context,
    since: Annotated[
        str | None,
        typer.Option(help="Lists served from then on: an age (12h, 7d) or a time; all that are logged if not given."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Lists served before then; now if not given.")] = None,
    window: Annotated[str, typer.Option(help="How long after its list an event counts.")] = "24h",
    wait: Annotated[str, typer.Option(help="Younger lists are left out: nobody has had the time to click.")] = "10m",
    target: Annotated[
        str | None, typer.Option(help="Event type the model's probability is of; the data set's if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Where the page goes; beside the report if not given.")] = None,
) -> None:
    """Say what became of what was shown: clicks, purchases and feedback by version, arm and segment, with intervals.

    Joins the log of what was served with the event log (docs/live-quality.md). Leaves `<home>/<project>/monitoring/`
    `quality.json` and `quality.html`, and the gauges as `metrics/quality.prom`.

    Examples
    --------
      larder monitor quality
      larder monitor quality --since 7d --window 12h
      larder -p shop monitor quality --since 2026-03-01T00:00:00Z --until 2026-03-08T00:00:00Z --json
    """
    from larder.services.stack import attach
    from monitoring.live_quality.gauges import write_gauges
    from monitoring.live_quality.measure import Extent, measure

    settings = attach(settings_of(ctx))
    extent = Extent(
        moment_us(since, "--since"), moment_us(until, "--until"), duration_us(window, "--window"),
        duration_us(wait, "--wait"), target,
    )  # fmt: skip
    with progress("read lists served") as shown:
        report = measure(settings, time.time_ns() // 1000, extent, shown.advance)
    page = write_report(settings, report, html)
    write_gauges(settings, report)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    print_report(report)
    print(f"page: {page}")


def write_report(settings: Settings, report: QualityReport, html: Path | None = None) -> Path:
    """Write the report and its page; return the page's path."""
    from monitoring.live_quality.page import quality_page

    path = settings.root / "monitoring" / "quality.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", "utf-8")
    page = html or path.with_suffix(".html")
    page.write_text(quality_page(report), "utf-8")
    return page


def print_report(report: QualityReport) -> None:
    """Print a table: a line per figure, a column per version and arm."""
    from monitoring.live_quality.report import FIGURES

    groups = sorted(report.of("all"), key=lambda group: -group.requests)[:4]
    print(f"  {'':<22}" + "".join(f"{_made_by(one.model_version, one.arm):>30}" for one in groups))
    print(f"  {'lists':<22}" + "".join(f"{one.requests:>30,}" for one in groups))
    for name in FIGURES:
        if any(name in one.figures for one in groups):
            print(f"  {name:<22}" + "".join(f"{_told(one.figures.get(name)):>30}" for one in groups))
    for name in ("calibration_error", "calibration_noise", "coverage"):
        values = [getattr(one, name) for one in groups]
        print(f"  {name:<22}" + "".join(f"{'-' if value is None else f'{value:.4f}':>30}" for value in values))
    for why, number in report.left_out.items():
        print(f"  left out: {number:,} lists {why}")
    refused = [one for one in report.settled if one.fate != "settled"]
    for one in refused:
        print(f"  not counted: {one.events:,} {one.kind} events ({one.fate})")
    print(f"live quality: {report.requests:,} lists, champion {report.champion or 'none'}, {report.seconds:.1f} s")


def _made_by(version: str, arm: str) -> str:
    return f"{f'version {version}' if version else 'no model'}, {arm}"


def _told(one: Estimate | None) -> str:
    return "-" if one is None else f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]"
