"""Verdicts on this machine: kept before MLflow hears of them, so that no judgement is lost with a connection."""

from __future__ import annotations

from pathlib import Path

from deployment.sealed_verdict import open_verdict, seal_verdict
from deployment.verdict import Verdict
from deployment.verdict_report import verdict_page
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings


def verdict_path(settings: Settings, version: str) -> Path:
    """Place of a version's signed verdict; its page lies beside it, as `.html`."""
    return settings.root / "verdicts" / f"v{version}.json"


def keep_verdict(settings: Settings, verdict: Verdict, key: bytes) -> tuple[bytes, str]:
    """Write a verdict, signed, and its page; return both."""
    path = verdict_path(settings, verdict.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed, page = seal_verdict(verdict, key), verdict_page(verdict)
    for target, data in ((path.with_suffix(".html"), page.encode()), (path, sealed)):
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_bytes(data)
        temporary.replace(target)
    return sealed, page


def kept_verdict(settings: Settings, version: str, key: bytes) -> Verdict | None:
    """Return a version's last verdict; None if there is none that this installation signed."""
    try:
        return open_verdict(verdict_path(settings, version).read_bytes(), key)
    except (FileNotFoundError, BadInputError):
        return None
