"""Verdicts as signed documents: what was signed with the installation's key is what the gate said, to the byte."""

from __future__ import annotations

import json

from deployment.verdict import Verdict
from feature_repo.errors import BadInputError
from serving.signature import seal, unseal


def seal_verdict(verdict: Verdict, key: bytes) -> bytes:
    """Encode a verdict as JSON, signed."""
    return seal(json.dumps(verdict.to_dict(), sort_keys=True, allow_nan=False).encode(), key)


def open_verdict(data: bytes, key: bytes) -> Verdict:
    """Decode a verdict.

    Raises
    ------
    BadInputError
        If the data are no verdict, or were not signed with this key.
    """
    document = json.loads(unseal(data, key, "verdict"))
    if not isinstance(document, dict):
        raise BadInputError("not a verdict: no JSON object")
    return Verdict.from_dict(document)
