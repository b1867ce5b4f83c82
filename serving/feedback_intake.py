"""Takes verdicts on recommended items: checked against what was shown, they go into the stream as events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from feature_repo.event_rules import normalise_id, shown
from feature_repo.events import EventType
from serving.answers import EventResult, FeedbackResult, FeedbackResults
from serving.event_entry import RefusedEvent, is_bounded_id
from serving.event_intake import EventIntake
from serving.shown_lists import ShownLists

FIELDS: Final = frozenset({"feedback_id", "request_id", "user_id", "item_id", "verdict", "event_timestamp"})
VERDICTS: Final = (EventType.confirm.name, EventType.reject.name)
_IDS: Final = ("request_id", "user_id", "item_id")


class FeedbackIntake:
    """The way in for confirm and reject.

    What only the impression log could answer is not asked while the client waits: the log is written behind the
    answer and by several processes. Such feedback is accepted, `shown` unknown; whoever joins the log settles it.
    """

    def __init__(self, events: EventIntake, lists: ShownLists) -> None:
        self._events = events
        self._lists = lists

    async def take(self, sent: Sequence[dict[str, Any]]) -> FeedbackResults:
        """Accept what is right and say of every verdict what became of it.

        Raises
        ------
        UnavailableError
            If Redis did not confirm; sending the same again is safe.
        """
        events: list[dict[str, Any]] = []
        was_shown: dict[int, bool | None] = {}
        refused: dict[int, str] = {}
        for place, one in enumerate(sent):
            try:
                event, was_shown[place] = to_event(one, self._lists)
                events.append(event)
            except RefusedEvent as refusal:
                refused[place] = str(refusal)
        taken = await self._events.take(events)
        rest = iter(taken.results)
        results = [
            _rejected(one, refused[place]) if place in refused else _result(next(rest), was_shown[place])
            for place, one in enumerate(sent)
        ]
        await self._events.refuse([(refused[place], sent[place]) for place in refused])
        rejected = taken.rejected + len(refused)
        return FeedbackResults(taken.accepted, taken.duplicates, rejected, taken.retry_after_s, results)


def to_event(sent: Mapping[str, Any], lists: ShownLists) -> tuple[dict[str, Any], bool | None]:
    """Return the event a verdict stands for, still to be checked as every event is, and whether the item was shown.

    Without a `feedback_id` the event's id is made of all that is said, so that the same words count once.

    Raises
    ------
    RefusedEvent
        If it is no verdict, or on an item that was not in the list.
    """
    said = {name: value for name, value in sent.items() if value is not None}
    for name in said:
        if name not in FIELDS:
            raise RefusedEvent(f"unknown_field: {shown(name)}")
    verdict = said.get("verdict")
    if verdict not in VERDICTS:
        raise RefusedEvent(f"bad_type: verdict must be confirm or reject, not {shown(verdict)}")
    ids = [_id(said, name) for name in _IDS]
    request_id, user_id, item_id = ids
    rank = lists.rank(request_id, user_id, item_id)
    if rank == 0:
        raise RefusedEvent(f"not_shown: {shown(item_id)} was not in the list of request {shown(request_id)}")
    derived = _derived([*ids, verdict, str(said.get("event_timestamp", ""))])
    said["event_id"] = said.pop("feedback_id", derived)
    event = {name: value for name, value in said.items() if name != "verdict"} | {"event_type": verdict}
    return (event | {"rank": rank} if rank else event), (True if rank else None)


def _id(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not is_bounded_id(value):
        raise RefusedEvent(f"bad_id: {name} {shown(value)}")
    return normalise_id(value)


def _derived(parts: Sequence[str]) -> str:
    # Lengths go in, too: an id may hold any character, so no separator is safe.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return f"feedback-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _result(event: EventResult, was_shown: bool | None) -> FeedbackResult:
    return FeedbackResult(event.event_id, event.status, was_shown, event.seq, event.reason)


def _rejected(sent: Mapping[str, Any], reason: str) -> FeedbackResult:
    feedback_id = sent.get("feedback_id")
    was_shown = False if reason.startswith("not_shown") else None
    return FeedbackResult(feedback_id if isinstance(feedback_id, str) else None, "rejected", was_shown, None, reason)
