"""The state of watching in one file that is whole or not there: a restart goes on where it was."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from feature_repo.settings import Settings
from monitoring.drift.records import FORMAT, DriftState

_LOG = logging.getLogger(__name__)


def state_path(settings: Settings) -> Path:
    """Where the project's state is."""
    return settings.monitoring_dir / "drift.json"


def read_state(settings: Settings) -> DriftState | None:
    """Read the state; None where there is none, or none this version knows: watching then begins anew."""
    path = state_path(settings)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=DriftState)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        _LOG.warning("%s is no state of drift (%s): begun anew", path, error)
        return None
    return state if state.format == FORMAT else None


def write_state(settings: Settings, state: DriftState) -> None:
    """Replace the state."""
    path = state_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(msgspec.json.encode(state))
    scratch.replace(path)
