"""The verdict: every check with its measured value, threshold, interval and result. PURE."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Result = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question the gate asked of a model.

    Attributes
    ----------
    value, threshold, unit
        What was measured and what was demanded; `op` says on which side of the threshold the value must lie.
    low, high
        95 % interval of the value where it has one.
    explanation
        One sentence for the data scientist: what it means and what to do.
    """

    name: str
    result: Result
    value: float
    op: Literal[">", "<", "<=", "=="]
    threshold: float
    unit: str
    explanation: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one model version; names the content (`bundle_id`), not the place it lay in."""

    model: str
    version: str
    bundle_id: str
    gated_at: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed; an inconclusive one does not."""
        return all(check.result == "pass" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that is kept in MLflow and in the ledger."""
        return {**asdict(self), "passed": self.passed}

    def lines(self) -> list[str]:
        """One line per check, for people."""
        return [
            f"{check.result:>12}  {check.name:<22} {check.value:.4g} {check.unit} (must be {check.op} "
            f"{check.threshold:.4g})" + (f" [{check.low:.4g}, {check.high:.4g}]" if check.low is not None else "")
            for check in self.checks
        ]


def compare(
    name: str, value: float, op: Literal[">", "<", "<=", "=="], threshold: float, unit: str, explanation: str
) -> Check:
    """Make a check of a single number; NaN never passes."""
    ok = {">": value > threshold, "<": value < threshold, "<=": value <= threshold, "==": value == threshold}[op]
    return Check(name, "pass" if ok else "fail", value, op, threshold, unit, explanation)
