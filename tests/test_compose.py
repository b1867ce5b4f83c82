"""The compose file and the images, as far as that goes without a Docker engine: the official schema, and policies."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import jsonschema_rs
import pytest
import yaml

from feature_repo.settings import Settings
from larder.commands.serve import _GRACE_S
from tests.compose_file import (
    DOCKERFILES,
    FILE,
    ROOT,
    SCHEMA,
    MissingVariableError,
    example,
    final_stage,
    is_command,
    load,
    variables,
)

COMPOSE = load(example())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
RUNNING = {name: service for name, service in SERVICES.items() if "profiles" not in service}
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "larder:local"}


def schema_errors(compose: Any) -> list[str]:
    validator = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text("utf-8")))
    return [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(compose)]


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def size(text: str) -> int:
    return int(text[: -2 if text.endswith("b") else -1]) << {"g": 30, "m": 20}[text.rstrip("b")[-1]]


def test_it_is_what_the_compose_specification_allows() -> None:
    assert schema_errors(COMPOSE) == []
    assert schema_errors(yaml.safe_load(FILE.read_text("utf-8"))) == [], "before variables are filled in, too"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("services", "api", "helthcheck"), {}),
        (("services", "api", "read_only"), ["yes"]),
        (("services", "api", "deploy", "resources", "limits", "memory"), {"gb": 4}),
        (("services", "proxy", "depends_on", "api", "condition"), "healthy"),
        (("volume",), {}),
    ],
)
def test_the_schema_sees_mistakes(place: tuple[str, ...], value: Any) -> None:
    broken = copy.deepcopy(COMPOSE)
    inside = broken
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    assert schema_errors(broken)


def test_the_parts_the_platform_is_made_of_are_there() -> None:
    assert set(RUNNING) == {
        "redis-features", "redis-events", "postgres", "mlflow", "api", "ingest", "controller", "monitor", "prometheus",
        "alertmanager", "grafana", "evidently", "proxy",
    }  # fmt: skip


@pytest.mark.parametrize("name", RUNNING)
def test_every_command_exists(name: str) -> None:
    command = [str(word) for word in SERVICES[name].get("command", [])]
    if command and command[0] == "larder":
        assert is_command(command[1:]), " ".join(command)


@pytest.mark.parametrize("name", SERVICES)
def test_services_follow_the_policies(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "network_mode", "pid", "ipc", "env_file", "container_name"} & set(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    limits = service["deploy"]["resources"]["limits"]
    assert size(limits["memory"]) <= 6 << 30
    assert limits["pids"] <= 512
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    if name in RUNNING:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_runs_as_root_and_every_version_is_exact(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        dockerfile = ROOT / service["build"]["dockerfile"]
        assert dockerfile in DOCKERFILES
        assert dict(final_stage(dockerfile))["USER"] not in {"root", "0"}
        assert "user" not in service
        assert service["image"].endswith(":local")
    else:
        assert service["user"] not in {"root", "0"}
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"])
        assert service["image"].count(".") >= (1 if service["image"].startswith("postgres") else 2)


def test_only_what_is_for_people_has_a_port_and_stores_have_no_way_out() -> None:
    networks = COMPOSE["networks"]
    assert {name for name, network in networks.items() if network.get("internal")} == {"data", "watch", "edge"}
    published = {name for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"proxy", "grafana", "prometheus", "mlflow", "evidently"}
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(networks)
        assert ("published" in service["networks"]) == (name in published | {"alertmanager"}), name
    for name in ("redis-features", "redis-events", "postgres"):
        assert SERVICES[name]["networks"] == ["data"]
    assert set(SERVICES["proxy"]["networks"]) == {"edge", "published"}, "the proxy reaches the API alone"


def test_who_needs_another_waits_until_it_is_healthy() -> None:
    hosts = {
        name: set(re.findall(r"(?<=[/@])[a-z-]+(?=:\d)", json.dumps(service))) for name, service in SERVICES.items()
    }
    assert "postgres" in hosts["mlflow"]
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert how.get("restart", False) == (name == "proxy")
            assert needed in RUNNING
    for name in OURS:
        if name != "evidently":
            assert "redis-features" in SERVICES[name]["depends_on"]
    assert {"postgres", "mlflow"} <= set(SERVICES["controller"]["depends_on"])
    # Serving starts and answers without MLflow and the database: it must not wait for them.
    assert set(SERVICES["api"]["depends_on"]) == {"redis-features", "redis-events"}


def test_everybody_has_the_time_to_stop_in_order() -> None:
    drain_s = Settings().drain_ms / 1000
    assert seconds(SERVICES["api"]["stop_grace_period"]) > drain_s + _GRACE_S
    assert seconds(SERVICES["proxy"]["stop_grace_period"]) > drain_s + _GRACE_S
    for name in ("redis-features", "redis-events", "postgres", "prometheus"):
        assert seconds(SERVICES[name]["stop_grace_period"]) >= 60


@pytest.mark.parametrize("name", ["redis-features", "redis-events"])
def test_redis_loses_no_acknowledged_event(name: str) -> None:
    command = [str(word) for word in SERVICES[name]["command"]]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] in {"everysec", "always"}
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--save"] == ""
    # Rewriting the file forks: pages written meanwhile are there twice.
    assert 2 * size(options["--maxmemory"]) <= size(SERVICES[name]["deploy"]["resources"]["limits"]["memory"])


def test_the_stream_fits_into_its_redis() -> None:
    command = SERVICES["redis-events"]["command"]
    room = size(command[command.index("--maxmemory") + 1])
    assert Settings().stream_max_entries * 250 < 0.6 * room


def test_variables_are_those_of_the_example_with_the_same_defaults() -> None:
    found = variables()
    assert set(found) == set(example())
    for name, (kind, text) in found.items():
        assert kind in {"-", "?"}, f"{name} has neither a default nor a message"
        if kind == "-":
            assert example()[name] == text
    with pytest.raises(MissingVariableError, match="LARDER_SECRETS_DIR is not set: cp"):
        load({})


@pytest.mark.parametrize("name", OURS)
def test_our_environment_is_documented(name: str) -> None:
    documented = (ROOT / "docs" / "settings.md").read_text("utf-8") + (ROOT / ".env.example").read_text("utf-8")
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    environment = SERVICES[name]["environment"]
    for variable in environment:
        if variable.endswith("_FILE"):
            assert f"`{variable}`" in operations, variable
        else:
            assert variable.removeprefix("LARDER_").lower() in Settings.__dataclass_fields__
            assert variable.removeprefix("LARDER_").lower() in documented
    if name != "evidently":
        settings = Settings(**{
            key.removeprefix("LARDER_").lower(): value
            for key, value in environment.items() if key.startswith("LARDER_") and not key.endswith("_FILE")
        })  # fmt: skip
        assert settings.redis_host == "redis-features"
        assert settings.events_redis_host == "redis-events"


def test_volumes_and_files_that_are_mounted_exist() -> None:
    used: set[str] = set()
    made = " ".join(text for name, text in final_stage(DOCKERFILES[0]) if name == "RUN")
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"], f"{name} may write {source}"
            else:
                used.add(source)
                if name in OURS:
                    assert f" {target} " in f"{made} ", "made by the image, so that its user owns the volume"
    assert used == set(COMPOSE["volumes"])


def test_the_files_say_that_they_were_never_built() -> None:
    for path in (FILE, *DOCKERFILES):
        assert "never built" in path.read_text("utf-8").lower()


def test_ports_of_health_checks_are_those_of_the_settings() -> None:
    defaults = Settings()
    ports = {
        "api": 8099,
        "ingest": defaults.ingest_metrics_port,
        "controller": defaults.control_metrics_port,
        "monitor": getattr(defaults, "monitor_metrics_port", 8095),
    }
    assert SERVICES["api"]["environment"]["LARDER_API_PORT"] == "8099"
    for name, port in ports.items():
        assert f"http://127.0.0.1:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]
