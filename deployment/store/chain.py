"""The ledger's chain: the hash and the signature of an entry, of the head, and of what else must not be forged."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from typing import Any

from serving.signature import sign

#: Fields of an entry that its hash covers, besides project and previous hash.
FIELDS = (
    "entry", "at", "who", "action", "why", "epoch", "bundle_id", "model_version", "previous_version", "body",
    "previous_hash",
)  # fmt: skip


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII; numbers that are none become words."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def entry_hash(project: str, fields: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of an entry with its project and the hash before it; `body` is its text."""
    content = {name: fields[name] for name in FIELDS} | {"project": project, "what": "ledger entry"}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def sign_text(what: str, parts: list[Any], key: bytes) -> str:
    """Sign some values under the name of what they are, so that no signature is good for anything else."""
    return sign(canonical([what, *parts]).encode(), key)


def holds(signature: str, expected: str) -> bool:
    """Compare two signatures in constant time."""
    return hmac.compare_digest(signature.encode("utf-8", "replace"), expected.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
