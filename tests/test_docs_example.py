"""The example of docs/gate.md, run as it stands on a small shop with a real MLflow server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.settings import Settings
from larder.services.process import RunningService
from tests.gated_shop import CONFIG, make_gated_shop
from tests.tiny_bundle import small_line_up

DOC = Path(__file__).resolve().parents[1] / "docs" / "gate.md"
SECTION = "## Train your own ranker and register it"


def blocks(text: str) -> list[str]:
    """Python blocks of the section, in order."""
    section = text[text.index(SECTION) :]
    return re.findall(r"```python\n(.*?)```", section[: section.index("\n## ", 1)], re.DOTALL)


@pytest.fixture
def settings(
    tmp_path: Path, redis_server: RunningService, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings that `Settings.load()` of the example finds in the environment."""
    shop = Settings(
        home=tmp_path,
        project="example",
        redis_port=redis_server.port,
        redis_timeout_ms=1000,
        mlflow_tracking_uri=mlflow_server,
    )
    for name in ("home", "project", "redis_port", "redis_timeout_ms", "mlflow_tracking_uri"):
        monkeypatch.setenv(f"LARDER_{name.upper()}", str(getattr(shop, name)))
    before = {name: os.environ.get(name) for name in os.environ if name.startswith("MLFLOW_")}
    yield shop
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        os.environ.pop(name)
    os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.mark.filterwarnings("ignore")  # MLflow's, which a data scientist sees, too
def test_the_example_runs_as_it_stands(settings: Settings) -> None:
    """Frame, training, MLflow, registration, gate: the version has a verdict, and the bundle it was composed into."""
    make_gated_shop(settings, config=replace(CONFIG, line_up=small_line_up(factors=16, iterations=5)))
    code = blocks(DOC.read_text("utf-8"))
    assert len(code) == 4
    seen: dict[str, Any] = {}
    for block in code:
        exec(compile(block, str(DOC), "exec"), seen)  # noqa: S102 - our own documentation
    assert seen["tags"]["larder.verdict"] == "passed", seen["tags"]["larder.verdict_reason"]
    assert seen["looked"].verdicts[0].bundle_id == seen["tags"]["larder.bundle_id"]
    assert (settings.root / "verdicts" / f"v{seen['version'].version}.html").is_file()
