"""Whether the ledger is what was written, and as new as what was published."""

from __future__ import annotations

from deployment.publication import published_epoch
from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerBrokenError
from feature_repo.settings import Settings


def verify_ledger(settings: Settings, store: ControlStore, key: bytes) -> int:
    """Check the ledger as `ControlStore.verify` does, and that no newer plan was published than it knows of.

    A database put back as a whole to an older state is consistent in itself; the published plan tells.

    Returns
    -------
    int
        Number of entries.

    Raises
    ------
    LedgerBrokenError
        Naming the first broken entry, or saying that the end is missing.
    """
    count, seen, plan = store.verify(), published_epoch(settings, key), store.plan()
    epoch = plan.epoch if plan else 0
    if seen > epoch:
        raise LedgerBrokenError(
            f"a plan of epoch {seen} was published, but the ledger of {count} entries ends at epoch {epoch}: entry "
            f"{count + 1} and what followed are missing, as in a database restored from an old copy"
        )
    return count
