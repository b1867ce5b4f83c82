"""`larder load-test`: simulated load on a project's API, and whether the objectives were met."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from larder.session import settings_of

if TYPE_CHECKING:
    from feature_repo.settings import Settings

app = typer.Typer(rich_markup_mode=None)

#: People asked for at most; the most active ones would be served from what is warm.
_USERS = 20_000


@app.command()
def load_test(
    ctx: typer.Context,
    scenario: Annotated[
        str, typer.Argument(help="steady, spike, soak, cold, storm (popular items), events or rollout.")
    ] = "steady",
    rate: Annotated[float, typer.Option(min=1, help="Visits a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=5, help="How long.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Directory of summary and report.")] = None,
    host: Annotated[
        str | None, typer.Option(help="An API that runs elsewhere; else the project's, started if need be.")
    ] = None,
) -> None:
    """Load the API by Locust, for the project's own users, and hold it to rate, errors, p95, p99 and degraded share.

    Writes test_summary.json, Locust's HTML report and a file of results. Exits with 1 where an objective was missed.
    `rollout` is `steady`, and refuses to run where no rollout does.

    Examples
    --------
      larder load-test
      larder -p simulator load-test spike --rate 60 --seconds 90
      larder -p simulator load-test soak --rate 20 --seconds 1200
    """
    from feature_repo.datasets import read_events
    from feature_repo.errors import BadInputError, ConflictError
    from larder.results import write_results
    from larder.services.stack import Stack
    from larder.story.serve import serve
    from load_tests import slo

    settings = settings_of(ctx)
    if scenario not in slo.SCENARIOS:
        raise BadInputError(f"no scenario {scenario!r}; there are: {', '.join(slo.SCENARIOS)}")
    out = out or settings.root / "load" / scenario
    out.mkdir(parents=True, exist_ok=True)
    users = sorted(set(read_events(settings, columns=["user_id"])["user_id"].to_pylist()))[:_USERS]
    (out / "users.txt").write_text("\n".join(users) + "\n", "utf-8")
    os.environ[slo.USERS_FILE] = str(out / "users.txt")
    demanded = slo.Objectives()
    if host is not None:
        summary = slo.run(scenario, host, rate, seconds, out, demanded)
    else:
        with Stack(settings, mlflow=False) as stack:
            base_url = serve(stack)
            if scenario == "rollout" and not _rolling_out(stack.settings):
                raise ConflictError("no rollout is running; `larder rollout start` starts one")
            summary = slo.run(scenario, base_url, rate, seconds, out, demanded)
    targets = {name: (">=" if name == "rate_share" else "<=", limit) for name, limit in summary["objectives"].items()}
    path, missed = write_results(settings, f"load_{scenario}", summary["figures"], targets)
    slo.print_summary(summary, out)
    print(f"figures: {path}")
    sys.exit(1 if missed else 0)


def _rolling_out(settings: Settings) -> bool:
    from deployment.store.control_store import ControlStore
    from serving.signature import signing_key

    plan = ControlStore(settings, signing_key(settings)).plan()
    return plan is not None and bool(plan.release)
