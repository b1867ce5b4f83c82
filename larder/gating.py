"""`larder models gate` and `larder models register`: a data scientist's way to a verdict."""

from __future__ import annotations

import getpass
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.errors import BadInputError, LarderError
from larder.session import settings_of

if TYPE_CHECKING:
    from deployment.gate_worker import GateWorker, Looked
    from deployment.verdict import Verdict
    from feature_repo.settings import Settings


def register(
    ctx: typer.Context,
    run: Annotated[str, typer.Option(help="Id of the MLflow run that holds the model file.")],
    path: Annotated[
        str | None, typer.Option(help="The file within the run's artefacts; needed where several could be meant.")
    ] = None,
    service: Annotated[str, typer.Option(help="Feature service the model was trained on.")] = "ranking_v1",
) -> None:
    """Register a CatBoost, LightGBM or XGBoost file of a run as a new version for the gate to judge.

    Examples
    --------
      larder models register --run 5f2c... --path ranker.cbm
      larder -p online_retail models register --run 5f2c... --service ranking_v1
    """
    from deployment.register_model import register_model
    from deployment.registry import Registry

    settings = settings_of(ctx)
    number = register_model(settings, Registry(settings), run, service, path)
    print(f"version {number} of {settings.model_name} is registered; `larder models gate {number}` judges it")


def gate(
    ctx: typer.Context,
    version: Annotated[str | None, typer.Argument(help="Version number; all never judged ones if left out.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Judge the version once more.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking for new versions until Ctrl-C.")] = False,
) -> None:
    """Judge registered versions; nothing is promoted.

    The verdict is printed, kept as a signed document and a page, and written to MLflow: tags of the version, JSON and
    HTML with its run.

    Examples
    --------
      larder models gate
      larder models gate 3 --again
      larder models gate --watch
    """
    from deployment.gate_worker import GateWorker

    if again and version is None:
        raise BadInputError("--again needs a version: which one is judged again?")
    if watch and version is not None:
        raise BadInputError("--watch looks for new versions; leave the version out")
    settings = settings_of(ctx)
    with closing(GateWorker(settings)) as worker:
        if watch:
            _watch(settings, worker)
        else:
            _judge(settings, worker, version, again)


def _judge(settings: Settings, worker: GateWorker, version: str | None, again: bool) -> None:
    from larder.story.steps import PhaseProgress

    if version is None:
        with PhaseProgress() as report:
            looked = worker.run_once(report)
        _show(settings, looked)
        if looked.problem:
            raise LarderError(looked.problem)
        if not looked.verdicts and not looked.waiting:
            print("no version waits for a verdict")
        return
    found = worker.version(version)
    if found.verdict and not again:
        print(f"version {version} was judged already: {found.reason or found.verdict} (--again judges it once more)")
        return
    with PhaseProgress() as report:
        verdict = worker.judge(found, report)
    _enter(settings, verdict)
    print_checks(settings, verdict)


def _watch(settings: Settings, worker: GateWorker) -> None:
    said = ""

    def on_look(looked: Looked) -> None:
        nonlocal said
        for verdict in looked.verdicts:
            _enter(settings, verdict)
            print_checks(settings, verdict)
        told = "; ".join(f"version {number} waits: {why}" for number, why in looked.waiting) or looked.problem
        if told != said and told:
            print(told, flush=True)
        said = told

    print(f"looking for new versions of {settings.model_name}; Ctrl-C ends it", flush=True)
    try:
        worker.watch(threading.Event(), on_look)
    except KeyboardInterrupt:
        print("ended")


def _enter(settings: Settings, verdict: Verdict) -> None:
    """Write a verdict into the ledger, where promotion looks for it."""
    from deployment.store.control_store import ControlStore
    from deployment.verdict_entries import record_verdict
    from serving.signature import signing_key

    store = ControlStore(settings, signing_key(settings))
    record_verdict(store, verdict, getpass.getuser(), datetime.now(UTC))


def _show(settings: Settings, looked: Looked) -> None:
    for verdict in looked.verdicts:
        _enter(settings, verdict)
        print_checks(settings, verdict)
    for number, why in looked.waiting:
        print(f"version {number} waits: {why}")


def print_checks(settings: Settings, verdict: Verdict) -> None:
    """Print a verdict, check by check, what to do about red ones, and where its page lies."""
    from deployment.verdict_files import verdict_path

    word = {"passed": "PASS", "failed": "NO PASS", "inconclusive": "NO PASS (inconclusive)"}[verdict.word]
    bundle = f"bundle {verdict.bundle_id[:12]}" if verdict.bundle_id else "no bundle"
    print(f"verdict for {verdict.model} version {verdict.version} ({bundle}): {word}")
    for line in verdict.lines():
        print(line)
    for check in verdict.checks:
        if check.result != "pass":
            print(f"  {check.name}: {check.explanation}")
    print(f"page: {verdict_path(settings, verdict.version).with_suffix('.html')}", flush=True)
