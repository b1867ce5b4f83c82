"""Schemathesis against the real process: whatever the OpenAPI document allows or forbids, answers are as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import redis

from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from tests.running_api import open_shop, wait_until
from tests.test_serve_command import ready, serving

pytestmark = pytest.mark.faults

CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Generated requests for each operation, besides its examples and the edges of its schema.
EXAMPLES = 60


def test_answers_are_as_the_document_says(settings: Settings, tmp_path: Path) -> None:
    """No 5xx, no undocumented status or content type, schemas kept, wrong data and methods refused."""
    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(settings, client)
    port = any_free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(settings, port) as process:
        wait_until(lambda: ready(url) or process.poll() is not None, timeout_s=30)
        operations = sum(len(methods) for methods in httpx.get(f"{url}/openapi.json").json()["paths"].values())
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json",
                "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES),
                "--generation-deterministic", "--max-response-time", "5", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        print(done.stdout)
        assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
        process.terminate()
        log, _ = process.communicate(timeout=20)
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    assert f"Operations:       {operations} selected / {operations} total" in done.stdout
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 40 * operations
    assert "Traceback" not in log, log[-4_000:]
