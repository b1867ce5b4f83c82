"""Makes sure a project has data: imports its data set unless it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from feature_repo.errors import NotFoundError
from feature_repo.settings import Settings
from larder.progress import progress


def ensure_data(
    settings: Settings, dataset: str, *, end: datetime | None = None, options: Mapping[str, int] | None = None
) -> str:
    """Import a data set if the project has none, and return the hash of the project's data.

    Parameters
    ----------
    end
        Move all times by whole weeks up to this time; None keeps the publisher's.
    options
        Options of the data set (the simulator's `n_events` and `seed`).
    """
    from feature_repo.datasets import load_dataset, shift_to, write_dataset
    from feature_repo.event_log import read_report

    try:
        report = read_report(settings)
    except NotFoundError:
        with progress(f"import {dataset}"):
            loaded = load_dataset(dataset, settings, **(options or {}))
            report = write_dataset(loaded if end is None else shift_to(loaded, end), settings)
    return data_hash(settings, report.data_hash, report.last_seq)


def data_hash(settings: Settings, imported: str, last_seq: int) -> str:
    """Hash of imported data and of the live events since; the imported hash itself where there are none."""
    from feature_repo.datasets import read_events

    live = read_events(settings, since_seq=last_seq, columns=["seq", "event_id"])
    if not live.num_rows:
        return imported
    digest = hashlib.sha256(imported.encode())
    for event_id in live["event_id"].to_pylist():
        digest.update(event_id.encode() + b"\n")
    return digest.hexdigest()
