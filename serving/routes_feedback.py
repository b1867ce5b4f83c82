"""`POST /v1/feedback`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from feature_repo.errors import BadInputError
from serving.answers import FeedbackResults
from serving.feedback_intake import FeedbackIntake
from serving.http import StrictRoute, answer
from serving.problems import documented, problem
from serving.schemas import FeedbackRequest


def feedback_routes(intake: FeedbackIntake) -> APIRouter:
    """Make the route."""
    router = APIRouter(route_class=StrictRoute, tags=["events"])

    @router.post(
        "/v1/feedback",
        summary="Confirm or reject recommended items",
        status_code=202,
        responses={202: {"model": FeedbackResults}, **documented(413, 422, 429, 503)},
    )
    async def feedback(request: Request, body: FeedbackRequest) -> Response:
        """Say of items shown whether the user confirmed or rejected them; they become `confirm` and `reject` events.

        Each is checked by itself, as in `POST /v1/events`, and accepted ones are as durable. `shown` is true where
        this process showed the item to that user in that request, null where it does not know the request (another
        process answered it, or it was long ago); an item that was not in the list is rejected as `not_shown`. The last
        verdict on an item holds, the earlier ones stay in the log. After a 503 or a lost answer send the same again.
        """
        results = await intake.take(body.feedback)
        if results.retry_after_s is not None and not results.accepted + results.duplicates:
            return problem(
                429, "rate_limited", "the user sent more than one user may; none of the feedback was taken",
                field="body.feedback", hint=f"send it again in {results.retry_after_s} s",
                retry_after_s=results.retry_after_s,
            )  # fmt: skip
        if results.rejected == len(results.results):
            first = results.results[0].reason
            return problem(
                422, BadInputError.code, f"none of the {results.rejected} verdicts can be used; the first: {first}",
                field="body.feedback.0", hint="docs/feedback.md lists the rules",
            )  # fmt: skip
        return answer(request, results, 202)

    return router
