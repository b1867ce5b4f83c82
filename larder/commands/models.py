"""`larder models`: list versions, gate and promote one, roll back, show the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import LarderError
from larder.gating import gate, print_checks, register
from larder.session import settings_of

if TYPE_CHECKING:
    from deployment.promotion import Promotion
    from feature_repo.settings import Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Versions, verdicts and the champion.")

app.command()(register)
app.command()(gate)

Why = Annotated[str, typer.Option(help="Reason, kept in the ledger.")]


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List the registered versions, newest first, with verdict and alias.

    Examples
    --------
      larder models list
      larder -p online_retail models list
    """
    from deployment.registry import Registry

    settings = settings_of(ctx)
    versions = Registry(settings).versions()
    if not versions:
        print(f"{settings.model_name} has no version yet; `larder train` registers one")
    for one in versions:
        alias = ", ".join(one.aliases)
        print(f"{one.version:>4}  bundle {one.bundle_id[:12]}  verdict {one.verdict or '-':<12} {alias}")


@app.command()
def promote(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="Version number; the newest if left out.")] = None,
    why: Why = "promoted by hand",
) -> None:
    """Gate a version and make it the champion if, and only if, the verdict is a pass.

    Examples
    --------
      larder models promote
      larder models promote 3 --why "better on new users"
    """
    from deployment.promotion import ControlPlane
    from larder.story.steps import PhaseProgress

    settings = settings_of(ctx)
    with PhaseProgress() as report:
        promotion = ControlPlane(settings).promote(version, why=why, progress=report)
    print_verdict(settings, promotion)
    if promotion.plan is None:
        raise LarderError(f"version {promotion.version.version} was not promoted: the verdict is not a pass")


@app.command()
def rollback(ctx: typer.Context, why: Why = "rolled back by hand") -> None:
    """Return to the champion before the current one.

    Examples
    --------
      larder models rollback --why "complaints about empty lists"
    """
    from deployment.promotion import ControlPlane

    plan, failed = ControlPlane(settings_of(ctx)).rollback(why=why)
    print(f"version {plan.stable.model_version} is the champion again (epoch {plan.epoch})")
    _print_failed(failed)


@app.command()
def publish(ctx: typer.Context) -> None:
    """Publish the committed plan once more: to disk, to Redis, and as the alias in MLflow.

    Examples
    --------
      larder models publish
    """
    from deployment.promotion import ControlPlane

    failed = ControlPlane(settings_of(ctx)).publish()
    _print_failed(failed)
    if not failed:
        print("published")


@app.command()
def history(ctx: typer.Context) -> None:
    """Show every move of the champion: when, who, what, why.

    Examples
    --------
      larder models history
    """
    from deployment.control_store import ControlStore
    from serving.signature import signing_key

    settings = settings_of(ctx)
    moves = ControlStore(settings.platform_uri, signing_key(settings)).history()
    if not moves:
        print("no move yet")
    for move in moves:
        change = f"{move.previous_version or '-'} -> {move.model_version}"
        print(f"{move.epoch:>4}  {move.at[:19]}  {move.action:<8} {change:<10} {move.who}: {move.why}")


def print_verdict(settings: Settings, promotion: Promotion) -> None:
    """Print a verdict, check by check, and what came of it."""
    verdict = promotion.verdict
    print_checks(settings, verdict)
    if promotion.plan is not None:
        print(f"version {verdict.version} is the champion (epoch {promotion.plan.epoch})")
    _print_failed(promotion.unpublished)


def _print_failed(failed: list[str]) -> None:
    for what in failed:
        print(f"not published to {what}; `larder models publish` tries again")
