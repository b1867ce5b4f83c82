"""Whether the model was made for the features it would be given, in their order."""

from __future__ import annotations

from deployment.checks.contract import GateContext
from deployment.verdict import Check, compare
from feature_repo.services import service_hash


class Schema:
    """Hash of the feature service, and the names inside the model file against the columns of the cascade."""

    name = "schema"

    def run(self, context: GateContext) -> list[Check]:
        """Compare names position by position."""
        manifest = context.bundle.manifest
        service = str(manifest["feature_service"])
        columns = context.bundle.recommender.columns[: manifest["ranker"].get("columns")]
        same = manifest["feature_service_hash"] == service_hash(service)
        return [
            compare(
                "feature_service",
                int(not same),
                "==",
                0,
                "differences",
                f"The model is bound to {service} ({service_hash(service)}): same features, same layout of the state.",
            ),
            check_names(context.parsed.features, columns),
        ]


def check_names(found: tuple[str, ...], expected: tuple[str, ...]) -> Check:
    """Compare the names a model file carries with those it will be given.

    A file without names (numbers only) is held to their count: golden rows pin the order of a bundle.
    """
    problem = name_problem(found, expected)
    return Check(
        "feature_list",
        "fail" if problem else "pass",
        float(_wrong(found, expected)),
        "==",
        0.0,
        "columns",
        problem or f"The {len(found)} columns the model takes are those it will be given, in that order.",
    )


def name_problem(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Say what is wrong with a feature list; empty if nothing is."""
    if found == expected or (anonymous(found) and len(found) == len(expected)):
        return ""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("also wants", extra)) if names]
        return f"The model {' and '.join(parts)}: train on exactly the columns of `candidate_frame`, in their order."
    where = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
    return (
        f"The model takes the same columns in another order: at position {where} it wants {found[where]!r}, it would "
        f"be given {expected[where]!r}. Every score would be nonsense that looks like a score."
    )


def anonymous(names: tuple[str, ...]) -> bool:
    """Say whether a library made the names up, because the model was trained on a bare array.

    Examples
    --------
    >>> anonymous(("0", "1")), anonymous(("Column_0", "Column_1")), anonymous(("f0", "f1")), anonymous(("f_price",))
    (True, True, True, False)
    """
    return any(
        all(name == f"{prefix}{i}" for i, name in enumerate(names)) for prefix in ("", "Column_", "f", "feature_")
    )


def _wrong(found: tuple[str, ...], expected: tuple[str, ...]) -> int:
    if anonymous(found):
        return abs(len(found) - len(expected))
    return sum(a != b for a, b in zip(found, expected, strict=False)) + abs(len(found) - len(expected))


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
