"""Registered versions with a verdict, without a training: tiny bundles in a real MLflow, judged as the gate does."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from deployment.promotion import ControlPlane
from deployment.store.records import NewEntry
from deployment.verdict import Verdict, compare
from feature_repo.settings import Settings
from tests.tiny_bundle import SERVICE, make_bundle, make_shop
from training.tracking import client, register_bundle


def registered(settings: Settings, count: int) -> list[str]:
    """Register `count` different bundles, which are in the content store too; return their ids, version 1 first."""
    mlflow = client(settings)
    shop = make_shop(time.time_ns() // 1000)
    bundles = [make_bundle(settings.bundles_dir, shop, seed=seed, trees=3) for seed in range(3, 3 + count)]
    experiment = mlflow.create_experiment(settings.project)
    for bundle_id in bundles:
        run = mlflow.create_run(experiment)
        mlflow.log_artifacts(run.info.run_id, str(settings.bundles_dir / bundle_id), "bundle")
        mlflow.log_param(run.info.run_id, "bundle", bundle_id)
        register_bundle(mlflow, settings, run.info.run_id, bundle_id, SERVICE)
        mlflow.set_terminated(run.info.run_id)
    return bundles


def judge(plane: ControlPlane, settings: Settings, version: str, bundle_id: str, *, passed: bool = True) -> None:
    """Write a verdict as the gate would, and nothing measured."""
    check = compare("ndcg_over_popularity", 0.05 if passed else -0.05, ">", 0.0, "nDCG@10", "As the test wants it.")
    verdict = Verdict(settings.model_name, version, bundle_id, datetime.now(UTC).isoformat(), (check,))
    document = verdict.to_dict()
    del document["champion_version"]  # as in the ledgers of before: it counts whoever is the champion
    plane.store.append(
        NewEntry("gate", "verdict", "judged", bundle_id, version, {"verdict": document}), datetime.now(UTC)
    )
