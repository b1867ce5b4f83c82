"""Measures one task in a process of its own: time, and the peak of its memory, which nothing else has a part in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


class TaskFailedError(RuntimeError):
    """A measured task did not end well."""


def measured(module: str, *arguments: str, timeout_s: float = 600.0) -> dict[str, float]:
    """Run `python -m module arguments`, which prints its figures by `report`; its peak memory is one of them.

    Raises
    ------
    TaskFailedError
        If the task fails, or takes too long.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        raise TaskFailedError(f"{' '.join(arguments)}: took more than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TaskFailedError(f"{' '.join(arguments)}: ended with code {done.returncode}: {last}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def report(**figures: float) -> None:
    """Print a task's figures for `measured`, and the process's peak memory (peak_gb)."""
    # Not getrusage: its peak begins with what the parent had in memory.
    status = Path("/proc/self/status").read_text("utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps(figures | {"peak_gb": peak / 2**20}))
