"""The live quality page and command: every text escaped, nothing loaded, charts that show what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from larder.watching.quality import print_report
from larder.when import duration_us, moment_us
from monitoring.live_quality.measure import Extent, measure
from monitoring.live_quality.page import quality_page
from monitoring.live_quality.report import Group, Point, QualityReport
from tests.answered_shop import NOW_US, random_shop
from tests.chromium import chromium_page

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>&"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    settings = Settings(home=tmp_path_factory.mktemp("quality"), project="shop")
    random_shop(settings, 4)
    return measure(settings, NOW_US, Extent())


def evil(report: QualityReport) -> QualityReport:
    """The same report with markup in every text that comes from data."""

    def group(one: Group) -> Group:
        return replace(one, bundle_id=EVIL, model_version=EVIL, arm=EVIL)

    def points(some: tuple[Point, ...], *, at: str | None = None) -> tuple[Point, ...]:
        return tuple(replace(one, bundle_id=EVIL, arm=EVIL, at=one.at if at is None else at) for one in some)

    return replace(
        report, project=EVIL, target=EVIL, groups=tuple(map(group, report.groups[:4])), by_time=points(report.by_time),
        by_rank=points(report.by_rank), reliability=points(report.reliability), left_out={EVIL: 1},
        by_category=points(report.by_category, at=EVIL),
    )  # fmt: skip


def test_no_text_of_the_data_becomes_markup(report: QualityReport) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    page = quality_page(evil(report))
    Reader().feed(page)
    assert "alert(1)" in page
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in tags}
    assert not [
        name for _, attributes in tags for name in attributes if name.startswith("on") or name in ("src", "href")
    ]
    policy = next(found["content"] for tag, found in tags if tag == "meta" and "http-equiv" in found)
    assert policy.startswith("default-src 'none';")


def test_a_browser_shows_it_in_a_sandbox(report: QualityReport, tmp_path: Path) -> None:
    page = quality_page(report)
    (tmp_path / "quality.html").write_text(page, "utf-8")
    (tmp_path / "frame.html").write_text("<iframe sandbox src=quality.html width=1200 height=900></iframe>", "utf-8")
    with chromium_page() as browser:
        browser.open((tmp_path / "quality.html").as_uri())
        browser.wait_until("document.querySelectorAll('svg').length === 3")
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.value("[...document.querySelectorAll('.line')].every(one => one.getBBox().width > 0)")
        asked = list(browser.requests)
        browser.open((tmp_path / "frame.html").as_uri())
        browser.wait_until("document.querySelectorAll('iframe').length === 1")
        assert not browser.complaints
    assert [url for url in asked if not url.endswith("quality.html")] == [], "it needs nothing else"
    for group in report.of("all"):
        value = group.figures["ctr"].value
        assert f"{value:.2%}" in page


def test_charts_survive_what_can_happen(report: QualityReport) -> None:
    nothing = replace(report, groups=(), by_time=(), by_rank=(), reliability=(), by_category=(), settled=())
    assert quality_page(nothing).count("Nothing to draw") == 3
    one = replace(report, by_time=report.by_time[:1], reliability=())
    assert "nan" not in re.sub(r"<title>.*?</title>", "", quality_page(one)).lower()


def test_the_command_leaves_report_page_and_gauges(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project="shop")
    random_shop(settings, 6, lists=40)
    larder = [sys.executable, "-m", "larder.cli", "--home", str(tmp_path), "--project", "shop", "monitor", "quality"]
    options = ["--json", "--since", "2026-03-06T00:00:00Z", "--html", str(tmp_path / "mine.html")]
    done = subprocess.run([*larder, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((settings.root / "monitoring" / "quality.json").read_text("utf-8"))
    assert {"ctr", "ndcg", "f1"} <= set(report["groups"][0]["figures"])
    assert "<svg" in (tmp_path / "mine.html").read_text("utf-8")
    assert "larder_quality_value" in (settings.root / "metrics" / "quality.prom").read_text("utf-8")
    assert not list(settings.root.glob(".quality-*")), "scratch is gone"
    assert "html" not in done.stdout


def test_the_printed_table_has_intervals(report: QualityReport, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report)
    shown = capsys.readouterr().out
    assert re.search(r"^  ctr +0\.\d+ \[0\.\d+, 0\.\d+\]", shown, re.MULTILINE)
    assert re.search(r"^  not counted: \d+ confirm events \(other_user\)", shown, re.MULTILINE)


def test_times_are_ages_or_moments_with_a_zone() -> None:
    assert duration_us("90s", "--window") == 90_000_000
    assert moment_us("1970-01-02T00:00:00Z", "--since") == 86_400_000_000
    assert moment_us(None, "--since") == 0
    assert abs(moment_us("2h", "--since") - (time.time_ns() // 1000 - 7_200_000_000)) < 60_000_000
    for bad in ("soon", "2026-03-06", "7"):
        with pytest.raises(BadInputError, match="--since must be"):
            moment_us(bad, "--since")
    with pytest.raises(BadInputError, match="--window must be"):
        duration_us("2026-03-06T00:00:00Z", "--window")
