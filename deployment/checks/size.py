"""Size on disk, and what loading takes of memory."""

from __future__ import annotations

from deployment.checks.contract import GateContext
from deployment.verdict import Check, compare

_MB = 1024.0**2


class Size:
    """Bytes of the bundle, and growth of resident memory where a fresh process loads it."""

    name = "size"

    def run(self, context: GateContext) -> list[Check]:
        """Compare both with their limits."""
        size = sum(path.stat().st_size for path in context.directory.iterdir())
        return [
            compare(
                "bundle_size",
                size / _MB,
                "<=",
                context.thresholds.bundle_mb,
                "MB",
                "All files of the bundle: every server keeps stable, canary and shadow at once.",
            ),
            compare(
                "memory",
                context.parsed.rss_growth_bytes / _MB,
                "<=",
                context.thresholds.memory_mb,
                "MB",
                "Growth of resident memory in a child process that loaded the bundle and scored its golden rows.",
            ),
        ]
