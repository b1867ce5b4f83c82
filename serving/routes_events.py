"""`POST /v1/events`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from feature_repo.errors import BadInputError
from serving.answers import EventResults
from serving.event_intake import EventIntake
from serving.http import StrictRoute, answer
from serving.problems import documented, problem
from serving.schemas import EventsRequest


def event_routes(intake: EventIntake) -> APIRouter:
    """Make the route."""
    router = APIRouter(route_class=StrictRoute, tags=["events"])

    @router.post(
        "/v1/events",
        summary="Send events",
        status_code=202,
        responses={202: {"model": EventResults}, **documented(413, 422, 429, 503)},
    )
    async def events(request: Request, body: EventsRequest) -> Response:
        """Append events; they change the features within a second, and so the next answer.

        Each event is checked by itself: the right ones are accepted, the others listed with a reason; 422 only if none
        can be used. The answer is sent when the events are in the durable stream. An `event_id` counts once within 7
        days, so after a 503 or a lost answer send the same batch again. A user may send so many events at once and so
        many a second (settings `user_events_burst`, `user_events_per_s`); those above are rejected as `rate_limited`,
        and where nothing else was sent the answer is 429.
        """
        results = await intake.take(body.events)
        if results.retry_after_s is not None and not results.accepted + results.duplicates:
            return problem(
                429, "rate_limited", "the user sent more events than one user may; none of these was taken",
                field="body.events", hint=f"send them again in {results.retry_after_s} s",
                retry_after_s=results.retry_after_s,
            )  # fmt: skip
        if results.rejected == len(results.results):
            first = results.results[0].reason
            return problem(
                422, BadInputError.code, f"none of the {results.rejected} events can be used; the first: {first}",
                field="body.events.0", hint="docs/events.md lists the rules",
            )  # fmt: skip
        return answer(request, results, 202)

    return router
