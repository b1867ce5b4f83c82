"""What the model answers to live requests: finite, in range, ordered, the same twice, complete."""

from __future__ import annotations

import math

import numpy as np

from deployment.checks.contract import GateContext
from deployment.live import Live
from deployment.verdict import Check, compare
from feature_repo.errors import BadInputError
from serving.cascade.recommender import Recommender, Slate

ASKED = 100
K = 20


class Outputs:
    """Lists of real users, asked for twice, and rows of nothing but nulls and huge numbers."""

    name = "outputs"

    def run(self, context: GateContext) -> list[Check]:
        """Count the lists with something wrong."""
        live, recommender = context.live, context.bundle.recommender
        bad = different = short = disordered = 0
        asked = live.users[:ASKED]
        for user_id in asked:
            first, same = _asked_twice(recommender, live, user_id, context.now_us)
            scores = [item.score for item in first.items]
            ids = [item.item_id for item in first.items]
            raw = recommender.ranker.score(first.matrix) if len(first.matrix) else np.empty(0)
            bad += not np.isfinite(raw).all() or any(not math.isfinite(s) or not 0.0 <= s <= 1.0 for s in scores)
            different += not same
            complete = len(ids) == min(K, int(live.table.available.sum())) and len(set(ids)) == len(ids)
            short += not complete or [item.rank for item in first.items] != list(range(1, len(ids) + 1))
            disordered += not _ordered(raw[first.ranked], scores[: len(first.ranked)], context)
        users = f"of {len(asked)} users"
        return [
            compare(
                "non_finite_outputs", bad, "==", 0, users, "Scores must be finite, and probabilities within 0 and 1."
            ),
            compare("disordered_lists", disordered, "==", 0, users, "A better rank must not have a lower score."),
            compare("nondeterministic", different, "==", 0, users, "The same request must get the same answer twice."),
            compare("incomplete_lists", short, "==", 0, users, "Lists must be full, without repetition."),
        ]


class ExtremeInputs:
    """Features nobody has seen: all null, huge, huge and negative; and rows of another width."""

    name = "extreme inputs"

    def run(self, context: GateContext) -> list[Check]:
        """Score them, and offer a column too few and one too many."""
        ranker, width = context.bundle.recommender.ranker, len(context.bundle.recommender.columns)
        rows = np.vstack([np.full(width, value, np.float32) for value in (np.nan, 0.0, 3e38, -3e38)])
        with np.errstate(all="ignore"):
            scores = ranker.score(rows)
            bad = int((~np.isfinite(scores) | ~np.isfinite(ranker.probability(scores))).sum())
        accepted = sum(_accepts(context, np.zeros((2, width + change), np.float32)) for change in (-1, 1))
        return [
            compare(
                "non_finite_on_extremes",
                bad,
                "==",
                0,
                f"of {len(rows)} rows",
                "Nulls (a user nobody knows) and huge values must give a number: a NaN ranks at random.",
            ),
            compare(
                "wrong_width_accepted",
                accepted,
                "==",
                0,
                "of 2",
                "A row with a feature missing, or one too many, must be refused, not scored.",
            ),
        ]


def _asked_twice(recommender: Recommender, live: Live, user_id: str, now_us: int) -> tuple[Slate, bool]:
    """Return a user's list, and whether the model makes it twice of the same rows.

    They are read once: while people use the shop, a second reading brings others.
    """
    user = live.reader.user(user_id, now_us)
    draft, again = (recommender.draft(user, live.table, now_us, k=K) for _ in range(2))
    pairs = live.reader.pairs(user_id, draft.item_ids, now_us)
    slate = recommender.finish(draft, pairs)
    same = draft.item_ids == again.item_ids and slate.items == recommender.finish(again, pairs).items
    return slate, same


def _ordered(raw: np.ndarray, scores: list[float], context: GateContext) -> bool:
    """Say whether what is shown falls from rank to rank; diversity and new items may move places on purpose."""
    policy = context.bundle.recommender.policy
    if policy.diversity.kind != "off" or policy.new_items.slots:
        order = np.argsort(-raw, kind="stable")
        return bool((np.diff(np.asarray(scores)[order]) <= 1e-12).all())
    return bool((np.diff(raw) <= 0).all() and (np.diff(scores) <= 1e-12).all())


def _accepts(context: GateContext, rows: np.ndarray) -> bool:
    try:
        context.bundle.recommender.ranker.score(rows)
    except BadInputError:
        return False
    return True
