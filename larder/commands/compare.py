"""`larder compare`: models of several kinds side by side, on the very same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from training.compare_classifiers import Comparison

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Kinds of models, side by side on the same rows.")

RESULTS = "compare-classifiers"
_PRINTED = ("Model", "AP [95 %]", "ROC-AUC [95 %]", "Prec.", "Recall", "F1", "Spec.", "Accur.")


@app.callback()
def group() -> None:
    """Keep `classifiers` a sub-command: typer runs an only command without its name."""


@app.command()
def classifiers(
    ctx: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help="simulator or online_retail: imported first if the project has no data yet.")
    ] = None,
    horizon_days: Annotated[
        float | None,
        typer.Option(min=0.1, help="Days after the cut in which a purchase counts; default: as the last 10 % took."),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, max=20, help="Rolling cuts to learn from, at most.")] = 5,
    log: Annotated[bool, typer.Option(help="Log table, figures and plots to MLflow.")] = True,
) -> None:
    """Compare seven classifiers of who buys what, and pick the one that may serve the purchase score.

    All see the same rows of `purchase_v1`. Thresholds, calibration and the winner are chosen on the last window before
    the test; docs/purchase.md says what the figures mean. Needs MLflow to log; it is started for the time of the
    command if it is not running.

    Examples
    --------
      larder compare classifiers --dataset online_retail
      larder -p simulator compare classifiers --horizon-days 7
      larder compare classifiers --dataset simulator --no-log
    """
    from feature_repo.backfill import backfill
    from larder.progress import progress
    from larder.results import write_results
    from larder.services.stack import Stack
    from larder.story.data import ensure_data
    from larder.story.steps import PhaseProgress
    from training.compare_classifiers import CompareConfig, compare_classifiers
    from training.comparison_plots import save_comparison_plots, write_page
    from training.save_purchase import save_purchase

    settings = settings_of(ctx, dataset)
    data_hash = ensure_data(settings, dataset or settings.project)
    with progress("backfill"):
        backfill(settings)
    with Stack(settings, redis=False, mlflow=log) as stack:
        with PhaseProgress() as report:
            config = CompareConfig(horizon_days=horizon_days, windows=windows)
            comparison = compare_classifiers(stack.settings, config, report)
        lines, table = story(comparison), table_of(comparison)
        print_comparison(lines, table)
        figures = {
            f"{one.classifier.name}.{name}": value for one in comparison.results for name, value in one.figures.items()
        }
        pairs = comparison.test.pairs
        figures |= {"test.pairs": pairs.population, "test.bought": pairs.bought, "test.outside": pairs.outside}
        path, _ = write_results(settings, RESULTS, figures, {})
        directory = path.with_suffix("")
        plots = save_comparison_plots(directory, comparison)
        page = directory / "index.html"
        write_page(page, f"Purchase classifiers on {settings.project}", table, lines, plots)
        print(f"written to {path} and {page}")
        saved = save_purchase(settings, comparison, data_hash)
        print(f"{comparison.winner.classifier.name} is kept in {saved}: `larder train --purchase-score` takes it along")
        if log:
            from training.comparison_tracking import log_comparison

            stack.wait()
            print(f"logged: {log_comparison(stack.settings, comparison, table, data_hash, [page, *plots])}")


def story(comparison: Comparison) -> list[str]:
    """Say what was compared, on which rows, and who won."""
    from datetime import UTC, datetime

    from feature_repo.views import DAY_US

    def day(time_us: int) -> str:
        return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d}"

    test, pairs = comparison.test.window, comparison.test.pairs
    return [
        f"Question: does the user buy the item within {(test.end_us - test.start_us) / DAY_US:.1f} days of the cut? "
        "Features as of the cut.",
        f"Learned from {len(comparison.train):,} rows of {len(comparison.split.rolling) - 1} cut(s) from "
        f"{day(comparison.split.rolling[0].start_us)}; chosen and calibrated at "
        f"{day(comparison.selection.window.start_us)} ({len(comparison.selection.rows):,} rows); judged at "
        f"{day(test.start_us)} ({len(comparison.test.rows):,} rows).",
        f"The test rows stand for {pairs.population:,} pairs, of which {pairs.bought:,} "
        f"({pairs.bought / pairs.population:.4%}: the average precision of chance) end in a purchase; "
        f"{pairs.outside:,} purchased pairs lie outside (users or items not known at the cut).",
        f"Winner: {comparison.winner.classifier.name}. {comparison.why}.",
    ]


def table_of(comparison: Comparison) -> list[dict[str, object]]:
    """One row per classifier, best average precision on the test window first."""
    from training.compare_classifiers import by_average_precision

    rows: list[dict[str, object]] = []
    for one in by_average_precision(comparison):
        f = one.figures
        rows.append(
            {
                "Model": one.classifier.name + ("" if one.classifier.suffix else " (no safe format)"),
                "AP [95 %]": _interval(f, "average_precision"),
                "ROC-AUC [95 %]": _interval(f, "roc_auc"),
                "Prec.": f"{f['precision']:.3f}",
                "Recall": f"{f['recall']:.3f}",
                "F1": f"{f['f1']:.3f}",
                "Spec.": f"{f['specificity']:.5f}",
                "Accur.": f"{f['accuracy']:.5f}",
                "at p >=": f"{f['threshold']:.3f}",
                **{name.upper(): f"{f[name]:,.0f}" for name in ("tp", "fp", "tn", "fn")},
                "AP selection": f"{f['selection_average_precision']:.4f}",
                "CPU s": f"{f['training_seconds']:.1f}",
                "µs/row": f"{f['inference_ms_per_row'] * 1000:.1f}",
            }
        )
    return rows


def _interval(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.4f} [{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"


def print_comparison(about: list[str], table: list[dict[str, object]]) -> None:
    """Print the story and the table, in two parts: it is too wide for a terminal."""
    print("\n" + "\n".join(about))
    rest = ("Model", *(name for name in table[0] if name not in _PRINTED))
    for columns in (_PRINTED, rest):
        lines = [columns, *(tuple(str(row[name]) for name in columns) for row in table)]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        print()
        for first, *cells in lines:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            print(f"{first:<{widths[0]}}  " + "  ".join(padded))
    print()
