"""Whose fault an error at the gate is: the version's (a verdict), or the surroundings' (tried again). PURE."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from feature_repo.errors import BadInputError, LarderError, NotFoundError, UnavailableError

#: Longest text of a foreign error that is repeated.
_LENGTH: Final = 300
#: Packages whose errors tell of a server, a database or the project's own data, never of a model's files.
_SERVICES: Final = frozenset(
    {
        "redis", "mlflow", "requests", "urllib3", "http", "ssl", "socket", "sqlite3", "sqlalchemy", "psycopg",
        "psycopg2", "duckdb", "_duckdb", "pyarrow", "botocore", "boto3", "google", "azure",
    }
)  # fmt: skip
#: Errors of the operating system that the path in question is to blame for; all others are the machine's.
_OF_THE_PATH: Final = frozenset(
    {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EFBIG}
)
_SECRET: Final = re.compile(r"(?i)(\w*(?:password|passwd|secret|token|credential|authorization)\w*\s*[:=]\s*)\S+")
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)")


class NotHereError(NotFoundError):
    """What a version needs to be judged is not here yet: it waits."""


def of_surroundings(error: BaseException) -> bool:
    """Say whether an error, or what caused it, comes of the machine, a service or the project's data.

    Memory that is not there is the machine's: what a model may take was limited in the process that parsed it first.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if _of_surroundings(one):
            return True
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


def _of_surroundings(error: BaseException) -> bool:
    if isinstance(error, LarderError):
        return isinstance(error, NotHereError) or not isinstance(error, BadInputError | NotFoundError)
    if isinstance(error, MemoryError | ConnectionError | TimeoutError):
        return True
    if type(error).__module__.partition(".")[0] in _SERVICES:
        return True
    return isinstance(error, OSError) and error.errno not in _OF_THE_PATH


def told(error: BaseException) -> str:
    """Return an error in one line that may be shown and kept: type and text, bounded, without credentials.

    A text that is no Unicode (a lone surrogate out of somebody's JSON) could be written to no page.
    """
    text = (str(error).strip().splitlines() or [""])[0]
    text = _SECRET.sub(r"\1***", _USER_INFO.sub("***", text))
    if not isinstance(error, LarderError):
        text = f"{type(error).__name__}: {text[:_LENGTH]}" if text else type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def surroundings(what: str) -> Iterator[None]:
    """Turn whatever fails within into `UnavailableError`: what is done there depends on no version under judgement."""
    try:
        yield
    except UnavailableError:
        raise
    except LarderError as error:  # it says already what is wrong and what to do
        raise UnavailableError(str(error)) from error
    except Exception as error:
        raise UnavailableError(f"could not {what}: {told(error)}") from error
