"""Writes Grafana's dashboards from their description: `python -m monitoring.dashboards`, part of `make docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped] # its stubs are not among our dependencies

GRAFANA: Final = Path(__file__).parent / "grafana"
DESCRIPTION: Final = GRAFANA / "dashboards.yaml"
#: Of the data source in provisioning/datasources.
DATASOURCE: Final = {"type": "prometheus", "uid": "larder-prometheus"}
#: Grafana 10's; later versions migrate it when they load it.
SCHEMA_VERSION: Final = 38
_ROW_WIDTH: Final = 24
_STAT: Final = (4, 4)
_GRAPH: Final = (12, 8)
_SHORTHANDS: Final = {"$P": 'project=~"$project"', "$R": "$__rate_interval"}


def dashboards(description: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each dashboard's JSON model by its uid.

    Parameters
    ----------
    description
        Content of dashboards.yaml.
    """
    return {one["uid"]: _dashboard(one) for one in description}


def encoded(dashboard: dict[str, Any]) -> str:
    """Return a dashboard as it is kept in its file."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files."""
    for uid, dashboard in dashboards(yaml.safe_load(DESCRIPTION.read_text("utf-8"))).items():
        (GRAFANA / "dashboards" / f"{uid}.json").write_text(encoded(dashboard), "utf-8")


def _dashboard(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": one["uid"],
        "title": one["title"],
        "tags": ["larder"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": [_project_variable()]},
        "annotations": {"list": []},
        "links": [_LINK],
        "panels": _laid_out(one["rows"]),
    }


def _project_variable() -> dict[str, Any]:
    return {
        "name": "project",
        "label": "Project",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(larder_ready_status, project)", "refId": "project"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": False,
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Place panels from left to right, row under row, and number them."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append({"type": "row", "title": row["title"], "collapsed": False, "panels": []} | _at(0, y, 24, 1))
        x, y, tallest = 0, y + 1, 0
        for one in row["panels"]:
            width, height = _STAT if one.get("type") == "stat" else _GRAPH
            width = one.get("width", width)
            if x + width > _ROW_WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(one) | _at(x, y, width, height))
            x, tallest = x + width, max(tallest, height)
        y += tallest
    return [{"id": number, **panel} for number, panel in enumerate(panels, start=1)]


def _at(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _panel(one: dict[str, Any]) -> dict[str, Any]:
    kind = one.get("type", "timeseries")
    targets = [_target(n, legend, query, kind) for n, (legend, query) in enumerate(one["queries"].items())]
    defaults: dict[str, Any] = {"unit": one.get("unit", "none"), "custom": _drawn(one, kind)}
    if "decimals" in one:
        defaults["decimals"] = one["decimals"]
    if "steps" in one or "limit" in one:
        defaults["thresholds"] = {"mode": "absolute", "steps": _steps(one)}
    panel: dict[str, Any] = {
        "type": kind,
        "title": one["title"],
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[kind],
    }
    if "empty" in one:
        panel["description"] = (
            f"No data {one['empty']}." if not one["empty"].startswith("not ") else "Not exported yet."
        )
    if kind == "table":
        panel["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
    return panel


def _target(n: int, legend: str, query: str, kind: str) -> dict[str, Any]:
    for short, long in _SHORTHANDS.items():
        query = query.replace(short, long)
    target: dict[str, Any] = {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": query, "editorMode": "code"}
    if kind == "table":
        return target | {"format": "table", "instant": True, "range": False}
    return target | {
        "format": "heatmap" if kind == "heatmap" else "time_series",
        "legendFormat": legend or "__auto",
        "instant": False,
        "range": True,
    }


def _steps(one: dict[str, Any]) -> list[dict[str, Any]]:
    first, *rest = one.get("steps") or ["green", [one["limit"], "red"]]
    return [{"color": first, "value": None}, *({"color": colour, "value": value} for value, colour in rest)]


def _drawn(one: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind != "timeseries":
        return {}
    drawn: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": False}
    if one.get("stack"):
        drawn |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if "limit" in one:
        drawn["thresholdsStyle"] = {"mode": "line"}
    if one.get("log"):
        drawn["scaleDistribution"] = {"type": "log", "log": 10}
    return drawn


#: From each dashboard to the others, for the same time and project.
_LINK: Final = {
    "type": "dashboards",
    "title": "Larder",
    "tags": ["larder"],
    "asDropdown": True,
    "keepTime": True,
    "includeVars": True,
    "targetBlank": False,
    "icon": "dashboard",
    "tooltip": "",
    "url": "",
}
_CALCS: Final = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {**_CALCS, "colorMode": "value", "graphMode": "area", "textMode": "auto"},
    "heatmap": {"calculate": False, "yAxis": {"unit": "short"}, "color": {"mode": "scheme", "scheme": "Blues"}},
    "table": {"showHeader": True},
    "state-timeline": {"showValue": "never", "mergeValues": True},
}

if __name__ == "__main__":
    main()
