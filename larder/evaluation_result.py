"""What `larder evaluate` found, for people and for machines: tables on the terminal, JSON, an HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.settings import Settings
from larder.results import write_results

if TYPE_CHECKING:
    from training.grading import Figure, Grading


def figures(grading: Grading) -> dict[str, float]:
    """Return every figure by name, as MLflow takes them: `warm.als.ndcg_at_10`, with `_low` and `_high`."""
    found: dict[str, float] = {}
    for kind, segment in grading.segments.items():
        found[f"{kind}.users"] = float(segment.users)
        for model, values in segment.figures.items():
            found[f"{kind}.{model}.users_with_a_list"] = float(segment.answered[model])
            found |= _named(f"{kind}.{model}", values)
        for model, values in segment.gains.items():
            found |= _named(f"{kind}.{model}.gain_over_{grading.against}", values)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def write_files(settings: Settings, name: str, grading: Grading, made_of: Mapping[str, str]) -> tuple[Path, Path]:
    """Write figures and page; return their paths."""
    from training.grading_page import grading_page

    path, _ = write_results(settings, f"evaluate-{name}", figures(grading), {})
    page = path.with_suffix(".html")
    page.write_text(grading_page(grading, name, made_of), "utf-8")
    return path, page


def print_grading(grading: Grading, k: int) -> None:
    """Print each segment: a line per metric at `k`, a column per model, then the paired gains."""
    from training.grading_plots import TITLES

    for kind, segment in grading.segments.items():
        print(f"\n{TITLES[kind]} ({segment.users:,}), 95 % intervals")
        for line in _table(segment.figures, k, ""):
            print(line)
        for model, answered in segment.answered.items():
            if answered < segment.users:
                print(f"  {model}: {segment.users - answered:,} of them have no list and score 0")
        if segment.gains:
            print(f"  paired gain over {grading.against}")
            for line in _table(segment.gains, k, "+"):
                print(line)
    print()
    for model, strangers in grading.strangers.items():
        if strangers:
            print(f"{model}: {strangers:,} users with a list take nothing in the window and are not graded")


def _table(models: Mapping[str, Mapping[str, Figure]], k: int, sign: str) -> Iterator[str]:
    from training.grading_page import NAMES

    yield " " * 20 + "".join(f"{model:>27}" for model in models)
    for metric, title in NAMES.items():
        cells = [values.get(f"{metric}@{k}") for values in models.values()]
        if any(cells):
            yield f"  {f'{title} @{k}':<18}" + "".join(f"{_cell(one, sign):>27}" for one in cells)


def _cell(one: Figure | None, sign: str) -> str:
    if one is None:
        return "-"
    spread = f" [{one.low:{sign}.3f}, {one.high:{sign}.3f}]" if math.isfinite(one.low) else ""  # none for one user
    return f"{one.value:{sign}.4f}{spread}"


def _named(prefix: str, values: Mapping[str, Figure]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric, one in values.items():
        key = f"{prefix}.{metric.replace('@', '_at_')}"
        found |= {key: one.value, f"{key}_low": one.low, f"{key}_high": one.high}
    return found
