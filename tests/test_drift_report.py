"""Evidently's reports: made of our findings, boxed in, shown by a real browser, from a file and by the API."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from deployment.store.signals import SignalStore
from feature_repo.settings import Settings
from larder.benches.drift_shifts import Shift
from larder.services.ports import HOST, any_free_port
from larder.watching.drift_check import DriftCheck
from tests.chromium import chromium_page
from tests.drifting_shop import RULES, WINDOW_MINUTES, make_drifting_shop
from tests.running_api import RunningApi, open_shop, wait_until
from tests.test_rollout_page import EVIL

pytestmark = pytest.mark.faults


def test_reports_are_made_boxed_in_and_shown(settings: Settings, redis_url: str) -> None:
    settings = replace(settings, drift_window_minutes=WINDOW_MINUTES, threads=1)
    shop = make_drifting_shop(settings)
    broken = Shift("broken", feature="f_item_price", wrong=lambda column: column * 100)
    for window in range(3):
        shop.serve(window, broken if window else None, category=EVIL)
    judged = DriftCheck(settings, SignalStore(settings), rules=RULES).run(shop.end_us(3))
    assert len(judged) == 3
    pages = sorted(settings.reports_dir.glob("drift-*.html"))
    assert len(pages) == 3
    text = pages[-1].read_text("utf-8")
    assert EVIL not in text
    assert "f_item_price" in text
    assert "default-src &#x27;none&#x27;" in text.partition("<style")[0]
    assert list(settings.evidently_dir.glob("*/snapshots/*.json"))

    with chromium_page() as page:
        page.open((settings.reports_dir / "index.html").as_uri(), width=1200)
        page.wait_until("document.querySelectorAll('iframe').length === 3")
        assert page.value("document.body.innerText.includes('features/f_item_price')")
        assert page.value("document.querySelector('iframe').contentDocument === null"), "the frame is no origin of ours"
        page.open(pages[-1].as_uri(), width=1200)
        page.wait_until("document.body.innerText.includes('f_item_price')")
        assert {url for url in page.requests if url.startswith(("http:", "https:"))} == set()

    with redis.Redis(HOST, settings.redis_port) as client:
        open_shop(client=client, settings=settings)
    with RunningApi(settings) as api:
        index = api.http.get("/monitor/reports/")
        assert index.status_code == 200
        report = api.http.get(f"/monitor/reports/{pages[-1].name}")
        assert report.headers["content-security-policy"].startswith("sandbox allow-scripts;")
        for name in ("..%2Fdrift.json", "drift.json", "drift-2026.html", "%2e%2e/worker.json"):
            assert api.http.get(f"/monitor/reports/{name}").status_code == 404
        assert httpx.get(f"{api.http.base_url}/monitor/reports/", headers={"Host": "shop.example"}).status_code == 403
        with chromium_page() as page:
            page.open(f"{api.http.base_url}/monitor/reports/", width=1200)
            page.wait_until("document.querySelectorAll('iframe').length === 3")
            if place := os.environ.get("LARDER_SCREENSHOT"):
                import time

                time.sleep(8)
                shutil.copytree(settings.reports_dir, Path(place).with_suffix(".reports"), dirs_exist_ok=True)
                page.screenshot(Path(place))
            assert {url for url in page.requests if not url.startswith(str(api.http.base_url))} <= set()


def test_evidentlys_ui_shows_the_workspace(tmp_path: Path) -> None:
    settings, port = Settings(home=tmp_path), any_free_port()
    settings.evidently_dir.mkdir()
    command = [sys.executable, "-m", "larder.cli", "--home", str(tmp_path), "monitor", "ui", "--port", str(port)]
    with closing(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5.0)) as http:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:

            def answers() -> bool:
                try:
                    return http.get("/api/projects").status_code == 200
                except httpx.HTTPError:
                    return False

            wait_until(answers, 120)
        finally:
            process.terminate()
            process.wait(60)
