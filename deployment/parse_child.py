"""The process that parses what others made, so that nobody else is the first: `python -m deployment.parse_child`.

Reads one request per line (JSON), answers each with one line. Every request is parsed in a fork of its own, with limits
on processor time, memory and files, and a deadline: a damaged LightGBM file aborts its process, or loops for ever
(TRAPS). Started by `deployment/parser.py` with an empty environment: it holds no secret that could be taken.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import select
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_repo.errors import LarderError
from serving.bundle import load_bundle, load_ranker
from serving.cascade.ranker import Calibration, FirstColumns, TreeRanker
from serving.cascade.recommender import Ranker

_KNOTS: Final = Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
#: Rows a model is tried on beside its golden ones: nulls, zeros, and numbers around them.
_TRIED: Final = 32
_OPEN_FILES: Final = 256


def main() -> None:
    """Answer until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    for line in sys.stdin:
        request = json.loads(line)
        for library in request["libraries"]:
            import_module(library)  # before the fork: not again for every file, and not within its limits
        answers.write(json.dumps(_in_fork(request)) + "\n")
        answers.flush()


def _in_fork(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(request, writing)
    os.close(writing)
    data, late = _read_until(reading, time.monotonic() + request["seconds"])
    os.close(reading)
    if late:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late:
        return {"error": f"it was not parsed within {request['seconds']:.0f} s"}
    if code < 0:
        return {"error": f"it ended the process that parsed it ({signal.Signals(-code).name})"}
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        return {"error": f"the process that parsed it ended without an answer (code {code})"}
    return answer


def _read_until(pipe: int, deadline: float) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return b"", True
        part = os.read(pipe, 1 << 20)
        if not part:
            return b"".join(parts), False
        parts.append(part)


def _work(request: dict[str, Any], pipe: int) -> None:
    """Parse within limits, write the answer, end."""
    code = 1
    try:
        _limit(request)
        try:
            answer = _parse(request)
        except LarderError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "it needs more memory than a model may"}
        except Exception as error:  # whatever the parsers of others' formats raise
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(pipe, data) :]
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's clean-up is run twice


def _limit(request: dict[str, Any]) -> None:
    """Bound processor time, memory, file writes and open files of this process."""
    seconds = int(request["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    memory = _memory("VmSize") + int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # pipes are no files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))


def _parse(request: dict[str, Any]) -> dict[str, Any]:
    path, before = Path(request["path"]), _memory("VmRSS")
    ranker: Ranker
    converted = ""
    if request["what"] == "bundle":
        bundle = load_bundle(path)
        ranker = bundle.recommender.ranker
        width, model = len(bundle.recommender.columns), tree_of(ranker)
    else:
        ranker = model = load_ranker(request["kind"], path, _KNOTS)
        width = len(_names(model))
        if request["kind"] == "xgboost":  # whatever it came in, it is served as JSON
            converted = base64.b64encode(bytes(model.model.save_raw("json"))).decode()
    scores = ranker.score(_rows(width))
    return {
        "features": _names(model),
        "finite": bool(np.isfinite(scores).all()),
        "rss_growth_bytes": max(_memory("VmRSS") - before, 0),
        "converted": converted,
    }


def tree_of(ranker: Ranker) -> TreeRanker:
    """Return the trees of a bundle's ranker."""
    inner = ranker.ranker if isinstance(ranker, FirstColumns) else ranker
    if not isinstance(inner, TreeRanker):
        raise TypeError(f"a bundle's ranker is no {type(inner).__name__}")
    return inner


def _names(ranker: TreeRanker) -> list[str]:
    """Names of the columns inside a model file; numbers where it has none."""
    model = ranker.model
    if ranker.kind == "catboost":
        names = model.feature_names_
    elif ranker.kind == "lightgbm":
        names = model.feature_name()
    else:
        names = model.feature_names or [str(i) for i in range(model.num_features())]
    return [str(name) for name in names]


def _rows(width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    rows = rng.normal(0.0, 10.0, (_TRIED, width)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = np.nan
    return np.vstack([np.full((1, width), np.nan, np.float32), np.zeros((1, width), np.float32), rows])


def _memory(name: str) -> int:
    """Return a line of this process' memory in bytes."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
