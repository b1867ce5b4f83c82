"""Runs a scenario against an API and says whether the objectives were met: exit code, `test_summary.json`, HTML.

    python -m load_tests.slo steady --host http://127.0.0.1:8099 --rate 50 --seconds 60 --out load

A closed-loop generator that cannot keep up waits with its next request, and so flatters the server: percentiles count
only where the achieved rate is the one asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

#: Environment variable: file with one user id a line, as `larder load-test` writes it from the project's data.
USERS_FILE: Final = "LARDER_LOAD_USERS"
SUMMARY: Final = "test_summary.json"
SCENARIOS: Final = ("steady", "spike", "soak", "cold", "storm", "events", "rollout")
_LISTS: Final = ("recommend", "popular")


@dataclass(frozen=True)
class Objectives:
    """What must hold.

    Attributes
    ----------
    rate_share
        Achieved rate of visits as a share of the one asked for, at least.
    error_share, degraded_share
        Of all requests and of all lists, at most.
    """

    rate_share: float = 0.95
    error_share: float = 0.001
    p95_ms: float = 50.0
    p99_ms: float = 100.0
    degraded_share: float = 0.01


def judge(stats: list[dict[str, Any]], asked_rate: float, seconds: float, demanded: Objectives) -> dict[str, Any]:
    """Hold Locust's statistics against the objectives.

    Parameters
    ----------
    stats
        As Locust's `--json-file` has them: one entry by request name.
    asked_rate
        Visits a second that were wanted.

    Returns
    -------
    dict
        Figures, and the objectives that were missed.
    """
    named = {one["name"]: one for one in stats}
    lists = [named[name] for name in _LISTS if name in named]
    real = [one for one in stats if one["name"] != "degraded"]
    asked, failed = (sum(one[key] for one in real) for key in ("num_requests", "num_failures"))
    visits = sum(one["num_requests"] for one in lists)
    degraded = named.get("degraded", {}).get("num_requests", 0)
    times = sorted((int(ms), n) for one in lists for ms, n in one["response_times"].items())
    figures = {
        "visits": visits,
        "rate": visits / seconds,
        "rate_share": visits / seconds / asked_rate,
        "error_share": failed / max(asked, 1),
        "p50_ms": _quantile(times, 0.5),
        "p95_ms": _quantile(times, 0.95),
        "p99_ms": _quantile(times, 0.99),
        "degraded_share": degraded / max(visits, 1),
    }
    limits = asdict(demanded)
    missed = [
        name
        for name, limit in limits.items()
        if (figures[name] < limit if name == "rate_share" else figures[name] > limit)
    ]
    return {"figures": figures, "objectives": limits, "missed": missed}


def run(scenario: str, host: str, rate: float, seconds: float, out: Path, demanded: Objectives) -> dict[str, Any]:
    """Run Locust and judge; write the summary and Locust's page into `out`.

    Raises
    ------
    RuntimeError
        If Locust could not run.
    """
    out.mkdir(parents=True, exist_ok=True)
    people = max(round(rate), 1)
    command = [
        sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("scenarios.py")), "--headless",
        "--host", host, "--html", str(out / "report.html"), "--json-file", str(out / "locust"), "--only-summary",
        "--stop-timeout", "5", "--exit-code-on-error", "0",
    ]  # fmt: skip
    if scenario != "spike":
        command += ["-u", str(people), "-r", str(people), "-t", f"{seconds:g}s"]
    environment = os.environ | {
        "LARDER_LOAD_SCENARIO": scenario, "LARDER_LOAD_RATE": str(rate), "LARDER_LOAD_SECONDS": str(seconds),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    stats = out / "locust.json"
    if done.returncode != 0 or not stats.is_file():
        raise RuntimeError(f"locust ended with {done.returncode}: {done.stderr[-2000:]}")
    # The spike asks for 1/3, 4/3 and 1/3 of the rate, a third of the time each.
    asked = rate * (2.0 / 3.0 if scenario == "spike" else 1.0)
    summary = {"scenario": scenario, **judge(json.loads(stats.read_text("utf-8")), asked, seconds, demanded)}
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    return summary


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print figures beside their objectives."""
    for name, value in summary["figures"].items():
        limit = summary["objectives"].get(name)
        word = "" if limit is None else f"  objective {limit:g}{'  MISSED' if name in summary['missed'] else ''}"
        print(f"{name:<16}{value:12.3f}{word}")
    print(f"written to {out}: {SUMMARY}, report.html")


def _quantile(times: list[tuple[int, int]], q: float) -> float:
    """Quantile of a histogram of (milliseconds, count), ascending; infinite if there is none."""
    total = sum(n for _, n in times)
    seen = 0
    for milliseconds, n in times:
        seen += n
        if seen >= q * total:
            return float(milliseconds)
    return float("inf")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 0 where every objective was met, 1 where not."""
    parser = argparse.ArgumentParser(description="Load an API and hold it to its objectives.")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--host", required=True)
    parser.add_argument("--rate", type=float, default=50.0, help="visits a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("load"))
    for name, value in asdict(Objectives()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    args = parser.parse_args(arguments)
    demanded = Objectives(**{name: getattr(args, name) for name in asdict(Objectives())})
    summary = run(args.scenario, args.host, args.rate, args.seconds, args.out, demanded)
    print_summary(summary, args.out)
    return 1 if summary["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
