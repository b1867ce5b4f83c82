"""Starts the ingest worker and the API of a project and waits until both are ready."""

from __future__ import annotations

import time

import httpx
import redis

from larder.services.stack import Stack, project_service


def serve(stack: Stack) -> str:
    """Start what an application needs, on top of a running stack; return the API's base URL."""
    settings = stack.settings
    since = time.time()

    def ingest_ready(port: int) -> bool:
        """See whether the worker publishes its status, which it does from the moment it reads the stream."""
        connection = redis.Redis(settings.redis_host, settings.redis_port, socket_timeout=1.0)
        return connection.get(f"{settings.project}:ingest:status") is not None and time.time() > since

    def api_ready(port: int) -> bool:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == 200

    stack.start(project_service(settings, "ingest", ["ingest", "run"], ready=ingest_ready), wait=False)
    api = stack.start(
        project_service(settings, "api", ["serve", "--port", "{port}"], ready=api_ready, port=settings.api_port),
        wait=False,
    )
    stack.wait()
    return f"http://127.0.0.1:{api.port}"
