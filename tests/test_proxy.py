"""The reverse proxy's configuration: its policies always, its syntax where HAProxy is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving.problems import RETRY_AFTER_S
from serving.request_id import _PLAIN
from serving.schemas import MAX_BODY_BYTES

CONFIG = Path(__file__).resolve().parents[1] / "deployment" / "proxy" / "haproxy.cfg"


def haproxy() -> str:
    """HAProxy's program; skips where there is none."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("HAProxy is not installed here")
    return found


def directives() -> list[str]:
    lines = (line.strip() for line in CONFIG.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_slow_clients_have_a_limit_of_time() -> None:
    timeouts = dict(re.findall(r"^timeout (\S+) (\S+)$", "\n".join(directives()), re.MULTILINE))
    assert set(timeouts) == {"http-request", "http-keep-alive", "client", "connect", "server", "queue"}
    assert "http-request wait-for-body time 10s if METH_POST" in directives()


def test_only_what_is_named_is_public() -> None:
    """An allow-list: nobody need think of every way to write /admin."""
    public = " ".join(line.split(" ", 3)[3] for line in directives() if line.startswith("acl public path "))
    assert set(public.split()) == {"-m", "beg", "/v1/", "/docs/assets/", "/docs", "/openapi.json", "/livez"}
    [refusal] = [line for line in directives() if line.startswith("http-request return status 404")]
    assert refusal.endswith("unless public")


def test_it_agrees_with_the_api() -> None:
    text = CONFIG.read_text("utf-8")
    assert f"req.hdr_val(content-length) gt {MAX_BODY_BYTES} " in text
    assert f"-m reg ^{_PLAIN.pattern.decode()}$" in text
    assert f"hdr Retry-After {RETRY_AFTER_S}\n" in text
    assert "option httpchk GET /readyz" in text
    assert text.index("del-header X-Forwarded-For") < text.index("option forwardfor")


def test_haproxy_takes_it() -> None:
    done = subprocess.run(
        [haproxy(), "-c", "-f", CONFIG],
        env=os.environ | {"LARDER_PROXY_BIND": "127.0.0.1:8080", "LARDER_API": "127.0.0.1:8099"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
