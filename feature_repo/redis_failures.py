"""Which failures of Redis pass by themselves, so that a worker waits them out, and which do not."""

from __future__ import annotations

import re

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

#: Full, its disk full, being replaced, starting. Inside a script they come as plain errors with the code in the text;
#: they strike before the first write of a script, so it wrote nothing.
_PASSING_CODES = re.compile(r"\b(OOM|MISCONF|READONLY|UNBLOCKED|LOADING|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b")


def passes(error: Exception) -> bool:
    """Tell a failure that waiting cures (Redis away, full or starting) from a wrong key or a broken script."""
    if isinstance(error, ResponseError):
        return isinstance(error, OutOfMemoryError | ReadOnlyError) or bool(_PASSING_CODES.search(str(error)))
    return True
