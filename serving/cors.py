"""Pages of other origins: which may call the API from a browser (setting `cors_origins`); by default none."""

from __future__ import annotations

import re
from typing import Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from feature_repo.settings import SettingsError

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\-\[\]:]+")


def allowed_origins(setting: str) -> list[str]:
    """Return the origins of the setting.

    Raises
    ------
    SettingsError
        For one that no browser would send: not `*` and not `scheme://host` or `scheme://host:port`.
    """
    origins = [origin.strip() for origin in setting.split(",") if origin.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"setting cors_origins: {origin!r} is no origin; write it as browsers do: https://shop.example, "
                "without a path, in small letters"
            )
    return origins


def install_cors(app: FastAPI, origins: list[str]) -> None:
    """Tell browsers what pages of these origins may do; nothing is added where there are none."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["content-type", "if-none-match", "x-request-id"],
            expose_headers=["etag", "retry-after", "x-request-id"],
        )
