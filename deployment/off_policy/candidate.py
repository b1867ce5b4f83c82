"""Would the candidate fill the champion's explored places better? Asked of its log; nothing is decided by it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np

from deployment.off_policy.answer import Answer, answer
from deployment.off_policy.estimators import F64, I64, Logged, Terms, clip_at, clipped, dr, folds_of
from deployment.off_policy.explored_log import Round, days, read_rounds
from deployment.off_policy.intervals import intervals
from deployment.verdict import OffPolicy
from feature_repo.asof import AsOfReader
from feature_repo.settings import Settings
from serving.bundle import Bundle
from serving.cascade.items import ItemTable
from training.offline_table import offline_item_table

_FOLDS: Final = 5
_EVERY: Final = 200


def off_policy(
    settings: Settings,
    candidate: Bundle,
    champion: Bundle | None,
    now_us: int,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> OffPolicy:
    """Ask the champion's log what the candidate's choices would have earned in the places that were drawn.

    The candidate chooses, of the items that could have been drawn, the one it scores highest, by features as of the
    beginning of that day: what it may know there was known before the draw, so the estimate is of a policy.
    """
    if champion is None:
        return OffPolicy("Nothing serves yet, so there is no log to ask.")
    rounds = read_rounds(settings, champion.bundle_id, now_us)
    if not rounds:
        return OffPolicy(
            "The champion has explored nothing that is an hour old: with the setting exploration = epsilon or thompson "
            "its log could be asked what the candidate would have earned."
        )
    logged = as_logged(rounds, chosen_by(settings, candidate, rounds, report))
    stays = as_logged(rounds, np.zeros(len(rounds), np.int64))
    return told(answer(logged, seed=settings.seed), answer(stays, seed=settings.seed), difference(logged, stays))


def chosen_by(
    settings: Settings,
    bundle: Bundle,
    rounds: list[Round],
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> I64:
    """Return which of the items that could be drawn a bundle scores highest in each round, shape (rounds,)."""
    out, done = np.zeros(len(rounds), np.int64), 0
    for day, those in days(rounds):
        start_us = round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1e6)
        reader = AsOfReader(settings, start_us)
        table = offline_item_table(reader, start_us)
        for one in those:
            out[done] = _best(bundle, reader, table, one)
            done += 1
            if done % _EVERY == 0 or done == len(rounds):
                report("ask the log", done, len(rounds))
    return out


def _best(bundle: Bundle, reader: AsOfReader, table: ItemTable, one: Round) -> int:
    """Return the position of the item with the highest score; items of that day are not known yet, and not chosen."""
    items = table.lookup(one.slot.item_ids)
    known = np.flatnonzero(items >= 0)
    if not len(known):
        return 0
    pairs = reader.pairs(one.user_id, [one.slot.item_ids[i] for i in known], one.time_us)
    user = reader.user(one.user_id, one.time_us)
    scores = bundle.recommender.score(user, table, items[known], pairs, one.time_us)
    return int(known[np.argmax(scores)])


def as_logged(rounds: list[Round], chosen: I64) -> Logged:
    """Return rounds as a log of a policy that takes `chosen`; the champion's probabilities, scaled, are DR's model."""
    reward = np.array([float(one.clicked) for one in rounds])
    propensity = np.array([one.slot.propensities[one.slot.taken] for one in rounds])
    target = np.array([float(one.slot.taken == arm) for one, arm in zip(rounds, chosen.tolist(), strict=True)])
    _, unit = np.unique([one.user_id for one in rounds], return_inverse=True)
    shown = np.array([one.slot.scores[one.slot.taken] for one in rounds])
    wanted = np.array([one.slot.scores[arm] for one, arm in zip(rounds, chosen.tolist(), strict=True)])
    scale = _scale(shown, reward, folds_of(unit, _FOLDS))
    return Logged(reward, propensity, target, unit, np.zeros(len(rounds)), scale * shown, scale * wanted)


def _scale(score: F64, reward: F64, fold: I64) -> F64:
    """Return clicks per unit of the model's probability, for each round by the rounds of other folds."""
    clicks = np.bincount(fold, weights=reward, minlength=_FOLDS)
    scores = np.bincount(fold, weights=score, minlength=_FOLDS)
    return np.asarray(((clicks.sum() - clicks) / np.maximum(scores.sum() - scores, 1e-12))[fold])


def difference(candidate: Logged, champion: Logged) -> tuple[float, float, float]:
    """Return by how much the candidate's DR exceeds the champion's, with a 95 % interval, from the same resamples."""
    above = [np.zeros(len(candidate))] * 2
    for place, one in enumerate((candidate, champion)):
        if one.predicted is not None and one.expected is not None:
            weight = clipped(one.weight, clip_at(len(one)))
            above[place] = dr(one.reward, weight, one.predicted, one.expected).above
    terms = Terms(above[0] - above[1], np.ones(len(candidate)))
    low, high = intervals([terms], candidate.unit)[0].tolist()
    return terms.value, low, high


def told(candidate: Answer, champion: Answer, gain: tuple[float, float, float]) -> OffPolicy:
    """Put the answer into words; where the log cannot tell, why."""
    if candidate.refused:
        why = " ".join(candidate.refused)
        return OffPolicy(f"The champion's log cannot tell what the candidate would have earned. {why}")
    about = (
        f"{candidate.rounds:,} explored places of {candidate.units:,} users with {candidate.rewarded:,} clicks, "
        f"worth {candidate.effective_rounds:,.0f} places and {candidate.effective_rewards:,.0f} clicks of the "
        "candidate's own."
    )
    lines = [(f"candidate, {one.estimator}", one.value, one.low, one.high) for one in candidate.estimates]
    if champion.refused:
        return OffPolicy(about, tuple(lines))
    lines += [(f"champion, {one.estimator}", one.value, one.low, one.high) for one in champion.estimates]
    word = "better" if gain[1] > 0 else "worse" if gain[2] < 0 else "not shown to be better or worse"
    text = f"{about} In these places the candidate is {word}."
    return OffPolicy(text, (*lines, ("candidate less champion, DR", *gain)))
