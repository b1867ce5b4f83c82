"""Metrics for Prometheus: documented one by one, few whatever the traffic, and shown by every process that runs."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import httpx
import msgspec
import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from deployment.control_metrics import ControlMetrics
from deployment.rollout.profile import GUARDRAILS
from deployment.verdict import Verdict, Word
from feature_repo.errors import UnavailableError
from feature_repo.ingest import IngestStatus
from feature_repo.ingest_metrics import IngestMetrics
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from larder.exposition import announced, exposed, targets_dir
from larder.services.ports import HOST, any_free_port
from monitoring.live_quality.gauges import QualityMetrics
from monitoring.live_quality.report import QualityReport
from monitoring.monitor_metrics import MonitorMetrics
from serving.admission import Admission, Door
from serving.answers import LEVELS, REASONS, Recommendations
from serving.app import create_app
from serving.assignment import ARMS
from serving.cascade.recommender import RankedItem
from serving.drain import Drain
from serving.hot_path import HotPath
from serving.http import MeasuredApp
from serving.metrics import Metrics
from serving.rollout_status import ArmStatus, RolloutStatus
from serving.rollout_status import TestStatus as Asked
from serving.workers import UP, merged_expositions
from tests.live_stack import worker_process
from tests.running_api import RunningApi, open_shop, wait_until
from training.run_metrics import LastTrainings, write_run

ROOT = Path(__file__).parent.parent
SERIES = 2_000


def names(registry: CollectorRegistry) -> set[str]:
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
        if family.name.startswith("larder_")
    }


def a_rollout(state: str = "canary") -> RolloutStatus:
    arms = [ArmStatus(arm, "b", "1", 100, 50, {"error": 3}, 5.0, 9.0, 7, 1, 0.1, 0.01) for arm in ARMS]
    tests = [Asked(name, "open", 0.0, -0.1, 0.1, 0.02, 1.5, 500.0) for name in (*GUARDRAILS, "ctr", "made up")]
    began, now = "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00"
    return RolloutStatus(
        "r1", 4, state, 0, [1000], 1000, False, "2", "b2", "1", "b1", began, began, now, "hold", "", arms, tests
    )


def registries(settings: Settings) -> dict[str, CollectorRegistry]:
    """Heading in docs/metrics.md to what a process of that role registers."""
    settings.root.mkdir(parents=True)
    api = create_app(settings).state.metrics.registry
    ingest, trainings, control = CollectorRegistry(), CollectorRegistry(), ControlMetrics()
    ingest.register(IngestMetrics(IngestStatus, settings.home))
    monitor = MonitorMetrics()
    monitor.skew({"f_item_price": 0})
    write_run(settings, "failed", 1.0)
    trainings.register(LastTrainings(settings))
    quality = CollectorRegistry()
    quality.register(measured := QualityMetrics())
    measured.measured(QualityReport("shop", "2026-01-01T00:00:00+00:00", 0, 1, 1, "purchase", "", 0, *[()] * 6, {}, 1))
    return {
        "API": api, "Ingest worker": ingest, "Controller": control.registry, "Trainings": trainings,
        "Live quality": quality, "Monitoring worker": monitor.registry,
    }  # fmt: skip


def test_every_metric_is_documented(tmp_path: Path) -> None:
    """docs/metrics.md lists the metrics of every role: all of them, and no other."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    documented = {
        part.partition("\n")[0]: set(re.findall(r"^\| `(larder_\w+)", part, re.MULTILINE))
        for part in text.split("\n## ")[1:]
    }
    registered = {role: names(registry) for role, registry in registries(Settings(home=tmp_path)).items()}
    registered["API"].add(UP)
    assert {role: documented.get(role) for role in registered} == registered


class Answering:
    """The service as the middleware sees it: any user, all arms and levels."""

    def __init__(self) -> None:
        self.asked = 0

    async def recommend(self, wish, _arrived_s=None) -> Recommendations:
        self.asked += 1
        return Recommendations(
            request_id="r", user_id=wish.user_id, model_version="1", bundle_id="b", arm=ARMS[self.asked % 3],
            level=LEVELS[self.asked % 4], reasons=[], feature_age_s=1.0, item_table_age_s=1.0,
            items=[RankedItem("i", 1, 0.5, "als", "rank")],
        )  # fmt: skip


async def unreached(_scope, _receive, _send) -> None:
    raise AssertionError("the short way answers all of these")


async def test_fifty_thousand_users_leave_few_series() -> None:
    metrics, sent = Metrics(), []
    for reason in REASONS:
        metrics.reasons.labels(reason).inc()
    for arm in ARMS:
        metrics.top_score[arm].observe(0.5)
    for service in ("ranking_v1", "purchase_v1"):
        metrics.missing.add(service, np.full((2, len(feature_list(service))), np.nan, np.float32))
    app = MeasuredApp(Admission(HotPath(unreached, Answering(), metrics), Door(32, metrics)), metrics, Drain(0.0))

    async def send(message) -> None:
        sent.append(message)

    for n in range(50_000):
        body = msgspec.json.encode({"user_id": f"user-{n}"})

        async def receive(body=body):
            return {"type": "http.request", "body": body}

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/recommendations", "headers": headers}
        await app(scope, receive, send)
        assert sent[0]["status"] == 200
        sent.clear()
    text = metrics.exposition().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert sum(float(line.split()[-1]) for line in lines if line.startswith("larder_requests_total")) == 50_000
    assert "user-" not in text
    assert len(lines) < SERIES / 2, "the rest is for other routes and the plan's arms"


def test_users_add_no_series_to_a_running_api(settings: Settings, redis_url: str) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:

        def lines() -> list[str]:
            text = api.http.get("/metrics").text
            return [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]

        lines()  # its own route is a series too
        for n in range(60):
            api.recommend(f"u{n:05}", k=5)
        before = lines()
        for n in range(60, 300):
            api.recommend(f"u{n:05}", k=5)
        assert len(set(lines()) - set(before)) < 10, "a source or a reason may be seen for the first time"
        assert not [line for line in lines() if '"u0' in line]
        assert len(before) < SERIES
        features = [line for line in before if line.startswith("larder_feature_values_total")]
        assert len(features) == len(feature_list("ranking_v1"))
        assert api.metric('larder_breaker_open_status{operation="read"}') == 0
        assert api.metric("larder_champion_status") == 1


def test_missing_features_are_counted_by_name() -> None:
    metrics, features = Metrics(), feature_list("ranking_v1")
    matrix = np.zeros((5, len(features) + 3), np.float32)  # retrieval's columns follow
    matrix[:4, 1] = np.nan
    matrix[:, -1] = np.nan
    metrics.missing.add("ranking_v1", matrix)
    metrics.missing.add("ranking_v1", matrix)
    text = metrics.exposition().decode()
    assert f'larder_missing_feature_values_total{{feature="{features[1]}"}} 8.0' in text
    assert f'larder_missing_feature_values_total{{feature="{features[0]}"}} 0.0' in text
    assert f'larder_feature_values_total{{feature="{features[1]}"}} 10.0' in text
    assert text.count("larder_feature_values_total{") == len(features)


def test_expositions_become_one_that_prometheus_can_read() -> None:
    said: dict[str, bytes | None] = {"2": None}
    for number in ("0", "1"):
        metrics = Metrics()
        metrics.shed.labels("lists").inc(int(number) + 1)
        metrics.request_seconds.labels("/v1/score").observe(0.02)
        said[number] = metrics.exposition(number)
    text = merged_expositions(said).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE larder_shed_total ") == 1
    assert {s.labels["worker"]: s.value for s in families["larder_shed"].samples} == {"0": 1.0, "1": 2.0}
    assert {s.labels["worker"]: s.value for s in families[UP].samples} == {"0": 1.0, "1": 1.0, "2": 0.0}
    counts = [s for s in families["larder_request_seconds"].samples if s.name.endswith("_count")]
    assert [s.value for s in counts] == [1.0, 1.0]


def test_the_ingest_worker_shows_its_metrics(settings: Settings) -> None:
    settings = replace(settings, user_events_per_s=0)
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    with worker_process(settings), RunningApi(settings) as api:
        (path,) = targets_dir(settings).glob(f"ingest-{settings.project}-*.json")
        (target,) = json.loads(path.read_text("utf-8"))
        assert (target["labels"]["job"], target["labels"]["project"]) == ("larder-ingest", settings.project)
        url = f"http://{target['targets'][0]}/metrics"
        assert target["targets"][0].startswith("127.0.0.1:")
        events = [{"user_id": f"u{n:05}", "item_id": "i00001", "event_type": "view"} for n in range(7)]
        assert api.http.post("/v1/events", json={"events": events}).status_code == 202

        def value(name: str) -> float:
            lines = [line for line in httpx.get(url).text.splitlines() if line.startswith(f"{name} ")]
            return float(lines[0].split()[1])

        wait_until(lambda: value("larder_ingest_events_total") == 7)
        wait_until(lambda: value('larder_redis_used_memory_bytes{redis="features"}') > 1e5)
        used, limit = (
            value(f'larder_redis_{what}_bytes{{redis="features"}}') for what in ("used_memory", "memory_limit")
        )
        assert limit > used
        assert value("larder_disk_size_bytes") > value("larder_disk_free_bytes") > 0
        assert value("larder_ingest_watermark_timestamp_seconds") > 1.7e9
    assert not path.exists(), "who ends in order is no target any more"


def test_targets_of_the_dead_go_with_the_next_start(tmp_path: Path) -> None:
    settings, dead = Settings(home=tmp_path), targets_dir(Settings(home=tmp_path)) / "ingest-simulator-1.json"
    with announced(settings, "ingest", "0.0.0.0", 7):  # noqa: S104 - what a container listens on
        dead.write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": {"__pid": "4194304"}}]))
        other = dead.with_name("ingest-other-1.json")
        other.write_text("{")
        mine = dead.with_name("ingest-simulator-7.json")
        assert json.loads(mine.read_text("utf-8"))[0]["targets"] == ["127.0.0.1:7"]
        named = replace(settings, metrics_name="ingest")  # a container's name
        with announced(named, "ingest", "0.0.0.0", 9):  # noqa: S104
            said = json.loads(dead.with_name("ingest-simulator-9.json").read_text("utf-8"))
            assert said[0]["targets"] == ["ingest:9"]
        with announced(settings, "ingest", HOST, 8):
            assert not dead.exists()
            assert mine.exists()
            assert other.exists()
            assert json.loads(mine.read_text("utf-8"))[0]["labels"]["__pid"] == str(os.getpid())


def test_a_port_in_use_is_stepped_over(tmp_path: Path) -> None:
    settings, port = Settings(home=tmp_path), any_free_port()
    ingest = exposed(settings, "ingest", CollectorRegistry(), port)
    with ingest as first, exposed(settings, "controller", CollectorRegistry(), first) as second:
        assert (first, second > first) == (port, True)
        assert httpx.get(f"http://127.0.0.1:{second}/metrics").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{first}/metrics")


def test_an_address_that_is_not_here_is_said(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, metrics_host="192.0.2.1")  # of no machine: RFC 5737
    with pytest.raises(UnavailableError, match="metrics_host"), exposed(settings, "ingest", CollectorRegistry(), 8097):
        pass


def test_the_controller_shows_rollout_evidence_and_verdicts() -> None:
    metrics = ControlMetrics()
    metrics.ticked(a_rollout(), active=True, problem="")
    value = metrics.registry.get_sample_value
    assert value("larder_rollout_state_status", {"state": "canary"}) == 1
    assert value("larder_rollout_weight_ratio") == 0.1
    assert value("larder_rollout_step_seconds") == 3600
    assert value("larder_rollout_e_value", {"test": "error"}) == 1.5
    assert value("larder_rollout_e_value", {"test": "made up"}) is None, "labels come from closed sets"
    assert value("larder_rollout_failures", {"arm": "canary", "guardrail": "error"}) == 3
    assert value("larder_rollout_difference_low", {"test": "ctr"}) == -0.1
    metrics.judged(Verdict("larder-shop", "2", "b", "2026-01-01T00:00:00+00:00", ()))
    assert sum(value("larder_gate_verdicts_total", {"result": word}) for word in get_args(Word)) == 1
    metrics.ticked(a_rollout("rolled_back"), active=True, problem="Redis is away")
    metrics.ticked(a_rollout("rolled_back"), active=True, problem="Redis is away")
    assert value("larder_rollout_ends_total", {"state": "rolled_back"}) == 1
    assert value("larder_rollout_step_seconds") == 0, "an end is no canary that is stuck"
    assert value("larder_controller_problem_status") == 1


def test_trainings_add_up_over_processes(tmp_path: Path) -> None:
    settings, registry = Settings(home=tmp_path), CollectorRegistry()
    registry.register(LastTrainings(settings))
    assert list(registry.collect()) == []
    figures = {"ndcg_at_10": 0.3, "recall_at_20": 0.4, "auc": 0.9, "candidate_recall": 0.8}
    write_run(settings, "succeeded", 12.0, figures)
    write_run(settings, "failed", 1.0)
    write_run(settings, "succeeded", 13.0, figures | {"auc": 0.95})
    write_run(settings, "failed", 2.0)
    value = registry.get_sample_value
    assert value("larder_training_runs_total", {"result": "succeeded"}) == 2
    assert value("larder_training_runs_total", {"result": "failed"}) == 2
    assert value("larder_training_quality", {"figure": "auc"}) == 0.95, "of the last one that made a bundle"
    assert value("larder_training_duration_seconds") == 2.0
    ends = [value("larder_training_end_timestamp_seconds", {"result": word}) for word in ("succeeded", "failed")]
    assert 1.7e9 < ends[0] < ends[1]
