"""MLflow's aliases are a projection of the plan: a hand that moves one is noticed, reported, and set back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from deployment.registry import CHALLENGER, CHAMPION, Registry
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from serving.plan import Plan

_LOG = logging.getLogger(__name__)
ALIASES = (CHAMPION, CHALLENGER)
#: A plan may be committed while the aliases of the one before are being set.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class AliasReset:
    """An alias that was moved by hand: where it pointed, and what it was set back to; empty: nowhere."""

    alias: str
    found: str
    restored: str


class AliasWatch:
    """Compares the aliases with the plan; `check` is called on every tick of the controller and after every move.

    Attributes
    ----------
    resets
        Aliases found moved by hand since the start, for a metric.
    """

    def __init__(self, store: ControlStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._told: set[tuple[int, str, str]] = set()
        self.resets = 0

    def check(self, now: datetime, who: str = "alias watch") -> list[AliasReset]:
        """Bring MLflow in line with the plan.

        An alias that is as it was when last seen in line only lags behind the plan (MLflow was away). Any other was
        moved by hand: that goes into the ledger and the log.

        Returns
        -------
        list
            What had been moved by hand.

        Raises
        ------
        UnavailableError
            If MLflow or the database cannot be used; nothing else depends on it, the next check repairs.
        """
        resets: list[AliasReset] = []
        for _ in range(_ATTEMPTS):
            found = self._found()  # before the plan: what a newer plan has set meanwhile is then no surprise
            plan = self._store.plan()
            if plan is None:
                return resets
            resets += self._bring_in_line(plan, found, now, who)
            after = self._store.plan()
            if after is not None and after.epoch == plan.epoch:
                break
        return resets

    def _bring_in_line(self, plan: Plan, found: dict[str, str], now: datetime, who: str) -> list[AliasReset]:
        wanted = aliases_of(plan)
        known = self._store.known_aliases() or [{}]
        wrong = [alias for alias in ALIASES if found.get(alias) != wanted.get(alias)]
        resets = []
        for alias in wrong:
            if found.get(alias) not in [state.get(alias) for state in known]:
                resets.append(AliasReset(alias, found.get(alias, ""), wanted.get(alias, "")))
                self._tell(plan, resets[-1], now, who)
        if wrong and wanted not in known:
            self._store.keep_aliases([*known, wanted], plan.epoch)  # whoever looks meanwhile is not surprised
        for alias in wrong:
            self._registry.set_alias(alias, wanted.get(alias))
        if known != [wanted]:
            self._store.keep_aliases([wanted], plan.epoch)
        self._told.clear()
        return resets

    def _tell(self, plan: Plan, reset: AliasReset, now: datetime, who: str) -> None:
        """Report a move once, also where setting it back has to be tried again."""
        if (plan.epoch, reset.alias, reset.found) in self._told:
            return
        why = (
            f"alias {reset.alias} was moved by hand to {_version(reset.found)}; it is not followed, and is set back to "
            f"{_version(reset.restored)}. Use `larder models promote` or `rollback`"
        )
        body = {"alias": reset.alias, "found": reset.found, "restored": reset.restored}
        self._store.append(NewEntry(who, "alias_reset", why, plan.stable.bundle_id, reset.restored, body), now)
        self._told.add((plan.epoch, reset.alias, reset.found))
        self.resets += 1
        _LOG.warning("%s", why)

    def _found(self) -> dict[str, str]:
        return {alias: number for alias, number in self._registry.aliases().items() if alias in ALIASES}


def aliases_of(plan: Plan) -> dict[str, str]:
    """Return where the aliases point under a plan: the champion, and the candidate of a rollout if one runs."""
    candidate = plan.canary or plan.shadow
    wanted = {CHAMPION: plan.stable.model_version}
    return wanted if candidate is None else {**wanted, CHALLENGER: candidate.model_version}


def _version(number: str) -> str:
    return f"version {number}" if number else "nothing"
