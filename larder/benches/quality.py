"""Quality under the protocol: every model x data set x metric in one table, times as published.

The only place that opens the final cut of Online Retail for a figure; settings are tuned on the three rolling cuts
before it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from feature_repo.backfill import backfill
from feature_repo.event_log import read_report
from feature_repo.settings import Settings
from larder.benches.contrastive import gain_figures, paired
from larder.commands.train import print_result
from larder.services.stack import Stack
from larder.story.data import ensure_data
from larder.story.steps import PhaseProgress
from training.evaluate import TWO_STAGE
from training.line_up import with_contrastive
from training.train import TrainConfig, TrainResult, train

#: Data set to the cuts it is judged at: 0 is the final one, n is n test windows earlier.
CUTS: dict[str, tuple[int, ...]] = {"online_retail": (1, 2, 3, 0), "complete_journey": (0,), "movielens": (0,)}
#: Where the contrastive model, which is no default, is added and paired with the default.
CONTRASTIVE: tuple[tuple[str, int], ...] = (("online_retail", 0), ("complete_journey", 0))
_METRICS = ("ndcg@10", "recall@20", "map@10")


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Train and evaluate from the raw files; print the table, keep it, and log it to MLflow."""
    figures: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work:
        for name, cuts in CUTS.items():
            own = replace(settings, home=Path(work), project=name)
            data_hash = ensure_data(own, name)
            backfill(own)
            data = read_report(own)
            for back in cuts:
                print(f"\n{name}, {'final cut' if not back else f'{back} windows before the final cut'}")
                config = TrainConfig(target=data.target, repeats=data.repeats, cuts_back=back)
                result = _trained(own, config, data_hash)
                prefix = name if not back else f"{name}.cut_{back}"
                figures |= _figures(result, prefix)
                table += [{"data_set": name, "cut": back, **row} for row in result.evaluation.table()]
                if (name, back) in CONTRASTIVE:
                    more = _trained(own, replace(config, line_up=with_contrastive()), data_hash)
                    figures |= _beside(result, more, f"{prefix}.contrastive", settings.seed)
                    rows = [row for row in more.evaluation.table() if row["model"] in (TWO_STAGE, "contrastive")]
                    for row in rows:
                        with_it = {"model": f"{TWO_STAGE} with contrastive"} if row["model"] == TWO_STAGE else {}
                        table.append({"data_set": name, "cut": back, **row, **with_it})
    gains = [figures[f"online_retail.cut_{back}.gain_over_own_history"] for back in (1, 2, 3)]
    figures["online_retail.rolling_gain_over_own_history"] = sum(gains) / len(gains)
    _keep(settings, table, figures)
    targets: dict[str, tuple[str, float]] = {
        "online_retail.rolling_gain_over_own_history": (">=", 0.05),
        "online_retail.gain_over_own_history_low": (">", 0.0),
        "online_retail.gain_over_history_x_popularity_low": (">", 0.0),
        "online_retail.warm.two_stage.ndcg_at_10": (">=", 0.375),
        "online_retail.new_items.two_stage.ndcg_at_10": (">=", 0.11),
        "online_retail.cold.two_stage.ndcg_at_10": (">", 0.103),
        "online_retail.candidate_recall": (">=", 0.78),
        "online_retail.recall_300": (">=", 0.72),
        "online_retail.auc": (">", 0.85),
        "online_retail.seconds": ("<", 600.0),
        "complete_journey.gain_over_own_history_low": (">", 0.0),
    }
    return figures, targets


def _trained(settings: Settings, config: TrainConfig, data_hash: str) -> TrainResult:
    with PhaseProgress() as report:
        result = train(settings, config, data_hash, report)
    print_result(result)
    return result


def _beside(plain: TrainResult, more: TrainResult, prefix: str, seed: int) -> dict[str, float]:
    """Return what a further generator adds: its own figures, and the paired difference on the same users."""
    figures = {f"{prefix}.{name}": value for name, value in more.evaluation.flat().items()}
    for segment in ("warm", "new_items"):
        pairs = paired(more.evaluation, plain.evaluation, segment)
        figures |= gain_figures(f"{prefix}.{segment}", pairs, seed)
    return figures


def _figures(result: TrainResult, prefix: str) -> dict[str, float]:
    found = {f"{prefix}.{name}": value for name, value in result.evaluation.flat().items()}
    return found | {f"{prefix}.seconds": sum(result.seconds.values())}


def _keep(settings: Settings, table: list[dict[str, Any]], figures: dict[str, float]) -> None:
    """Write the table as Markdown and JSON, and log both with the figures to MLflow."""
    from training.tracking import log_evaluation

    directory = settings.home / "quality"
    directory.mkdir(parents=True, exist_ok=True)
    page, rows = directory / "quality.md", directory / "quality.json"
    page.write_text(markdown(table), "utf-8")
    rows.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(f"\n{page.read_text('utf-8')}\nkept in {page}")
    with Stack(settings, redis=False, mlflow=True) as stack:
        stack.wait()
        log_evaluation(stack.settings, "bench-quality", figures, {}, [page, rows])


def markdown(table: list[dict[str, Any]]) -> str:
    """Format rows of evaluations as one Markdown table: metrics with their 95 % intervals."""
    lines = [
        "| data set | cut | segment | users | model | " + " | ".join(_METRICS) + " |",
        "|---|---|---|---|---|" + "---|" * len(_METRICS),
    ]
    for row in table:
        cut = "final" if not row["cut"] else f"-{row['cut']}"
        values = [f"{row[m]:.4f} [{row[f'{m}_low']:.4f}, {row[f'{m}_high']:.4f}]" for m in _METRICS]
        names = [row["data_set"], cut, row["segment"], str(row["users"]), row["model"]]
        lines.append("| " + " | ".join([*names, *values]) + " |")
    return "\n".join(lines) + "\n"
