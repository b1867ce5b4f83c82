"""Makes a bundle of a plain ranker: the champion's generators and policy, the ranker, a calibration on rows of its own.

The calibration is fitted on the window before the champion's test window, with generators fitted before that one: rows
as the ranker's training could have had, never those it will be judged on.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

import numpy as np

from deployment.blame import surroundings
from deployment.checks.schema import anonymous, name_problem
from deployment.plain_ranker import PlainRanker
from feature_repo.errors import BadInputError
from feature_repo.services import feature_list, service_hash
from feature_repo.settings import Settings
from serving.bundle import Bundle, FeatureListError, load_ranker, write_manifest
from serving.candidates.load import read_arrays
from serving.cascade.features import retrieval_columns
from serving.cascade.ranker import RANKER_FILES, Calibration, FirstColumns
from training.candidate_rows import RankerRows
from training.evaluate_bundle import held_out_window
from training.fit_ranker import fit_calibration
from training.generators.als import Als
from training.generators.contract import GeneratorFit, Ready
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.next_basket import NextBasket
from training.line_up import LineUp
from training.npz import write_npz
from training.save_bundle import GOLDEN_TOLERANCE
from training.split import Window
from training.train import GOLDEN_ROWS, Progress, Stopwatch, TrainConfig, read_log, window_rows

_UNCALIBRATED: Final = Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
#: Generators that a bundle's settings can be read back to.
_FITS: Final[tuple[type[Any], ...]] = (Als, Cooccurrence, Ease, NextBasket)
#: Users of the validation window at most: isotonic regression needs no more.
_USERS: Final = 2000


class NonFiniteError(BadInputError):
    """A ranker scores rows with NaN or infinity."""


@dataclass(frozen=True)
class Composed:
    """A bundle in the content store."""

    bundle_id: str
    directory: Path


def compose_bundle(
    settings: Settings, champion: Bundle, directory: Path, ranker: PlainRanker, service: str, report: Progress
) -> Composed:
    """Compose a ranker with the champion's first stage.

    Parameters
    ----------
    directory
        Where the champion's bundle lies.
    service
        Feature service the ranker was trained on.

    Returns
    -------
    Composed
        The same ranker, champion and data give the same `bundle_id`.

    Raises
    ------
    BadInputError
        If the ranker takes other columns than the cascade has, or scores that are not finite.
    UnavailableError
        If there are no rows to calibrate it on, which is not the ranker's doing.
    """
    generators = champion.recommender.generators
    columns = (*feature_list(service), *retrieval_columns([g.name for g in generators]))
    width = _width(ranker, service, columns)
    with surroundings(f"make the validation rows of {service} with the champion's generators"):
        rows = validation_rows(settings, champion, service, report)
    whole = load_ranker(ranker.kind, ranker.path, _UNCALIBRATED)
    scores = whole.score(rows.matrix[:, :width])
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} validation rows score NaN or infinite; look for "
            "them in the trees' leaves"
        )
    calibrated = replace(whole, calibration=fit_calibration(scores, rows))
    narrow = {} if width == len(columns) else {"columns": width}
    final = FirstColumns(calibrated, width, len(columns)) if narrow else calibrated
    golden = np.ascontiguousarray(rows.matrix[:: max(len(rows) // GOLDEN_ROWS, 1)][:GOLDEN_ROWS])
    old = champion.manifest
    settings.bundles_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.bundles_dir, prefix=".compose-") as work:
        made = Path(work) / "bundle"
        made.mkdir()
        for name in old["files"]:  # generators, popular items, a purchase model: as the champion has them
            if name != RANKER_FILES[old["ranker"]["kind"]]:
                shutil.copyfile(directory / name, made / name)
        shutil.copyfile(ranker.path, made / RANKER_FILES[ranker.kind])
        knots = calibrated.calibration
        write_npz(made / "calibration.npz", score=knots.score, probability=knots.probability)
        write_npz(made / "golden.npz", matrix=golden, score=final.score(golden))
        kept = ("name", "generators", "policy", "data_hash", "trained_until_us", "test_until_us", "target", "purchase")
        bundle_id = write_manifest(
            made,
            {
                **{name: old[name] for name in kept if name in old},
                "feature_service": service,
                "feature_service_hash": service_hash(service),
                "features": list(columns),
                "ranker": {"kind": ranker.kind, **narrow},
                "golden_tolerance": GOLDEN_TOLERANCE,
                "code_version": version_of("larder"),
                "seed": settings.seed,
                # What was fitted how: the next ranker may be composed with this one.
                "config": old["config"] | {"ranker": {"registered_sha256": ranker.sha256}, "service": service},
                "composed_with": champion.bundle_id,
                "volatile": {"created_at": datetime.now(UTC).isoformat()},
            },
        )
        target = settings.bundles_dir / bundle_id
        if not target.exists():
            made.rename(target)
    return Composed(bundle_id, target)


def validation_rows(settings: Settings, champion: Bundle, service: str, report: Progress) -> RankerRows:
    """Return labelled rows of the window before the champion's test window, kept for the next ranker."""
    path = settings.root / "gate" / f"validation-{champion.bundle_id}-{service}-{service_hash(service)}.npz"
    if path.is_file():
        kept = read_arrays(path)
        return RankerRows(kept["matrix"], kept["label"], kept["weight"], kept["group"])
    test = held_out_window(champion)
    window = Window(test.start_us - (test.end_us - test.start_us), test.start_us)
    manifest = champion.manifest
    config = TrainConfig(
        target=manifest["target"],
        repeats=champion.recommender.policy.repeats,
        service=service,
        candidates=champion.recommender.policy.candidates,
        users=_USERS,
        line_up=champion_line_up(champion),
    )

    def on_progress(done: int, total: int) -> None:
        report("validation rows", done, total)

    rows = window_rows(settings, config, read_log(settings), window, 1, Stopwatch(), on_progress).rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".rows-", delete=False) as file:
        temporary = Path(file.name)
    write_npz(temporary, matrix=rows.matrix, label=rows.label, weight=rows.weight, group=rows.group)
    temporary.replace(path)
    return rows


def champion_line_up(champion: Bundle) -> LineUp:
    """Return the settings that the champion's generators were fitted with.

    Raises
    ------
    BadInputError
        For a generator whose settings the bundle does not tell.
    """
    entries: list[dict[str, Any]] = champion.manifest["config"]["line_up"]
    return tuple(
        _fit_of(generator, entry) for generator, entry in zip(champion.recommender.generators, entries, strict=True)
    )


def _fit_of(generator: Any, entry: dict[str, Any]) -> GeneratorFit:
    if set(entry) == {"generator", "quota"}:
        return Ready(generator, entry["quota"])
    for one in _FITS:
        if set(entry) == {field.name for field in fields(one)}:
            made: GeneratorFit = one(**entry)
            return made
    raise BadInputError(
        f"the champion's generator {generator.name!r} cannot be fitted again from its bundle; plain rankers can be "
        "composed with generators of the default line-up (training/line_up.py)"
    )


def _width(ranker: PlainRanker, service: str, columns: tuple[str, ...]) -> int:
    """Return how many of the cascade's columns a ranker takes: all, or those of the feature service alone."""
    found, alone = ranker.parsed.features, feature_list(service)
    if anonymous(found):
        raise FeatureListError(
            f"the model does not know the names of its {len(found)} columns, so nobody can say whether their order is "
            "right; train it on a DataFrame (or give the library feature names)"
        )
    if found == alone:
        return len(alone)
    if problem := name_problem(found, columns):
        raise FeatureListError(problem)
    return len(columns)
