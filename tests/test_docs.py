"""The docs do not lie: generated pages are current, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


def larder(*arguments: str) -> str:
    run = [sys.executable, "-m", "larder.cli", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_settings_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make docs` would change nothing."""
    for name in ("DATA_DIR", "LARDER_HOME", "LARDER_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    assert larder("settings", "--markdown") == (ROOT / "docs" / "settings.md").read_text("utf-8")


def test_the_features_page_is_current(tmp_path: Path) -> None:
    """`make docs` would change nothing."""
    larder("features", "describe", "--write", str(tmp_path / "features.md"))
    assert (tmp_path / "features.md").read_text("utf-8") == (ROOT / "docs" / "features.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file or directory that is there."""
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_targets_exist(page: Path) -> None:
    """Every `larder ...` and `make ...` a page tells people to type is one."""
    text = page.read_text("utf-8")
    have = {path.stem for path in (ROOT / "larder" / "commands").glob("*.py")}
    options = r"(?:(?:-p|--project|--home|--config) \S+ )?"
    named = {name.replace("-", "_") for name in re.findall(rf"(?:^|`)larder {options}([a-z-]+)", text, re.MULTILINE)}
    assert named <= have
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
