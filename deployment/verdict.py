"""The verdict: every check with its measured value, threshold, interval and result. PURE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from feature_repo.errors import BadInputError

Result = Literal["pass", "fail", "inconclusive"]
Op = Literal[">", ">=", "<", "<=", "=="]
#: What a version's tag says of its verdict.
Word = Literal["passed", "failed", "inconclusive"]
#: MLflow takes longer tags; nobody reads them.
REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One question the gate asked of a model.

    Attributes
    ----------
    value, threshold, unit
        What was measured and what was demanded; `op` says on which side of the threshold the value must lie. A value
        that could not be measured is NaN.
    low, high
        95 % interval of the value where it has one.
    explanation
        For the data scientist: what it means and what to do.
    """

    name: str
    result: Result
    value: float
    op: Op
    threshold: float
    unit: str
    explanation: str
    low: float | None = None
    high: float | None = None

    def line(self) -> str:
        """Return the figures in words: value, unit, demand and interval."""
        unit = f" {self.unit}" if self.unit else ""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{unit} (must be {self.op} {self.threshold:.4g}){interval}"


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """What the champion's log of explored places says of the candidate. Informative: nothing is decided by it.

    Attributes
    ----------
    text
        What was asked and of how much; or why there is no answer.
    lines
        What, its clicks per explored place, and the ends of the 95 % interval; empty where the log cannot tell.
    """

    text: str
    lines: tuple[tuple[str, float, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one model version; names the content (`bundle_id`), not the place it lay in.

    Attributes
    ----------
    bundle_id
        What was judged; empty where there was nothing that could be made into a bundle.
    thresholds_hash
        Hash of the thresholds it was held against.
    champion_version
        Version it was compared with; empty where there was none.
    run_id
        MLflow run of the version; empty where it has none.
    off_policy
        What the log says beside the checks; None where it was not asked.
    """

    model: str
    version: str
    bundle_id: str
    gated_at: str
    checks: tuple[Check, ...]
    thresholds_hash: str = ""
    feature_service: str = ""
    feature_service_hash: str = ""
    champion_version: str = ""
    run_id: str = ""
    off_policy: OffPolicy | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed; an inconclusive one does not."""
        return bool(self.checks) and all(check.result == "pass" for check in self.checks)

    @property
    def word(self) -> Word:
        """One word for the tag: a check that failed weighs more than one that could not tell."""
        if self.passed:
            return "passed"
        return "failed" if any(check.result == "fail" for check in self.checks) else "inconclusive"

    @property
    def reason(self) -> str:
        """One line: what stopped the model, or that nothing did."""
        red = [check for check in self.checks if check.result == "fail"] or [
            check for check in self.checks if check.result == "inconclusive"
        ]
        if not red:
            return f"passed all {len(self.checks)} checks"
        text = f"{self.word}: " + "; ".join(f"{check.name} {check.line()}" for check in red)
        return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"

    def to_dict(self) -> dict[str, Any]:
        """Return the document that is kept in MLflow and in the ledger; JSON has no NaN, so it says null."""
        checks = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(check).items()
            }
            for check in self.checks
        ]
        return {**asdict(self), "checks": checks, "passed": self.passed}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Verdict:
        """Read `to_dict` back.

        Raises
        ------
        BadInputError
            If a field is missing that every verdict has, or of the wrong kind.
        """
        try:
            checks = tuple(_check(one) for one in document["checks"])
            wanted = [one.name for one in fields(cls) if one.name in document or one.default is MISSING]
            texts = {name: str(document[name]) for name in wanted if name not in {"checks", "off_policy"}}
            said = _off_policy(document.get("off_policy"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"not a verdict: {error!r}") from None
        return cls(**texts, checks=checks, off_policy=said)

    def lines(self) -> list[str]:
        """One line per check, for people."""
        return [f"{check.result:>12}  {check.name:<26} {check.line()}" for check in self.checks]


def compare(name: str, value: float, op: Op, threshold: float, unit: str, explanation: str) -> Check:
    """Make a check of a single number; NaN never passes."""
    return Check(name, "pass" if holds(value, op, threshold) else "fail", value, op, threshold, unit, explanation)


def holds(value: float, op: Op, threshold: float) -> bool:
    """Say whether a value lies on the right side; NaN never does."""
    return {
        ">": value > threshold,
        ">=": value >= threshold,
        "<": value < threshold,
        "<=": value <= threshold,
        "==": value == threshold,
    }[op]


def _off_policy(said: Mapping[str, Any] | None) -> OffPolicy | None:
    if said is None:
        return None
    lines = ((str(what), float(value), float(low), float(high)) for what, value, low, high in said["lines"])
    return OffPolicy(str(said["text"]), tuple(lines))


def _check(one: Mapping[str, Any]) -> Check:
    if one["result"] not in get_args(Result) or one["op"] not in get_args(Op):
        raise ValueError(f"{one['result']!r} {one['op']!r}")
    low, high = (None if one[name] is None else float(one[name]) for name in ("low", "high"))
    return Check(
        str(one["name"]),
        one["result"],
        math.nan if one["value"] is None else float(one["value"]),
        one["op"],
        float(one["threshold"]),
        str(one["unit"]),
        str(one["explanation"]),
        low,
        high,
    )
