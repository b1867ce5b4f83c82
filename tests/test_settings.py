"""Settings: which source wins, what is refused, and that every one is documented."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from feature_repo.settings import Settings, SettingsError
from larder.commands.settings import markdown

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f.name for f in fields(Settings)]


@pytest.fixture(autouse=True)
def _no_settings_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ["DATA_DIR", "LARDER_CONFIG", *(f"LARDER_{name.upper()}" for name in NAMES)]:
        monkeypatch.delenv(name, raising=False)


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load() == Settings()
    (tmp_path / "larder.toml").write_text('api_port = 1\nseed = 1\nhome = "elsewhere"\n')
    assert (Settings.load().api_port, Settings.load().home) == (1, Path("elsewhere"))
    monkeypatch.setenv("LARDER_API_PORT", "2")
    assert (Settings.load().api_port, Settings.load().seed) == (2, 1)
    assert Settings.load(api_port=3, seed=None).api_port == 3
    assert Settings.load(seed=None).seed == 1


def test_the_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("seed = 3\n")
    assert Settings.load(tmp_path / "other.toml").seed == 3
    monkeypatch.setenv("LARDER_CONFIG", str(tmp_path / "other.toml"))
    assert Settings.load().seed == 3
    monkeypatch.setenv("LARDER_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"no settings file at .*missing\.toml"):
        Settings.load()


def test_the_place_of_the_data_has_a_variable_that_other_tools_use_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "shared")
    assert Settings.load().data_dir == Path("shared")
    monkeypatch.setenv("LARDER_DATA_DIR", "own")
    assert Settings.load().data_dir == Path("own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api_prot = 1", "unknown setting 'api_prot'; the settings are: home"),
        ('api_port = "many"', "setting api_port must be int, not 'many'"),
        ("api_port = ", "is not valid TOML"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "larder.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.load()


def test_every_setting_is_documented() -> None:
    for f in fields(Settings):
        assert f.metadata["doc"].endswith(".")
        assert f"| `{f.name}` |" in markdown()


def test_the_page_in_docs_is_the_generated_one() -> None:
    page = ROOT / "docs" / "settings.md"
    assert page.read_text("utf-8") == markdown() + "\n", "run `make docs`"


def test_projects_do_not_share_paths() -> None:
    one, other = Settings(project="one"), Settings(project="other")
    paths = [
        "root",
        "events_dir",
        "offline_dir",
        "items_path",
        "bundles_dir",
        "registry_uri",
        "platform_uri",
        "plan_path",
    ]
    assert all(getattr(one, path) != getattr(other, path) for path in paths)
    assert one.model_name != other.model_name


def test_feasts_registry_is_a_file_or_postgresql() -> None:
    assert Settings(project="shop").registry_uri.startswith("sqlite:///")
    for url in ("postgresql://larder@db:5432/feast", "postgresql+psycopg://larder@db:5432/feast"):
        assert Settings(registry_url=url).registry_uri == "postgresql+psycopg://larder@db:5432/feast"
    for wrong in ("mysql://db/feast", "feast", "postgresql://"):
        with pytest.raises(SettingsError, match="registry_url must look like"):
            _ = Settings(registry_url=wrong).registry_uri


def test_every_setting_does_something() -> None:
    """A setting that no code reads would be a promise nobody keeps."""
    root = Path(__file__).parent.parent
    folders = ("feature_repo", "serving", "training", "deployment", "larder")
    text = "\n".join(path.read_text("utf-8") for folder in folders for path in (root / folder).rglob("*.py"))
    unread = [f.name for f in fields(Settings) if not re.search(rf"(settings|self)\.{f.name}\b", text)]
    assert unread == []
