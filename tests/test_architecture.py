"""The rules of the layout, checked on every file: who may import whom, what pure files may do, names and sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Package -> what of ours it may import besides itself (prefixes of modules). Nobody imports `larder`.
MAY_IMPORT = {
    "feature_repo": (),
    "serving": ("feature_repo",),
    "training": ("feature_repo", "serving.cascade", "serving.candidates", "serving.bundle"),
    "deployment": (
        "feature_repo", "training", "serving.cascade", "serving.candidates", "serving.bundle", "serving.plan",
        "serving.impressions", "serving.signature", "serving.assignment", "serving.rollout_status", "serving.problems",
        "serving.loopback", "serving.rollout_page", "monitoring.signals",
    ),
    "monitoring": ("feature_repo", "serving.bundle", "serving.impressions"),
    "load_tests": ("larder_client",),
    "larder_client": (),
    "larder": ("feature_repo", "serving", "training", "deployment", "monitoring", "load_tests", "larder_client"),
}  # fmt: skip

#: Libraries that take long to import, and the only files that may (the adapters). "top": also at module level, where
#: the file is nothing without the library; such a file is itself imported where it is used.
HEAVY = {
    "feast", "mlflow", "evidently", "catboost", "lightgbm", "xgboost", "implicit", "faiss", "torch", "jax", "shap",
    "opentelemetry", "optax", "onnxruntime", "tokenizers", "sentence_transformers", "huggingface_hub", "optuna",
}  # fmt: skip
ADAPTERS = {
    "deployment/registry.py": {"mlflow"},
    "feature_repo/store.py": {"feast"},
    "larder/benches/offline_joins.py": {"feast"},
    "larder/benches/feature_reads.py": {"feast"},
    "larder/benches/feature_writes.py": {"feast"},
    "larder/benches/popularity_bundle.py": {"lightgbm"},
    "larder/benches/vector_index.py": {"faiss"},
    "larder/story/weighted.py": {"catboost"},
    "monitoring/evidently_report.py": {"evidently"},
    "serving/bundle.py": {"catboost", "lightgbm", "xgboost"},
    "serving/candidates/vector_index.py": {"faiss"},
    "training/classifiers.py": {"catboost", "lightgbm", "xgboost"},
    "training/comparison_tracking.py": {"mlflow"},
    "training/encoders/onnx_encoder.py": {"huggingface_hub", "onnxruntime", "tokenizers"},
    "training/encoders/sentence_transformer_encoder.py": {"sentence_transformers"},
    "training/generators/info_nce.py": {"jax", "optax"},
    "training/generators/als.py": {"implicit"},
    "training/rankers/catboost_ranker.py": {"catboost"},
    "training/rankers/lambdarank.py": {"lightgbm"},
    "training/search_study.py": {"optuna"},
    "training/search_tracking.py": {"mlflow"},
    "training/tracking.py": {"mlflow"},
}
ADAPTERS_TOP = {
    "feature_repo/feast_reads.py": {"feast"},
    "feature_repo/feature_definitions.py": {"feast"},
    "feature_repo/protobuf_rows.py": {"feast"},
    "feature_repo/arrow_rows.py": {"feast"},
    "feature_repo/batch_engine.py": {"feast"},
    "feature_repo/offline_store.py": {"feast"},
    "feature_repo/retrieval_job.py": {"feast"},
    "feature_repo/online_store.py": {"feast"},
    "serving/trace_spans.py": {"opentelemetry"},
}

#: What a pure file may not import: I/O, clock, environment, network, the global random state, service clients.
IMPURE_MODULES = {
    "asyncio", "duckdb", "fastapi", "httpx", "logging", "multiprocessing", "os", "random", "redis", "requests",
    "secrets", "shutil", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
} | HEAVY  # fmt: skip
IMPURE_CALLS = {"open", "input", "print", "exec", "eval"}
IMPURE_METHODS = {
    "now", "utcnow", "today", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink", "read_table",
    "write_table", "read_parquet", "to_parquet",
}  # fmt: skip
#: Names in files with I/O that themselves do none, and that pure files may therefore import; so may constants.
PURE_NAMES = {
    "feature_repo.datasets.Dataset": "a table type",
    "serving.plan.Plan": "a record",
    "serving.plan.Arm": "a record",
    "feature_repo.datasets.make_dataset": "sorts and casts tables in memory",
}
#: All of `numpy.random` that is not its global, unseeded state.
SEEDED = {"Generator", "default_rng", "SeedSequence", "PCG64", "Philox"}

SKIPPED = {"__pycache__", "build", "dist", "catboost_info"}


def tracked(pattern: str = "*") -> Iterator[Path]:
    """Files of the project, without what tools and Larder itself write."""
    for path in sorted(ROOT.rglob(pattern)):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part not in {".ci", ".feastignore", ".gitignore"} for part in parts)
        if path.is_file() and not hidden and not SKIPPED & set(parts) and ".egg-info" not in str(path):
            yield path


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Every imported module; `from a import b` counts as `a.b`, as b may be a module."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def top_level(node: ast.AST) -> Iterator[str]:
    """Modules imported when the file is imported: not in functions, not for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield from imports(child)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from top_level(child)


def below(module: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


SOURCES = [path for package in MAY_IMPORT for path in tracked(f"{package}/**/*.py")]
PURE = [p for p in SOURCES if re.search(r"\bPURE\b", "\n".join(p.read_text("utf-8").splitlines()[:10]))]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20
    assert len(PURE) > 2


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {module for module in imports(tree(path)) if below(module, (*MAY_IMPORT, "tests"))}
    forbidden = sorted(module for module in ours if not below(module, (package, *MAY_IMPORT[package])))
    assert not forbidden, f"{package} may import {MAY_IMPORT[package] or 'nothing of ours'}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_stay_in_adapters(path: Path) -> None:
    """A new adapter is entered in ADAPTERS above: that is the moment to think whether it is one."""
    used = {module.partition(".")[0] for module in imports(tree(path))} & HEAVY
    at_top = {module.partition(".")[0] for module in top_level(tree(path))} & HEAVY
    allowed_at_top = ADAPTERS_TOP.get(name_of(path), set())
    assert used <= ADAPTERS.get(name_of(path), set()) | allowed_at_top
    assert at_top <= allowed_at_top


def test_every_listed_adapter_exists() -> None:
    assert [name for name in {**ADAPTERS, **ADAPTERS_TOP} if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_files_are_pure(path: Path) -> None:
    found = {module for module in imports(tree(path)) if below(module, IMPURE_MODULES)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.add(f"{node.func.id}()")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if name in IMPURE_METHODS or (name == "default_rng" and not node.args):
                found.add(f".{name}()")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"np.random", "numpy.random"}:
            found |= {f"np.random.{node.attr}"} - {f"np.random.{name}" for name in SEEDED}
    assert not found


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_files_import_only_pure_files_of_ours(path: Path) -> None:
    pure = {name_of(p).removesuffix(".py").replace("/", ".") for p in PURE} | set(PURE_NAMES)
    ours = {module for module in imports(tree(path)) if below(module, tuple(MAY_IMPORT))}
    packages = {name_of(p.parent).replace("/", ".") for p in PURE}
    names = {module for module in ours if not below(module, pure) and module not in packages}
    assert not {name for name in names if not name.rpartition(".")[2].isupper()}


def test_the_folder_mlflow_holds_no_python() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_no_vague_module_names() -> None:
    vague = {"util", "utils", "common", "helper", "helpers", "manager", "misc"}
    assert not [name_of(p) for p in tracked("*.py") if vague & set(re.split(r"[/_.]", name_of(p)))]


def test_files_are_short() -> None:
    assert not [name_of(p) for p in tracked("*.py") if len(p.read_text("utf-8").splitlines()) > 400]


def test_package_files_are_empty_and_complete() -> None:
    assert not [name_of(p) for p in tracked("__init__.py") if p.stat().st_size]
    assert not [name_of(p) for p in SOURCES if not (p.parent / "__init__.py").exists()]


def test_nothing_of_one_machine_is_in_any_file() -> None:
    places = ("/ro" + "ot/", "/wo" + "rk/", "/opt/" + "pypi", "/opt/" + "wheels", "/ho" + "me/", "/Us" + "ers/")
    hosts = ("pypi" + ".org", "python" + "hosted", "npm" + "js.", "regis" + "try-1.", "artifact" + "ory")
    found = {}
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # an image
        if hits := [word for word in places + hosts if word in text]:
            found[name_of(path)] = hits
    assert not found


def test_the_command_line_starts_without_heavy_libraries() -> None:
    """What `larder --help` imports; the time itself is measured in test_cli.py."""
    slow = sorted(HEAVY | {"pandas", "numpy", "pyarrow", "numba", "scipy", "rich"})
    code = f"""
import sys
from larder.cli import main
sys.argv = ["larder", "--help"]
try:
    main()
except SystemExit:
    print("SLOW", [name for name in {slow} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "SLOW []"
