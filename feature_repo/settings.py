"""All settings of Larder in one place: defaults, then one TOML file, then the environment (`LARDER_*`).

`larder settings` prints every setting with its value, where it came from and what it means; docs/settings.md is made
from the same descriptions.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


class SettingsError(ValueError):
    """A setting has an impossible value, or an unknown name."""


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True)
class Settings:
    """What may differ between two installations of Larder. Read once, passed on as an argument."""

    home: Path = _doc(Path(".larder"), "Directory of everything Larder writes: services' data, logs, offline store.")
    project: str = _doc("simulator", "Name of the shop; its data, features, plan and models are kept apart.")
    data_dir: Path = _doc(Path("../shared/data"), "Directory of the real data sets (env DATA_DIR is read as well).")
    redis_host: str = _doc("127.0.0.1", "Host of the Redis that holds features and the plan.")
    redis_port: int = _doc(6399, "Port of that Redis; the embedded one takes the next free port if it is in use.")
    events_redis_host: str = _doc(
        "",
        "Host of a Redis of its own for what comes in: the event stream and the API's quarantine; empty: the one above "
        "has them too. Never a cluster.",
    )
    events_redis_port: int = _doc(6379, "Port of that second Redis, where there is one.")
    redis_cluster: bool = _doc(False, "Whether the Redis of the features is a node of a Redis Cluster; true or false.")
    redis_timeout_ms: int = _doc(50, "Longest wait for Redis inside a request.")
    request_budget_ms: int = _doc(
        100,
        "Time of a recommendation from its arrival on: waits end before it, and who waited so long for their turn "
        "get what is popular. 0: no limit.",
    )
    redis_appendfsync: str = _doc(
        "everysec",
        "Append-only-file policy of the embedded Redis: always, everysec or no (see docs/operations.md).",
    )
    mlflow_port: int = _doc(5055, "Port of the embedded MLflow server.")
    mlflow_tracking_uri: str = _doc("", "URI of an MLflow server to use instead of the embedded one.")
    api_host: str = _doc("127.0.0.1", "Address the API listens on.")
    api_port: int = _doc(8099, "Port of the API.")
    cors_origins: str = _doc(
        "",
        "Origins whose pages may call the API from a browser (https://shop.example, several with commas, or *); empty: "
        "none.",
    )
    log_format: str = _doc("text", "Lines of the log: text, or json with an object a line (docs/edge.md).")
    tracing_endpoint: str = _doc(
        "",
        "Collector that takes the traces of requests as OTLP over HTTP (http://127.0.0.1:4318); empty: no traces "
        "(docs/tracing.md).",
    )
    tracing_sample_share: float = _doc(
        0.01, "Share of the requests without a `traceparent` that are traced, 0 to 1; others decide themselves."
    )
    platform_url: str = _doc(
        "",
        "PostgreSQL of plan, ledger and rollouts (postgresql://user:password@host/db); empty: an SQLite file.",
    )
    registry_url: str = _doc(
        "",
        "PostgreSQL of Feast's registry (postgresql://user:password@host/db; no password where PGPASSWORD has it); "
        "empty: an SQLite file.",
    )
    admin_port: int = _doc(8098, "Port of the control plane's own API, on 127.0.0.1 only.")
    metrics_host: str = _doc("127.0.0.1", "Address on which ingest worker and controller show their metrics.")
    metrics_name: str = _doc(
        "", "Name under which Prometheus reaches this process, in containers; empty: the address it listens on."
    )
    ingest_metrics_port: int = _doc(8097, "Port of the ingest worker's metrics; the next free one if it is in use.")
    control_metrics_port: int = _doc(8096, "Port of the controller's metrics; the next free one if it is in use.")
    monitor_metrics_port: int = _doc(
        8095, "Port of the metrics of `larder monitor run`; the next free one if it is in use."
    )
    monitor_every_s: float = _doc(30.0, "How often `larder monitor run` looks whether there is something to check.")
    drift_window_minutes: float = _doc(
        1440.0, "Shortest window that is watched for drift; a day, so that every window has all hours (docs/drift.md)."
    )
    drift_sample: int = _doc(300, "Users of a window of drift; a window lasts until so many were answered.")
    drift_reference: str = _doc(
        "training",
        "What windows are compared with: training (what the champion would have served on its test window), or served "
        "(its own first three windows).",
    )
    skew_every_minutes: float = _doc(60.0, "How often `larder monitor run` replays served features.")
    prometheus_port: int = _doc(9090, "Port of the Prometheus that `larder services up --prometheus` starts.")
    rollout_profile: str = _doc("production", "Profile of rollouts that start by themselves (docs/rollouts.md).")
    rollout_auto: bool = _doc(
        True, "Whether a version the gate let through starts its rollout by itself; true or false."
    )
    max_under_way: int = _doc(
        32,
        "Requests an API process works on at once; further lists get 503 with Retry-After, events from half of it on; "
        "0: no limit.",
    )
    receive_timeout_s: float = _doc(
        10.0,
        "Seconds a request may take to arrive at the API, head and body, and its answer to be taken; then the "
        "connection is closed.",
    )
    drain_ms: int = _doc(
        1000,
        "How long the API goes on after SIGTERM, not ready: longer than a balancer needs to see it; not on Ctrl-C.",
    )
    item_refresh_ms: int = _doc(500, "How often the in-process item table looks for changes.")
    user_events_per_s: int = _doc(
        20, "Events a second the API takes of one user in the long run (per API process); 0: no limit."
    )
    user_events_burst: int = _doc(600, "Events of one user it takes at once.")
    max_items: int = _doc(1_000_000, "Items there may be; events and entries that name further ones are refused.")
    stream_max_entries: int = _doc(
        2_000_000,
        "Entries that may wait in the stream (about 250 bytes each); beyond it events get 503 until ingest and its log "
        "have caught up.",
    )
    pinned_bundle: str = _doc(
        "",
        "Bundle this API process serves whatever the plan says (`larder serve --bundle`); empty: the plan's.",
    )
    plan_poll_ms: int = _doc(500, "How often serving looks for a new plan.")
    canary_timeout_ms: int = _doc(
        60, "Longest wait of a request for a candidate's process; then the stable model answers."
    )
    child_memory_mb: int = _doc(4096, "Memory a candidate's process may take; one that needs more is ended.")
    impression_days: int = _doc(14, "Days for which the log of what was served is kept.")
    impression_all_candidates_share: float = _doc(
        0.01, "Share of requests for which that log keeps what the model saw of all candidates, not of the list only."
    )
    exploration: str = _doc(
        "none",
        "How declared places of a list are drawn, in every arm alike: none, epsilon or thompson (docs/off-policy.md).",
    )
    exploration_ranks: str = _doc("5", "Those places, 1-based, several with commas.")
    exploration_epsilon: float = _doc(0.1, "Share of their draws that is uniform, between 0 and 1.")
    exploration_pool: str = _doc("below", "What is drawn: the candidates below the list, or the new ones of them.")
    exploration_pool_size: int = _doc(20, "Candidates that may be drawn in one list, dealt out to its places.")
    seed: int = _doc(11, "Seed of everything random in training and evaluation.")
    threads: int = _doc(2, "Threads for training; pinned so that results repeat.")

    @property
    def root(self) -> Path:
        """Directory of this project's data."""
        return self.home / self.project

    @property
    def events_dir(self) -> Path:
        """The offline log of accepted events: Parquet by day, `LOG_SCHEMA`."""
        return self.root / "events"

    @property
    def item_changes_dir(self) -> Path:
        """The offline log of catalogue changes beside it: Parquet by day, `ITEM_CHANGE_SCHEMA`."""
        return self.root / "item_changes"

    @property
    def quarantine_dir(self) -> Path:
        """Rows that could not be events, with reasons."""
        return self.root / "quarantine"

    @property
    def offline_dir(self) -> Path:
        """The offline feature store: one directory of Parquet parts per view."""
        return self.root / "offline"

    @property
    def items_path(self) -> Path:
        """The catalogue (`ITEM_SCHEMA`)."""
        return self.root / "items.parquet"

    @property
    def bundles_dir(self) -> Path:
        """Content store: one immutable directory per `bundle_id`."""
        return self.root / "bundles"

    @property
    def registry_uri(self) -> str:
        """SQLAlchemy URL of Feast's SQL registry."""
        if self.registry_url:
            scheme, _, rest = self.registry_url.partition("://")
            if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
                raise SettingsError("setting registry_url must look like postgresql://user@host:5432/database")
            return f"postgresql+psycopg://{rest}"
        return f"sqlite:///{(self.root / 'registry.db').resolve()}"

    @property
    def platform_uri(self) -> Path:
        """SQLite database of the control plane (plan, ledger, rollouts), where `platform_url` names no other."""
        return self.root / "platform.db"

    @property
    def plan_path(self) -> Path:
        """The plan as serving last published or received it."""
        return self.root / "plan.json"

    @property
    def impressions_dir(self) -> Path:
        """Log of what was served."""
        return self.root / "impressions"

    @property
    def shadow_dir(self) -> Path:
        """Log of what a shadow candidate would have served, compared with what was."""
        return self.root / "shadow"

    @property
    def hidden_items_path(self) -> Path:
        """Items of the popularity file that must not be shown, for a start without Redis."""
        return self.root / "hidden_items.json"

    @property
    def monitoring_dir(self) -> Path:
        """What watching keeps: references, state, reports."""
        return self.root / "monitoring"

    @property
    def reports_dir(self) -> Path:
        """Drift reports as pages, `index.html` before them."""
        return self.monitoring_dir / "reports"

    @property
    def evidently_dir(self) -> Path:
        """Evidently's workspace: one for all projects, each is one in it."""
        return self.home / "evidently"

    @property
    def results_dir(self) -> Path:
        """Where benches and checks write their figures."""
        return self.home / "results"

    @property
    def tracking_uri(self) -> str:
        """The MLflow server in use."""
        return self.mlflow_tracking_uri or f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def model_name(self) -> str:
        """Name of the project's registered model in MLflow."""
        return f"larder-{self.project}"

    @classmethod
    def load(cls, file: Path | None = None, **overrides: Any) -> Settings:
        """Read the settings.

        Parameters
        ----------
        file
            TOML file; `LARDER_CONFIG` or `larder.toml` in the working directory if None.
        overrides
            Values that win over everything (command-line options); None is ignored.

        Raises
        ------
        SettingsError
            For a name that is no setting, or a value of the wrong type.
        """
        path = file or Path(os.environ.get("LARDER_CONFIG", "larder.toml"))
        values: dict[str, Any] = {}
        if path.is_file():
            try:
                values |= tomllib.loads(path.read_text("utf-8"))
            except tomllib.TOMLDecodeError as error:
                raise SettingsError(f"{path} is not valid TOML: {error}") from None
        elif file is not None or "LARDER_CONFIG" in os.environ:
            raise SettingsError(f"no settings file at {path}")
        names = {f.name: f for f in fields(cls)}
        if "DATA_DIR" in os.environ:
            values["data_dir"] = os.environ["DATA_DIR"]
        for name in names:
            text = os.environ.get(f"LARDER_{name.upper()}")
            if text is not None:
                values[name] = text
        values |= {key: value for key, value in overrides.items() if value is not None}
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise SettingsError(f"unknown setting {unknown[0]!r}; the settings are: {', '.join(names)}")
        return cls(**{name: _cast(names[name].default, name, value) for name, value in values.items()})


_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def _cast(default: Any, name: str, value: Any) -> Any:
    """Convert a value from a file or the environment to the type of the setting's default."""
    try:
        if isinstance(default, Path):
            return Path(value)
        if isinstance(default, bool):
            return value if isinstance(value, bool) else _FLAGS[str(value).lower()]
        if isinstance(default, int):
            return int(value)
        return type(default)(value)
    except (TypeError, ValueError, KeyError):
        raise SettingsError(f"setting {name} must be {type(default).__name__}, not {value!r}") from None
