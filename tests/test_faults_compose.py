"""Everything docker-compose.yml would run, run: as plain processes with the same commands and environment, and a story.

Where PostgreSQL, HAProxy, Prometheus or Alertmanager is not installed, what needs it is skipped with the reason.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from feature_repo.online_keys import events_key, row_key, watermark_key
from feature_repo.settings import Settings
from larder.services.ports import HOST
from tests.compose_processes import Composed
from tests.running_api import plan_for, publish, wait_until
from tests.tiny_bundle import make_bundle, make_shop

pytestmark = pytest.mark.faults

#: In the order Docker would start them: who waits for whom is in the file.
FIRST = ("redis-features", "redis-events", "postgres")
THEN = ("mlflow", "api", "ingest", "prometheus", "alertmanager", "evidently", "proxy", "controller", "monitor")


class Webhook:
    """Where alerts go: keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}/"

    def __enter__(self) -> Webhook:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on its loopback interface")
    with Webhook() as webhook, Composed(tmp_path_factory.mktemp("composed"), webhook.url) as composed:
        composed.alerts = webhook.received
        started = [*FIRST, *THEN]
        for name in started:
            for needed in composed.services[name].get("depends_on", {}):
                composed.wait_healthy(needed)
            composed.start(name)
        for name in started:
            composed.wait_healthy(name)
        yield composed


def need(composed: Composed, *names: str) -> None:
    for name in names:
        assert name not in composed.broken, composed.broken[name]
        if name in composed.missing:
            pytest.skip(f"{name}: {composed.missing[name]}")


@pytest.fixture(scope="module")
def shop(composed: Composed) -> Composed:
    """A shop with a history, by the commands of `larder`, and a model of the tests."""
    need(composed, "postgres")
    composed.run("data", "import", "--dataset", "simulator", "--events", "4000", "--end", "now")
    composed.run("features", "backfill")
    composed.run("features", "apply")
    composed.run("features", "materialize")
    composed.run("ledger", "verify")
    settings = Settings(home=composed.home / "volumes" / "larder", project="composed")
    bundle_id = make_bundle(settings.bundles_dir, make_shop(time.time_ns() // 1000, n_items=300, n_users=60))
    with pytest.MonkeyPatch.context() as patch, client_of(composed, "redis-features") as client:
        patch.setenv("LARDER_SIGNING_KEY", composed.secret("signing_key"))
        publish(client, settings, plan_for(bundle_id))
    api = f"http://{composed.address['api']}:8099"
    wait_until(lambda: httpx.get(f"{api}/readyz").status_code == 200, timeout_s=30)
    return composed


def client_of(composed: Composed, name: str) -> redis.Redis:
    return redis.Redis(composed.address[name], 6379)


def database(composed: Composed, role: str, name: str, password: str | None = None) -> psycopg.Connection[Any]:
    secret = composed.secret(f"{role}_db_password") if password is None else password
    return psycopg.connect(
        host=composed.address["postgres"], dbname=name, user=role, password=secret, connect_timeout=5
    )


@pytest.mark.parametrize("name", [*FIRST, *THEN])
def test_every_service_is_healthy_by_the_check_of_the_file(composed: Composed, name: str) -> None:
    need(composed, name)
    assert composed.healthy(name), composed.log(name)


def test_a_health_check_sees_that_nobody_is_there(composed: Composed) -> None:
    assert composed.services["grafana"]["healthcheck"]["test"][1] == "wget"
    assert not composed.healthy("grafana"), "there is no Grafana here"


def test_a_request_goes_through_the_proxy_and_operators_pages_do_not(shop: Composed) -> None:
    need(shop, "proxy")
    proxy = f"http://{shop.address['proxy']}:8080"
    wait_until(lambda: httpx.get(f"{proxy}/livez").status_code == 200)
    answer = httpx.post(f"{proxy}/v1/recommendations", json={"user_id": "u00001", "k": 5})
    assert answer.status_code == 200, answer.text
    assert (len(answer.json()["items"]), answer.json()["level"]) == (5, "full")
    for path in ("/metrics", "/readyz", "/status", "/admin/state"):
        assert httpx.get(proxy + path).status_code == 404


def test_an_acknowledged_event_is_folded_into_the_other_redis(shop: Composed) -> None:
    api = f"http://{shop.address['api']}:8099"
    event = {"user_id": "new customer", "item_id": "i00001", "event_type": "purchase", "value": 199, "quantity": 1}
    answer = httpx.post(f"{api}/v1/events", json={"events": [event]})
    assert answer.status_code == 202, answer.text
    seq = answer.json()["results"][0]["seq"]
    with client_of(shop, "redis-features") as features, client_of(shop, "redis-events") as events:
        # The worker finds that `materialize` moved the watermark, and ends: it is started again, as the file says.
        wait_until(lambda: shop.keep_running() or int(features.get(watermark_key("composed")) or 0) >= seq, 40)
        assert features.exists(row_key("composed", "user_stats", "new customer"))
        assert not features.exists(events_key("composed"))
        assert events.exists(events_key("composed"))
        assert not events.exists(watermark_key("composed"))
    logged = shop.home / "volumes" / "larder" / "composed" / "events"
    wait_until(lambda: list(logged.rglob("live-*.parquet")))


def test_the_databases_are_postgresqls_and_apart(shop: Composed) -> None:
    with database(shop, "larder", "larder") as connection:
        tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert tables
    with database(shop, "larder", "feast") as connection:
        [views] = connection.execute("SELECT count(*) FROM feature_views WHERE project_id = 'composed'").fetchall()
    assert views[0] >= 4
    assert not (shop.home / "volumes" / "larder" / "composed" / "registry.db").exists()
    assert not (shop.home / "volumes" / "larder" / "composed" / "platform.db").exists()
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        database(shop, "mlflow", "larder")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        database(shop, "larder", "larder", "guess")


def test_mlflow_keeps_runs_in_postgresql_and_artefacts_on_its_volume(composed: Composed) -> None:
    need(composed, "mlflow")
    server = f"http://{composed.address['mlflow']}:5000"
    made = httpx.post(f"{server}/api/2.0/mlflow/experiments/create", json={"name": "composed"}, timeout=30)
    assert made.status_code == 200, made.text
    put = httpx.put(f"{server}/api/2.0/mlflow-artifacts/artifacts/1/note.txt", content=b"kept", timeout=30)
    assert put.status_code == 200, put.text
    assert (composed.home / "volumes" / "mlflow" / "artifacts" / "1" / "note.txt").read_bytes() == b"kept"
    with database(composed, "mlflow", "mlflow") as connection:
        names = connection.execute("SELECT name FROM experiments").fetchall()
    assert ("composed",) in names
    strange = httpx.get(f"{server}/api/2.0/mlflow/experiments/search", headers={"Host": "elsewhere.example"})
    assert strange.status_code == 403


def test_prometheus_finds_every_process_and_knows_its_alertmanager(shop: Composed) -> None:
    need(shop, "prometheus")
    server = f"http://{shop.address['prometheus']}:9090/api/v1"

    def up() -> dict[str, str]:
        found = httpx.get(f"{server}/query", params={"query": "up"}).json()["data"]["result"]
        return {one["metric"]["job"]: one["value"][1] for one in found if one["metric"]["project"] == "composed"}

    jobs = {f"larder-{name}" for name in ("api", "ingest", "controller", "monitor") if name not in shop.missing}
    wait_until(lambda: up() == dict.fromkeys(jobs, "1"), timeout_s=30)
    groups = httpx.get(f"{server}/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in groups) > 30
    known = httpx.get(f"{server}/alertmanagers").json()["data"]["activeAlertmanagers"]
    assert [one["url"] for one in known] == [f"http://{shop.address['alertmanager']}:9093/api/v2/alerts"]


def test_an_alert_reaches_the_webhook(composed: Composed) -> None:
    need(composed, "alertmanager")
    alert = {"labels": {"alertname": "LarderTried", "project": "composed", "severity": "critical"}}
    server = f"http://{composed.address['alertmanager']}:9093"
    assert httpx.post(f"{server}/api/v2/alerts", json=[alert]).status_code == 200

    def names() -> list[str]:
        return [alert["labels"]["alertname"] for sent in composed.alerts for alert in sent["alerts"]]

    wait_until(lambda: "LarderTried" in names(), timeout_s=20)


def test_no_secret_is_in_a_log_or_on_a_command_line(shop: Composed) -> None:
    secrets = [shop.secret(name) for name in shop.compose["secrets"] if name != "alert_webhook_url"]
    texts = [path.read_text("utf-8", errors="replace") for path in (shop.home / "logs").iterdir()]
    texts += [Path(f"/proc/{process.pid}/cmdline").read_text("utf-8") for process in shop.running.values()]
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_all_stop_in_order_within_their_time(shop: Composed) -> None:
    order = [name for name in ("proxy", "monitor", "controller", "ingest", "api") if name in shop.running]
    codes = {name: shop.stop(name) for name in order}
    assert codes == dict.fromkeys(order, 0)
    assert "ingest stopped: " in shop.log("ingest")
    for name in list(shop.running):
        shop.stop(name)
