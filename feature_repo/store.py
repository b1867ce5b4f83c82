"""Opens Feast's `FeatureStore` for a project: `feature_store.yaml` filled from the settings."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped] # its stubs are not among our dependencies

from feature_repo.errors import BadInputError
from feature_repo.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig

REPOSITORY = Path(__file__).parent
_METRICS_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")


def import_feast() -> None:
    """Import Feast without its side effect on Prometheus, and without recompiling its classes.

    Feast's import switches prometheus_client to multi-process files for this process and, by the environment, for all
    its children: an API started from here would lose its own metrics. Only Feast's feature server needs that.

    Its classes are decorated with `typeguard.typechecked`, which parses and compiles each of them anew: 4 of the 6
    seconds the import takes. The check is of the types of arguments, and typeguard itself leaves it out under
    `python -O`; so do we. Our definitions are checked by the `feast` command line, which imports Feast by itself.
    """
    if "feast" in sys.modules:
        return
    import prometheus_client.values  # noqa: F401 - decides on its mode at import: before Feast sets the variables
    import typeguard

    before = {name: os.environ[name] for name in _METRICS_VARIABLES if name in os.environ}
    checked = typeguard.typechecked
    typeguard.typechecked = _unchecked
    try:
        import feast  # noqa: F401 - imported for the effect that is undone below
    finally:
        typeguard.typechecked = checked

    for name in _METRICS_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(before)


def _unchecked(target: Any = None, **options: Any) -> Any:
    """Stand in for `typeguard.typechecked` as under `python -O`: also as a decorator with options."""
    return target if target is not None else _unchecked


def feast_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables `feature_store.yaml` is filled from; with them Feast's own command line works.

    Raises
    ------
    BadInputError
        If the project's name is none for Feast.
    """
    if not re.fullmatch(r"[A-Za-z0-9]\w*", settings.project, re.ASCII):
        raise BadInputError(
            f"project name {settings.project!r} cannot be used with Feast: "
            "it may have letters, digits and underscores only, and not begin with an underscore"
        )
    return {
        "LARDER_PROJECT": settings.project,
        "LARDER_REGISTRY_URI": settings.registry_uri,
        "LARDER_OFFLINE_DIR": str(settings.offline_dir.resolve()),
        "LARDER_REDIS_HOST": settings.redis_host,
        "LARDER_REDIS_PORT": str(settings.redis_port),
        "LARDER_REDIS_CLUSTER": str(settings.redis_cluster).lower(),
        "LARDER_REDIS_TIMEOUT_MS": str(settings.redis_timeout_ms),
    }


def repo_config(settings: Settings) -> RepoConfig:
    """Return Feast's configuration of a project."""
    import_feast()
    from feast import RepoConfig

    text = (REPOSITORY / "feature_store.yaml").read_text("utf-8")
    config = RepoConfig(**yaml.safe_load(Template(text).substitute(feast_environment(settings))))
    config.repo_path = REPOSITORY
    return config


def open_store(settings: Settings) -> FeatureStore:
    """Open the project's feature store.

    Raises
    ------
    BadInputError
        If the project's name is none for Feast.
    """
    import_feast()
    from feast import FeatureStore

    settings.root.mkdir(parents=True, exist_ok=True)  # the registry's database is made there
    return FeatureStore(config=repo_config(settings))


def apply(settings: Settings) -> FeatureStore:
    """Bring the project's registry in line with feature_definitions.py and return its store. Idempotent."""
    import_feast()
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    from feature_repo import feature_definitions

    store = open_store(settings)
    wanted = [
        value
        for value in vars(feature_definitions).values()
        if isinstance(value, Entity | FeatureView | OnDemandFeatureView | FeatureService)
    ]
    registry, names = store.registry, {value.name for value in wanted}
    registered = [
        *registry.list_feature_services(settings.project),
        *registry.list_all_feature_views(settings.project),
        *registry.list_entities(settings.project),
    ]
    gone = [value for value in registered if value.name not in names and not value.name.startswith("__")]
    with warnings.catch_warnings():
        # That on-demand views are experimental, which is known: docs/decisions.
        warnings.filterwarnings("ignore", "On demand feature view is an experimental feature", RuntimeWarning)
        store.apply(wanted, objects_to_delete=gone, partial=False)
    return store
