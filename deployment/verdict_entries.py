"""Verdicts in the ledger: whoever judged hands them in here, and promotion takes them from here."""

from __future__ import annotations

from datetime import datetime

from deployment.store.chain import canonical
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from deployment.verdict import Verdict


def record_verdict(store: ControlStore, verdict: Verdict, who: str, now: datetime) -> None:
    """Append a verdict to the ledger, unless it is the newest one on that bundle already."""
    document = verdict.to_dict()
    known = store.verdict(verdict.bundle_id) if verdict.bundle_id else None
    if known is not None and canonical(known.body["verdict"]) == canonical(document):
        return
    word = "passed" if verdict.passed else "not passed"
    why = f"version {verdict.version} was judged: {word}"
    store.append(NewEntry(who, "verdict", why, verdict.bundle_id, verdict.version, {"verdict": document}), now)


def recorded_verdict(store: ControlStore, bundle_id: str, champion: str) -> Verdict | None:
    """Return the newest verdict on a bundle from the ledger.

    None if there is none, or if it compared the bundle with another champion.

    Parameters
    ----------
    champion
        Version of the champion of now; empty if there is none.

    Raises
    ------
    LedgerBrokenError
        If it is not what the gate wrote.
    """
    entry = store.verdict(bundle_id) if bundle_id else None
    if entry is None:
        return None
    document = entry.body["verdict"]
    if document.get("champion_version", champion) != champion:
        return None
    return Verdict.from_dict(document)
