"""The bearer token of the control plane's API, until there are accounts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from feature_repo.settings import Settings
from serving.signature import create_secret, read_secret

ENVIRONMENT: Final = "LARDER_ADMIN_TOKEN"


def token_path(settings: Settings) -> Path:
    """File of the token that an embedded installation made for itself."""
    return settings.home / "admin.token"


def admin_token(settings: Settings) -> bytes:
    """Return the token: of the environment (`LARDER_ADMIN_TOKEN`), else of the embedded installation's file.

    Raises
    ------
    SigningKeyError
        If there is none, or it is too short.
    """
    return read_secret(token_path(settings), ENVIRONMENT, "admin token")


def create_token(settings: Settings) -> bool:
    """Make a random token in the home directory, readable by its owner only, unless there is one; say whether."""
    return create_secret(token_path(settings), ENVIRONMENT)
