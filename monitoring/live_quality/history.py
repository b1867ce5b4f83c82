"""Keeps what was measured of champions' CTR, longer than the log of what was served is kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from feature_repo.settings import Settings
from monitoring.live_quality.decay import REFERENCE_US, CtrWindow

#: Windows that are kept beside those of the champion's first days.
_NEWEST: Final = 100


def history_path(settings: Settings) -> Path:
    """Where the project's windows are."""
    return settings.root / "monitoring" / "ctr.json"


def read_history(settings: Settings) -> list[CtrWindow]:
    """Return the windows kept, oldest first; none where the file is not there or damaged."""
    try:
        return [CtrWindow(**row) for row in json.loads(history_path(settings).read_text("utf-8"))]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def add_to_history(settings: Settings, window: CtrWindow) -> list[CtrWindow]:
    """Keep one more window and return all; one writer at a time (the monitoring worker).

    Those of earlier champions go, and of this one's all but the first days and the newest.
    """
    mine = [one for one in read_history(settings) if one.bundle_id == window.bundle_id]
    mine = sorted({(one.since_us, one.until_us): one for one in (*mine, window)}.values(), key=lambda one: one.until_us)
    first = [one for one in mine if one.until_us <= mine[0].since_us + REFERENCE_US]
    kept = [*first, *[one for one in mine if one not in first][-_NEWEST:]]
    path = history_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps([asdict(one) for one in kept]), "utf-8")
    scratch.replace(path)
    return kept
