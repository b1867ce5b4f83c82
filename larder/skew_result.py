"""What a skew check found, for people and for machines: tables on the terminal, JSON, an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.settings import Settings
from larder.results import write_results

if TYPE_CHECKING:
    from monitoring.outcomes import I64, Comparison, SkewReport

NAME = "features-check"
_KINDS = {
    "user": "features of the user",
    "item": "features of the item",
    "pair": "features of user and item",
    "affinity": "features of user and category",
}


def figures(report: SkewReport) -> dict[str, float]:
    """Return the figures of a check by name."""
    from monitoring.outcomes import OUTCOMES, quantile

    def delays(prefix: str, ms: object) -> dict[str, float]:
        return {f"{prefix}late_p{q:g}_ms": quantile(ms, q / 100) for q in (50, 95, 100)}  # type: ignore[arg-type] # an array

    found = {"values": float(report.compared), "seconds": report.seconds}
    found |= dict(zip(OUTCOMES, map(float, report.total), strict=True)) | delays("", report.lateness())
    for one in report.comparisons:
        short = one.name
        found[f"{short}.values"] = float(one.total.sum())
        for name, counts in one.counts.items():
            found |= {f"{short}.{name}.{outcome}": float(n) for outcome, n in zip(OUTCOMES, counts, strict=True)}
        for view in one.late_ms:
            found |= delays(f"{short}.{view}.", one.lateness(view))
    return found


def write_report(settings: Settings, report: SkewReport) -> tuple[Path, Path]:
    """Write the figures and the page; return their paths."""
    from monitoring.skew_page import skew_page

    targets: dict[str, tuple[str, float]] = {"wrong": ("==", 0), "missing": ("==", 0), "values": (">", 0)}
    path, _ = write_results(settings, NAME, figures(report), targets)
    page = path.with_suffix(".html")
    page.write_text(skew_page(report), "utf-8")
    return path, page


def summary(report: SkewReport) -> str:
    """Return the outcome in one line."""
    from monitoring.outcomes import LATE, MISSING, WRONG, quantile

    total = report.total
    p95 = quantile(report.lateness(), 0.95)
    return (
        f"skew check: {report.compared:,} values compared, {total[WRONG]:,} wrong, "
        f"{total[LATE]:,} late (p95 {p95:.0f} ms), {total[MISSING]:,} missing"
    )


def print_report(report: SkewReport) -> None:
    """Print the tables: one line per view or kind of feature, and one per feature with something wrong or missing."""
    for one in report.comparisons:
        _print_comparison(one)
    print(f"\n{summary(report)}, {report.seconds:.1f} s")


def _print_comparison(one: Comparison) -> None:
    from monitoring.outcomes import MISSING, OUTCOMES, WRONG, quantile

    print(f"\n{one.title}")
    if not one.counts:
        print("  nothing could be compared")
    print(f"  {'':<34}{'values':>12}" + "".join(f"{name:>12}" for name in OUTCOMES))
    rows: dict[str, I64] = {}
    for name, counts in one.counts.items():
        kind = name.split("_")[1] if name.startswith("f_") else ""
        line = name if not kind or counts[WRONG] or counts[MISSING] else _KINDS.get(kind, "other features")
        rows[line] = rows.get(line, 0) + counts
    for name, counts in [*rows.items(), ("all", one.total)]:
        print(f"  {name:<34}{int(counts.sum()):>12,}" + "".join(f"{int(n):>12,}" for n in counts))
    for why, number in one.left_out.items():
        print(f"  not compared: {number:,} {why}")
    for view in one.late_ms:
        ms = one.lateness(view)
        delays = ", ".join(
            f"{label} {quantile(ms, q):,.0f}" for label, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
        )
        print(f"  {len(ms):,} late rows of {view}: {delays} ms")
    for example in one.examples:
        if example.outcome != "late":
            where = ", ".join(f"{key} {value}" for key, value in example.where.items())
            print(f"  {example.outcome.upper()} {example.name} ({where})")
            print(f"    {one.here} {example.here}, {one.there} {example.there}: {example.why}")
