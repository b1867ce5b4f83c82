"""What one run of the command line knows: its global options, and the settings made from them when first asked for."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from feature_repo.settings import Settings


@dataclass
class Session:
    """Global options; `larder COMMAND --help` works even where the settings are broken, as they are read late."""

    config: Path | None = None
    debug: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """The settings: defaults, file, environment, global options."""
        return Settings.load(self.config, **self.overrides)

    def sources(self) -> dict[str, str]:
        """Return, for every setting, where its value came from: default, file, env or option."""
        file = self.config or Path(os.environ.get("LARDER_CONFIG", "larder.toml"))
        in_file = tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}
        found: dict[str, str] = {}
        for name in (f.name for f in fields(Settings)):
            if self.overrides.get(name) is not None:
                found[name] = "option"
            elif f"LARDER_{name.upper()}" in os.environ:
                found[name] = f"env LARDER_{name.upper()}"
            elif name == "data_dir" and "DATA_DIR" in os.environ:
                found[name] = "env DATA_DIR"
            else:
                found[name] = f"file {file}" if name in in_file else "default"
        return found


def settings_of(ctx: typer.Context, dataset: str | None = None) -> Settings:
    """Return the settings of this run.

    Parameters
    ----------
    ctx
        The command's context.
    dataset
        Data set the command works on. Its name is the project's unless a project was named anywhere: two data sets
        must never be mixed in one project by accident.

    Raises
    ------
    SettingsError
        For a setting with an impossible value, or an unknown one in the file.
    """
    session: Session = ctx.find_root().obj
    if dataset is not None and session.sources()["project"] == "default":
        return replace(session.settings, project=dataset)
    return session.settings
