"""Configuration, rules, runbooks and dashboards, as far as that goes without running them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings
from larder.services.ports import any_free_port, http_ok
from larder.services.prometheus_server import find_program, prometheus_service, write_configuration
from monitoring.dashboards import DATASOURCE, DESCRIPTION, GRAFANA, dashboards, encoded
from serving.metrics import Metrics
from tests.prometheus_tools import Asked, program

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "monitoring" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
DESCRIBED: list[dict[str, Any]] = yaml.safe_load(DESCRIPTION.read_text("utf-8"))
MODELS = dashboards(DESCRIBED)
#: Units of Grafana that are used (packages/grafana-data, categories.ts).
UNITS = {"none", "short", "percentunit", "s", "bytes", "reqps", "cps"}
KINDS = {"row", "stat", "timeseries", "heatmap", "table", "state-timeline"}


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> None:
    done = subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    promtool("check", "config", "prometheus.yml", cwd=write_configuration(Settings(home=tmp_path)))


def test_rules_fire_where_they_should_and_nowhere_else() -> None:
    promtool("check", "rules", "rules/recording.yml", "rules/alerts.yml")
    promtool("test", "rules", "rule_tests/alerts.yml")


def test_every_alert_is_tested() -> None:
    text = (PROMETHEUS / "rule_tests" / "alerts.yml").read_text("utf-8")
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r'alertname="(\w+)"', text))


def test_every_alert_has_severity_and_runbook() -> None:
    """A section of docs/runbooks.md per alert, at the anchor the alert names; and no section of none."""
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(alert["alert"] for alert in ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["runbook"] == f"docs/runbooks.md#{alert['alert'].lower()}"
        assert {"summary", "description"} <= set(alert["annotations"])


def expressions() -> list[str]:
    recording = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text("utf-8"))
    rules = [rule["expr"] for group in recording["groups"] for rule in group["rules"]]
    panels = [
        target["expr"] for model in MODELS.values() for panel in model["panels"] for target in panel.get("targets", ())
    ]
    return [alert["expr"] for alert in ALERTS] + rules + panels


def test_rules_and_panels_ask_for_metrics_that_exist() -> None:
    known = set(re.findall(r"^\| `(larder_\w+)", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.MULTILINE))
    known |= {f"{name}{end}" for name in known for end in ("_bucket", "_sum", "_count")}
    asked = {name for text in expressions() for name in re.findall(r"(?<![:\w])larder_\w+(?=[{\[ )])", text)}
    assert asked <= known


def test_rules_and_panels_ask_for_recorded_series_that_exist() -> None:
    recording = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text("utf-8"))
    known = {rule["record"] for group in recording["groups"] for rule in group["rules"]}
    asked = {name for text in expressions() for name in re.findall(r"\b[a-z_]+:larder_\w+:\w+", text)}
    assert asked == known, "nothing is recorded in vain"


def test_buckets_lie_at_the_objectives() -> None:
    """A share below a bound is exact only where a bucket ends there."""
    bounds = {s.labels["le"] for f in Metrics().registry.collect() if f.name == "larder_arm_seconds" for s in f.samples
              if s.name.endswith("_bucket")}  # fmt: skip
    assert {"0.05", "0.1"} <= bounds
    used = {bound for text in expressions() for bound in re.findall(r'le="([\d.]+)"', text)}
    assert used <= bounds


@pytest.mark.parametrize("uid", MODELS)
def test_dashboards_are_as_described(uid: str) -> None:
    """`make docs` would change nothing."""
    assert (GRAFANA / "dashboards" / f"{uid}.json").read_text("utf-8") == encoded(MODELS[uid])
    assert {path.stem for path in (GRAFANA / "dashboards").glob("*.json")} == set(MODELS)


@pytest.mark.parametrize("uid", MODELS)
def test_dashboards_have_what_grafana_needs(uid: str) -> None:
    model = json.loads((GRAFANA / "dashboards" / f"{uid}.json").read_text("utf-8"))
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", model["uid"])
    assert {"title", "schemaVersion", "templating", "time", "panels"} <= set(model)
    panels = model["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["type"] in KINDS
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == DATASOURCE
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"])
        assert all('project=~"$project"' in target["expr"] for target in panel["targets"])
        assert "$P" not in json.dumps(panel)
        assert "$R" not in json.dumps(panel)
    titles = [panel["title"] for panel in panels if panel["type"] != "row"]
    assert len(set(titles)) == len(titles)


def test_provisioning_and_dashboards_mean_the_same_data_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    assert (source["uid"], source["type"]) == (DATASOURCE["uid"], DATASOURCE["type"])


def test_the_docs_name_the_panels_without_data() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    empty = {(board["title"], panel["title"], panel["empty"]) for board in DESCRIBED for row in board["rows"]
             for panel in row["panels"] if "empty" in panel}  # fmt: skip
    assert empty == set(re.findall(r"^\| (.+?) \| (.+?) \| no data (.+?) \|$", text, re.MULTILINE))


def test_it_starts_with_the_services_and_takes_the_rules(tmp_path: Path) -> None:
    home, port = tmp_path / "home", any_free_port()
    environment = os.environ | {
        "LARDER_HOME": str(home), "LARDER_REDIS_PORT": str(any_free_port()), "LARDER_PROMETHEUS_PORT": str(port),
        "LARDER_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PATH": f"{Path(program('prometheus')).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    services = [sys.executable, "-m", "larder.cli", "services"]
    try:
        up = subprocess.run(
            [*services, "up", "--prometheus"], env=environment, capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, up.stderr
        assert "prometheus: starting, pid" in up.stdout
        with Asked(port) as prometheus:
            groups = prometheus.groups()
        assert {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"} == {
            alert["alert"] for alert in ALERTS
        }
    finally:
        subprocess.run([*services, "down"], env=environment, capture_output=True, check=True)
    assert not http_ok("/-/ready", port)


def test_without_prometheus_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="make prometheus"):
        find_program(Settings(home=tmp_path), "prometheus")
    with pytest.raises(UnavailableError, match="make prometheus"):
        prometheus_service(Settings(home=tmp_path))
