"""What serving answers from now: the release in force, the item table, the ingest watermark, and what is wrong."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field

from serving.assignment import ArmName, assign
from serving.bundle import Bundle
from serving.cascade.items import ItemTable
from serving.child_scorer.child import ChildScorer
from serving.ingest_status import IngestView
from serving.item_table_source import ItemTableSource
from serving.plan import Plan

#: Without news of the item table for so long, `/readyz` says so.
STALE_TABLE_S = 10.0
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Release:
    """A plan, its stable bundle, and the processes of its candidates; swapped together."""

    plan: Plan
    bundle: Bundle
    canary: ChildScorer | None = None
    shadow: ChildScorer | None = None

    def arm_of(self, user_id: str) -> ArmName:
        """Return a user's arm; everybody's is stable until the canary's process was up, or failed, once.

        Loading a candidate takes seconds in which it could answer nobody; they are not its failures.
        """
        if self.canary is None or not self.canary.began:
            return "stable"
        return assign(self.plan, user_id)

    @property
    def model_version(self) -> str:
        """Registry version of the bundle that answers."""
        return self.plan.stable.model_version


@dataclass
class ServingState:
    """Shared by all requests of a process; each attribute is replaced whole, on the event loop's thread.

    Attributes
    ----------
    release
        None until a bundle could be loaded.
    ingest
        How far the features are, as ingest last said.
    hidden
        Items of the popularity file that must not be shown; used where there is no item table.
    problems
        What is not as it should be, by whom it concerns; for `/readyz`.
    under_way
        Recommendations being made; what can wait waits for them.
    """

    items: ItemTableSource
    release: Release | None = None
    ingest: IngestView = field(default_factory=IngestView)
    hidden: frozenset[str] = frozenset()
    problems: dict[str, str] = field(default_factory=dict)
    under_way: int = 0

    @property
    def table(self) -> ItemTable | None:
        """The item table; None until one was loaded."""
        return self.items.table

    @property
    def listed(self) -> ItemTable | None:
        """The item table to make lists of; None where the bundle's popularity file knows more.

        A store that lost everything has an empty table; what the bundle remembers is better than empty pages.
        """
        lost = self.table is not None and not len(self.table) and self.release is not None
        return None if lost else self.table

    @property
    def item_table_age_s(self) -> float | None:
        """Seconds since the item table was last compared with Redis; None before the first time."""
        age_s = self.items.age_s
        return age_s if math.isfinite(age_s) else None

    @property
    def ready(self) -> bool:
        """Whether both a bundle and an item table are there."""
        return self.release is not None and self.table is not None

    def feature_age_s(self, now_us: int) -> float | None:
        """Seconds from the moment up to which the features are complete until now; None if unknown."""
        known_ms = self.ingest.known_ms
        return max(now_us - known_ms * 1000, 0) / 1e6 if known_ms else None

    async def idle(self, patience_s: float) -> None:
        """Wait, not for long, until no recommendation is being made."""
        deadline = time.monotonic() + patience_s
        while self.under_way and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)

    def all_problems(self) -> list[str]:
        """Everything that is not as it should be, as sentences."""
        found = list(self.problems.values())
        if self.release is None:
            found.append("no model bundle is loaded; recommendations are popular items")
        if self.table is None:
            found.append("the item table has not been loaded")
        elif self.listed is None:
            found.append("the item table is empty; lists are the popularity file of the model")
        elif self.items.age_s > STALE_TABLE_S:
            found.append(f"the item table has not been refreshed for {self.items.age_s:.0f} s")
        return found
