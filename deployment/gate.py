"""The gate: takes a registered version, measures it, and writes one verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from deployment.checks import Live, check_latency, check_outputs, check_quality
from deployment.registry import Registry, Version
from deployment.verdict import Check, Verdict, compare
from feature_repo.asof import AsOfReader
from feature_repo.datasets import read_events
from feature_repo.errors import BadInputError, LarderError
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from serving.bundle import Bundle, load_bundle
from serving.cascade.items import build_item_table, catalog_entry
from training.evaluate_bundle import evaluate_bundle, held_out_window
from training.split import Log

Progress = Callable[[str, int, int], None]
#: How many of the held-out users are asked for online.
LIVE_USERS = 300


def gate(settings: Settings, registry: Registry, version: Version, progress: Progress | None = None) -> Verdict:
    """Judge a version and keep the verdict in MLflow.

    A bundle that cannot be verified or loaded fails on integrity alone: nothing of it is run.
    """
    gated_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        bundle = load_bundle(registry.fetch_bundle(version))
    except BadInputError as error:
        checks = [compare("integrity", 1, "==", 0, "errors", str(error))]
    else:
        checks = [
            compare(
                "integrity", 0, "==", 0, "errors", "Hashes, formats and feature service fit; golden rows reproduce."
            )
        ]
        checks += _measure(settings, bundle, progress or (lambda what, done, total: None))
    verdict = Verdict(settings.model_name, version.version, version.bundle_id, gated_at, tuple(checks))
    registry.write_verdict(version, verdict)
    return verdict


def _measure(settings: Settings, bundle: Bundle, report: Progress) -> list[Check]:
    """Quality on the held-out window, then latency and outputs on the live online store."""
    log = Log.of(read_events(settings, columns=["user_id", "item_id", "event_type", "event_timestamp", "received_at"]))
    window = held_out_window(bundle)
    reader = AsOfReader(settings, window.start_us)
    evaluation = evaluate_bundle(bundle, reader, log, settings.seed, report)
    checks = check_quality(evaluation)
    live = _live(settings, tuple(log.targets(window, bundle.manifest["target"]))[:LIVE_USERS])
    now_us = time.time_ns() // 1000
    report("latency and outputs", 0, 1)
    checks += [check_latency(bundle, live, now_us), *check_outputs(bundle, live, now_us)]
    report("latency and outputs", 1, 1)
    return checks


def _live(settings: Settings, users: tuple[str, ...]) -> Live:
    """Read the online store the way serving does."""
    # The gate may wait longer than a request: it measures time itself.
    reader = OnlineReader(connect(settings, timeout_ms=5000), settings.project)
    changes = reader.changes(0)
    if not changes.item_ids:
        raise LarderError("the online store holds no items; run `larder features materialize` first")
    stats, catalog = reader.read_items(changes.item_ids)
    entries = [catalog_entry(item_id, item) for item_id, item in zip(changes.item_ids, catalog, strict=True)]
    return Live(reader, build_item_table(entries, stats, time.time_ns() // 1000), users)
