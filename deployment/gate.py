"""The gate: takes a registered version, makes sure it is safe to load, measures it, and writes one verdict."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deployment.blame import NotHereError, of_surroundings, told
from deployment.checks.contract import GateContext, Progress
from deployment.checks.line_up import FIRST, THEN
from deployment.compose_bundle import NonFiniteError, compose_bundle
from deployment.off_policy.candidate import off_policy
from deployment.parser import Parsed, Parser
from deployment.plain_ranker import fetched
from deployment.registry import Registry, Version
from deployment.thresholds import Thresholds, load_thresholds
from deployment.verdict import Check, OffPolicy, Verdict, compare
from deployment.verdict_files import keep_verdict
from feature_repo.errors import BadInputError, LarderError, NotFoundError, UnavailableError
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from serving.bundle import Bundle, FeatureListError, load_bundle, read_manifest
from serving.plan import Plan, load_plan
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Champion:
    """What serves now: nothing (empty version), a bundle, or one that cannot be loaded (and why)."""

    version: str = ""
    bundle: Bundle | None = None
    directory: Path = Path()
    problem: str = ""


def gate(
    settings: Settings,
    registry: Registry,
    version: Version,
    progress: Progress | None = None,
    *,
    plan: Plan | None = None,
    parser: Parser | None = None,
) -> Verdict:
    """Judge a version and keep the verdict: signed on this machine, then in MLflow.

    A bundle is verified by its hashes; of a plain ranker the one safe file is taken and composed with the champion's
    generators. Either is parsed by a limited child process before this one touches it. What fails there fails alone:
    nothing of it is run. What goes wrong with the version itself ends in a verdict, whatever kind of error it is.

    Parameters
    ----------
    plan
        The plan in force; the published copy on disk if None.
    parser
        A child process to parse with, for a caller that judges many versions; one of its own if None.

    Raises
    ------
    UnavailableError
        If MLflow, Redis, the disk or the project's data fail (deployment/blame.py); nothing is judged then.
    NotHereError
        For a plain ranker where nothing serves yet, whose generators it could be composed with.
    """
    try:
        return _gate(settings, registry, version, progress or (lambda what, done, total: None), plan, parser)
    except LarderError:
        raise
    except Exception as error:
        _LOG.exception("version %s could not be judged", version.version)
        raise UnavailableError(f"version {version.version} could not be judged: {told(error)}") from error


def _gate(
    settings: Settings, registry: Registry, version: Version, report: Progress, plan: Plan | None, parser: Parser | None
) -> Verdict:
    key, thresholds = signing_key(settings), load_thresholds(settings)
    gated_at = datetime.now(UTC).isoformat(timespec="seconds")
    champion = _champion(settings, plan or load_plan(settings.plan_path, key))
    bundle_id, service = version.bundle_id, version.service
    said: OffPolicy | None = None
    with ExitStack() as opened:
        limits = {"seconds": thresholds.parse_seconds, "memory_mb": thresholds.parse_memory_mb}
        parser = parser or opened.enter_context(Parser(**limits))
        try:
            report("parse in a child process", 0, 1)
            if _to_compose(version, champion):
                bundle_id, service = "", registry.service_of(version)
                directory = _compose(settings, registry, version, champion, service, thresholds, parser, report)
                bundle_id = directory.name
            else:
                directory = registry.fetch_bundle(version)
            manifest = read_manifest(directory)
            service = str(manifest["feature_service"])
            parsed = parser.bundle(directory, _kinds(manifest))
            report("parse in a child process", 1, 1)
            bundle = load_bundle(directory)
        except Exception as error:
            if of_surroundings(error):
                raise
            checks = [_refused(error, version)]
        else:
            checks = [
                compare(
                    "security",
                    0,
                    "==",
                    0,
                    "errors",
                    "Allowed formats only, sizes and sha256 as registered; a limited child process parsed every file "
                    "and reproduced the golden rows.",
                )
            ]
            context = _context(settings, thresholds, bundle, directory, parsed, champion, report)
            checks += _run(context)
            said = _ask_the_log(context)
    verdict = Verdict(
        settings.model_name,
        version.version,
        bundle_id,
        gated_at,
        tuple(checks),
        thresholds.hash,
        service,
        _hash_of(service),
        champion.version,
        version.run_id,
        said,
    )
    sealed, page = keep_verdict(settings, verdict, key)
    registry.write_verdict(version, verdict, sealed, page)
    return verdict


def _refused(error: Exception, version: Version) -> Check:
    """Make the check of a version that could not be made a bundle, or not loaded."""
    if isinstance(error, FeatureListError):
        name = "feature_list"
    elif isinstance(error, NonFiniteError):
        name = "non_finite_outputs"
    elif isinstance(error, LarderError):
        name = "security"
    else:
        return _unforeseen(error, "composing" if version.plain else "loading")
    return compare(name, 1, "==", 0, "errors", told(error))


def _unforeseen(error: Exception, where: str) -> Check:
    """Make the failing check of an error nobody thought of; its name says where it happened."""
    _LOG.error("the gate did not foresee this", exc_info=error)
    name = f"error_in_{where.lower().replace(' ', '_')}"
    text = (
        f"{told(error)}. The gate did not foresee that and asked nothing further. It is held against the version: what "
        "MLflow, Redis, the disk or the project's data do wrong is told apart and tried again. The gate's log has the "
        "traceback; `larder models gate VERSION --again` judges once more."
    )
    return compare(name, 1, "==", 0, "errors", text)


def _run(context: GateContext) -> list[Check]:
    """Run the checks; where one of the first fails, or any ends with an error, no other."""
    checks: list[Check] = []
    for number, one in enumerate((*FIRST, *THEN)):
        if number == len(FIRST) and any(check.result == "fail" for check in checks):
            return checks
        try:
            found = one.run(context)
        except Exception as error:
            if of_surroundings(error) or isinstance(error, NotFoundError):
                raise
            if isinstance(error, BadInputError):  # there is nothing to judge by, say an empty window
                name = f"error_in_{one.name.lower().replace(' ', '_')}"
                return [*checks, Check(name, "inconclusive", 1.0, "==", 0.0, "errors", told(error))]
            return [*checks, _unforeseen(error, one.name)]
        if found and number >= len(FIRST):
            context.report("checks", number - len(FIRST) + 1, len(THEN))
        checks += found
    context.report("checks", len(THEN), len(THEN))
    return checks


def _ask_the_log(context: GateContext) -> OffPolicy:
    """Ask the champion's log about the candidate; whatever fails there stops no verdict."""
    try:
        return off_policy(context.settings, context.bundle, context.champion, context.now_us, context.report)
    except Exception as error:
        _LOG.exception("the champion's log could not be asked")
        return OffPolicy(f"The champion's log could not be asked: {type(error).__name__}: {error}")


def _context(
    settings: Settings,
    thresholds: Thresholds,
    bundle: Bundle,
    directory: Path,
    parsed: Parsed,
    champion: _Champion,
    report: Progress,
) -> GateContext:
    return GateContext(
        settings,
        thresholds,
        bundle,
        directory,
        parsed,
        champion.bundle,
        champion.version,
        champion.problem,
        time.time_ns() // 1000,
        report,
    )


def _champion(settings: Settings, plan: Plan | None) -> _Champion:
    """Load what serves now."""
    if plan is None:
        return _Champion()
    directory = settings.bundles_dir / plan.stable.bundle_id
    try:
        return _Champion(plan.stable.model_version, load_bundle(directory), directory)
    except LarderError as error:
        if of_surroundings(error):
            raise
        return _Champion(plan.stable.model_version, None, directory, f"its bundle cannot be loaded ({error})")


def _to_compose(version: Version, champion: _Champion) -> bool:
    """Say whether a bundle must be made first. A plain ranker that serves already is not composed with itself."""
    return version.plain and not (version.bundle_id and version.version == champion.version)


def _compose(
    settings: Settings,
    registry: Registry,
    version: Version,
    champion: _Champion,
    service: str,
    thresholds: Thresholds,
    parser: Parser,
    report: Progress,
) -> Path:
    """Take a ranker's file and make a bundle of it."""
    if champion.bundle is None:
        raise NotHereError(
            f"version {version.version} is a ranker, and there is no champion whose generators it could be composed "
            f"with{': ' + champion.problem if champion.problem else ''}; `larder train` and `larder models promote` "
            "make one"
        )
    try:
        feature_list(service)
    except NotFoundError as error:
        raise FeatureListError(str(error)) from None
    with fetched(registry, version, thresholds, parser) as ranker:
        return compose_bundle(settings, champion.bundle, champion.directory, ranker, service, report).directory


def _kinds(manifest: dict[str, dict[str, str]]) -> tuple[str, ...]:
    purchase = manifest.get("purchase")
    return (manifest["ranker"]["kind"], *([purchase["kind"]] if purchase else []))


def _hash_of(service: str) -> str:
    try:
        return service_hash(service)
    except NotFoundError:
        return ""
