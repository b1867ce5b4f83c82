"""`larder models`: list versions, gate and promote one, roll back, show the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import LarderError
from larder.gating import gate, print_checks, register
from larder.session import settings_of

if TYPE_CHECKING:
    from deployment.promotion import Promotion
    from deployment.store.records import LedgerEntry
    from feature_repo.settings import Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Versions, verdicts and the champion.")

app.command()(register)
app.command()(gate)

Why = Annotated[str, typer.Option(help="Reason, kept in the ledger.")]
Epoch = Annotated[
    int | None, typer.Option(help="Do it only if the plan is still of this epoch (the one in `larder models history`).")
]


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
    again: Annotated[bool, typer.Option(help="Judge it anew, though the ledger has a verdict.")] = False,
    expected_epoch: Epoch = None,
) -> None:
    """Make a version the champion if, and only if, its verdict is a pass; one that was not judged yet is judged first.

    Examples
    --------
      larder models promote
      larder models promote 3 --why "better on new users"
      larder models promote 3 --again
    """
    from deployment.promotion import ControlPlane
    from larder.story.steps import PhaseProgress

    settings = settings_of(ctx)
    with PhaseProgress() as report:
        plane = ControlPlane(settings)
        promotion = plane.promote(version, why=why, expected_epoch=expected_epoch, again=again, progress=report)
    print_verdict(settings, promotion)
    if promotion.plan is None:
        raise LarderError(f"version {promotion.version.version} was not promoted: the verdict is not a pass")


@app.command()
def rollback(ctx: typer.Context, why: Why = "rolled back by hand", expected_epoch: Epoch = None) -> None:
    """Return to the champion before the current one; also with MLflow away. A rollout that runs ends with it.

    Examples
    --------
      larder models rollback --why "complaints about empty lists"
    """
    from deployment.promotion import ControlPlane

    plan, failed = ControlPlane(settings_of(ctx)).rollback(why=why, expected_epoch=expected_epoch)
    print(f"version {plan.stable.model_version} is the champion again (epoch {plan.epoch})")
    _print_failed(failed)


@app.command()
def publish(ctx: typer.Context) -> None:
    """Publish the committed plan once more: to disk, to Redis, and as the aliases in MLflow.

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
def diff(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(help="Version number.")],
    second: Annotated[str, typer.Argument(help="Version number.")],
    everything: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
) -> None:
    """Show two versions side by side: parameters, metrics, features, generators, files, verdict.

    Examples
    --------
      larder models diff 3 4
      larder models diff 3 4 --all
    """
    from deployment.version_diff import compare_versions

    for section in compare_versions(settings_of(ctx), first, second):
        rows = section.rows if everything else section.different
        same = len(section.rows) - len(section.different)
        print(f"{section.name}: {len(section.different)} differ, {same} are the same")
        if rows:
            width = max(len(row.name) for row in rows)
            left = max(len(row.first) for row in rows)
            print("\n".join(f"  {row.name:<{width}}  {row.first:<{left}}  {row.second}" for row in rows))


@app.command()
def history(ctx: typer.Context) -> None:
    """Show every move of the champion: when, who, what, why.

    Examples
    --------
      larder models history
    """
    from deployment.store.control_store import ControlStore
    from serving.signature import signing_key

    settings = settings_of(ctx)
    moves = [entry for entry in ControlStore(settings, signing_key(settings)).ledger() if entry.moved]
    if not moves:
        print("no move yet")
    for move in moves:
        print(f"{move.epoch:>4}  {move.at[:19]}  {move.action:<13} {_change(move):<22} {move.who}: {move.why}")


def _change(move: LedgerEntry) -> str:
    """Say what a move did to the champion, and which candidate gets how much."""
    plan = move.body["plan"]
    champion = plan["stable"]["model_version"]
    text = champion if champion == move.previous_version else f"{move.previous_version or '-'} -> {champion}"
    if plan.get("canary"):
        return f"{text}, canary {plan['canary']['model_version']} {plan['weight'] / 100:g} %"
    return f"{text}, shadow {plan['shadow']['model_version']}" if plan.get("shadow") else text


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
