"""Finds a rollout's profile by name: the project's own file first, then the shipped one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from deployment.rollout.profile import RolloutProfile, read_profile
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings

SHIPPED: Final = Path(__file__).with_name("profiles.toml")


def profile_path(settings: Settings) -> Path:
    """Return the place of a project's own profiles."""
    return settings.root / "profiles.toml"


def load_profile(settings: Settings, name: str) -> RolloutProfile:
    """Read a profile. Values of the project's file replace those of a shipped profile of the same name.

    Raises
    ------
    NotFoundError
        If there is no profile of that name.
    BadInputError
        If a file is no TOML, or the profile cannot be meant.
    """
    shipped, own = _read(SHIPPED), _read(profile_path(settings))
    if name not in shipped and name not in own:
        known = ", ".join(sorted({*shipped, *own}))
        raise NotFoundError(f"there is no rollout profile {name!r}; there are: {known}")
    return read_profile(name, _merged(shipped.get(name, {}), own.get(name, {})))


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    values = dict(under)
    for name, value in over.items():
        old = values.get(name)
        values[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is not valid TOML: {error}") from None
    for name, value in tables.items():
        if not isinstance(value, dict):
            raise BadInputError(f"{path}: {name!r} is outside any profile; profiles are tables such as [production]")
    return tables
