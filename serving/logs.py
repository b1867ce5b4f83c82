"""Lines of the log, as text or JSON: each with its request's id, none with a secret, none that another can pass for."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Final, Literal

from feature_repo.settings import SettingsError
from serving.request_id import current_answer_id, current_request_id

FORMATS: Final = ("text", "json")
#: Longer ones are cut: a line is for reading.
_MAX_MESSAGE: Final = 4_000
_MAX_ERROR: Final = 20_000
_HIDDEN: Final = "***"
#: The password of a URL, what follows a scheme of authorisation, and values of what is called a secret.
_SECRETS: Final = re.compile(
    r"""(?P<before>://[^/\s:@]*:|\bBearer\s+|\b\w*(?:password|passwd|secret|token|signing_key)\b["']?\s*[=:]\s*["']?)"""
    r"""[^\s"'@,;)}]+""",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """Return a text on one line: what ends lines, moves cursors or turns directions is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _without_secrets(text: str, longest: int) -> str:
    return _SECRETS.sub(rf"\g<before>{_HIDDEN}", text[:longest]) + ("…" if len(text) > longest else "")


class _Line(logging.Formatter):
    """What both formats have in common."""

    default_msec_format = "%s.%03d"

    def message_of(self, record: logging.LogRecord) -> str:
        return _without_secrets(record.getMessage(), _MAX_MESSAGE)

    def error_of(self, record: logging.LogRecord) -> str:
        found = [self.formatException(record.exc_info)] if record.exc_info else []
        found += [record.stack_info] if record.stack_info else []
        return _without_secrets("\n".join(found), _MAX_ERROR)


class TextLine(_Line):
    """Time, level, logger and message; lines of a traceback are indented, so that none begins like one of ours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback's below it."""
        ids = " ".join(filter(None, (current_request_id(), current_answer_id())))
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {printable(self.message_of(record))}"
        lines = [f"{line} [{printable(ids)}]" if ids else line]
        # Not splitlines(): it would also split where a message has other letters that end lines.
        lines += [f"  | {printable(below)}" for below in self.error_of(record).split("\n") if below]
        return "\n".join(lines)


class JsonLine(_Line):
    """One JSON object on one line, in ASCII.

    `time` (UTC), `level`, `logger`, `message`; `request_id`, `answer_id` and `error` where there are such.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": self.message_of(record),
        }
        if (request_id := current_request_id()) is not None:
            line["request_id"] = request_id
        if (answer_id := current_answer_id()) is not None:
            line["answer_id"] = answer_id
        if error := self.error_of(record):
            line["error"] = error
        return json.dumps(line)


def formatter_of(name: str) -> logging.Formatter:
    """Return the formatter of the setting `log_format`.

    Raises
    ------
    SettingsError
        For another name than those of `FORMATS`.
    """
    if name not in FORMATS:
        raise SettingsError(f"setting log_format must be {' or '.join(FORMATS)}, not {name!r}")
    return JsonLine() if name == "json" else TextLine()


def configure_logging(log_format: str, level: Literal["INFO", "WARNING"] = "INFO") -> None:
    """Send the process's log to standard error in a format; what was configured before goes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter_of(log_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)
