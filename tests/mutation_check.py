"""Removes one defence after another and demands a red test for each: `python -m tests.mutation_check [NAME ...]`.

It is its own pytest plugin: in the process of the tests the defence that `LARDER_TESTS_WITHOUT` names is removed before
anything else is imported. The product has no switch for it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from tests.defences import DEFENCES

_WITHOUT = "LARDER_TESTS_WITHOUT"


def pytest_configure() -> None:
    """Remove the defence, where one is named; as a plugin of pytest."""
    if name := os.environ.get(_WITHOUT):
        DEFENCES[name].remove()


def run(tests: list[str], without: str = "") -> subprocess.CompletedProcess[str]:
    """Run tests without a defence, each whether or not it is one of faults."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "tests.mutation_check",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    return subprocess.run(
        command, env=os.environ | {_WITHOUT: without}, capture_output=True, text=True, timeout=240, check=False
    )


def main() -> int:
    names = sys.argv[1:] or list(DEFENCES)
    if unknown := set(names) - set(DEFENCES):
        print(f"no defence is called {', '.join(sorted(unknown))}; there are: {', '.join(DEFENCES)}")
        return 2
    whole = run(sorted({DEFENCES[name].test for name in names}))
    if whole.returncode:
        print(whole.stdout[-4_000:], "\nwith all defences the tests are not green; nothing can be said", sep="")
        return 1
    unnoticed = []
    for name in names:
        began = time.monotonic()
        done = run([DEFENCES[name].test], without=name)
        failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
        red = done.returncode == 1 and failed is not None
        if not red:
            unnoticed.append(name)
            print(done.stdout[-2_000:])
        print(f"{name}: {'red' if red else 'NOT NOTICED'}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(names) - len(unnoticed)} of {len(names)} removed defences turn a test red")
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
