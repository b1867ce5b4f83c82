"""The list of defences is whole: each test exists, docs/defences.md names them all. Run by tests/mutation_check.py."""

from __future__ import annotations

import re
from pathlib import Path

from tests.defences import DEFENCES

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_names_every_defence_and_its_test() -> None:
    text = (ROOT / "docs" / "defences.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `(\S+)` \|$", text, re.MULTILINE))
    assert rows == {name: defence.test.removeprefix("tests/") for name, defence in DEFENCES.items()}
    assert f"**{len(DEFENCES)} of {len(DEFENCES)} turn a test red.**" in text


def test_every_test_exists() -> None:
    for defence in DEFENCES.values():
        path, _, name = defence.test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), defence.test
