"""Starts the ingest worker and the API of a project and waits until both are ready."""

from __future__ import annotations

import time

import httpx

from feature_repo.ingest import read_status
from feature_repo.redis_scripts import connect
from larder.services.stack import Stack, project_service

#: The worker publishes its status once a second from the moment it reads the stream.
_FRESH_MS = 3000


def serve(stack: Stack) -> str:
    """Start what an application needs, on top of a running stack; return the API's base URL."""
    settings = stack.settings

    def ingest_ready(port: int) -> bool:
        with connect(settings, timeout_ms=1000) as connection:
            status = read_status(connection, settings.project)
        return status is not None and time.time() * 1e3 - status.updated_ms < _FRESH_MS

    def api_ready(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    stack.start(project_service(settings, "ingest", ["ingest", "run"], ready=ingest_ready), wait=False)
    api = stack.start(
        project_service(settings, "api", ["serve", "--port", "{port}"], ready=api_ready, port=settings.api_port),
        wait=False,
    )
    stack.wait()
    return f"http://127.0.0.1:{api.port}"
