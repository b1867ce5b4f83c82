"""What the control plane's store holds: ledger entries, rollouts, the lease. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from feature_repo.errors import BadInputError, LarderError

#: Everything that is worth a line of the ledger.
Action = Literal[
    "verdict", "promote", "rollback", "rollout_start", "rollout_step", "rollout_end", "pause", "resume", "abort",
    "force", "alias_reset",
]  # fmt: skip
MAX_WHO = 200
MAX_WHY = 2_000


class LedgerBrokenError(LarderError):
    """The ledger is not what was written: an entry was changed, removed or put in by somebody without the key."""

    status = 409
    code = "ledger_broken"


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What somebody did, before it has a place in the ledger.

    Attributes
    ----------
    who, why
        People's words; neither may be empty.
    bundle_id, model_version
        The model it is about: the new champion, the candidate, what was judged.
    body
        Anything JSON can hold: the verdict, the evidence, the decision.
    """

    who: str
    action: Action
    why: str
    bundle_id: str = ""
    model_version: str = ""
    body: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no database can hold or no reader could use.

        Raises
        ------
        BadInputError
            For a text that is empty, too long, or not printable.
        """
        for name, text, longest in (("who", self.who, MAX_WHO), ("why", self.why, MAX_WHY)):
            if not text.strip() or len(text) > longest:
                raise BadInputError(f"{name} must have 1 to {longest} characters, not {len(text)}")
            if not text.replace("\n", " ").replace("\t", " ").isprintable():
                raise BadInputError(f"{name} holds characters that cannot be shown: {text[:50]!r}")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the ledger.

    Attributes
    ----------
    entry
        Place in the chain, from 1.
    at
        When, aware UTC, ISO 8601.
    epoch
        Epoch of the plan after it; the one in force where it did not move the plan.
    previous_version
        Version of the champion before it.
    body
        As given; where the plan moved, `plan` is the new one without its salt.
    previous_hash, hash
        sha256 of the entry before (empty for the first) and of this one, which includes `previous_hash`.
    intact
        Whether its hash and signature hold; the place in the chain is checked by `ControlStore.verify`.
    """

    entry: int
    at: str
    who: str
    action: str
    why: str
    epoch: int
    bundle_id: str
    model_version: str
    previous_version: str
    body: dict[str, Any]
    previous_hash: str
    hash: str
    intact: bool = True

    @property
    def moved(self) -> bool:
        """Whether the plan moved with it."""
        return "plan" in self.body


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout as the controller left it.

    Attributes
    ----------
    state
        A word of the controller's state machine; the store gives it no meaning.
    body
        Everything else the controller must find again after a crash; JSON.
    revision
        0 for a new one; every write demands the revision that was read and stores the next.
    """

    rollout_id: str
    state: str
    body: dict[str, Any]
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to be the one active controller.

    Attributes
    ----------
    token
        Grows with every acquisition. Writes that carry an older one are refused, so that a controller that slept
        through its lease does no harm, whatever the clocks say.
    """

    holder: str
    token: int
    expires_at: datetime
