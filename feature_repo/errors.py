"""Errors users meet: what was wrong, which value, what to do; each with the HTTP status it becomes. PURE."""

from __future__ import annotations


class LarderError(Exception):
    """Base of all errors that are shown to a user as one line, without a traceback."""

    status = 500
    code = "internal"


class BadInputError(LarderError):
    """A file, row, option or request that cannot be used as it is."""

    status = 422
    code = "bad_input"


class NotFoundError(LarderError):
    """Something named does not exist (data set, bundle, model version)."""

    status = 404
    code = "not_found"


class ConflictError(LarderError):
    """Somebody else was first (promotion race, second writer)."""

    status = 409
    code = "conflict"


class UnavailableError(LarderError):
    """A dependency is away; the work was not done and can be retried."""

    status = 503
    code = "unavailable"
