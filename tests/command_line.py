"""The command line as a user runs it: a process of its own, with a home and ports that no other has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def larder(
    home: Path, *arguments: str, ports: tuple[int, int, int], **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Parameters
    ----------
    ports
        Of Redis, MLflow and the API.
    settings
        More settings, by the names of their environment variables without LARDER_, in any case.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LARDER_")} | {
        "LARDER_HOME": str(home),
        "LARDER_REDIS_PORT": str(ports[0]),
        "LARDER_MLFLOW_PORT": str(ports[1]),
        "LARDER_API_PORT": str(ports[2]),
        "LARDER_REDIS_TIMEOUT_MS": "1000",  # a loaded test machine is not a dead Redis
        "LARDER_REQUEST_BUDGET_MS": "0",
        **{f"LARDER_{name.upper()}": value for name, value in settings.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "larder.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
