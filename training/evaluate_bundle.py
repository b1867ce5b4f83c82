"""Grades a bundle, as it lies on disk, on the events after its training end."""

from __future__ import annotations

from collections.abc import Callable

from feature_repo.asof import AsOfReader
from feature_repo.errors import BadInputError
from serving.bundle import Bundle
from training.baselines import baselines
from training.evaluate import Evaluation, evaluate
from training.offline_table import offline_item_table
from training.split import Log, Window, drawn


def held_out_window(bundle: Bundle) -> Window:
    """Return the window a bundle was held out from."""
    return Window(bundle.manifest["trained_until_us"], bundle.manifest["test_until_us"])


def evaluate_bundle(
    bundle: Bundle,
    reader: AsOfReader,
    log: Log,
    seed: int,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
    *,
    users: int | None = None,
) -> Evaluation:
    """Run the protocol for a loaded bundle.

    Parameters
    ----------
    reader
        Offline features as of the start of the bundle's test window.
    users
        Grade so many users, drawn by the seed; None grades all.

    Raises
    ------
    BadInputError
        If nobody took anything in the test window.
    """
    window = held_out_window(bundle)
    targets = log.targets(window, bundle.manifest["target"])
    if not targets:
        raise BadInputError(f"no {bundle.manifest['target']} events in the test window: nothing to evaluate on")
    if users is not None:
        targets = drawn(targets, users, [seed, 3])
    return evaluate(
        bundle.recommender,
        baselines(bundle.recommender.generators),
        reader,
        offline_item_table(reader, window.start_us),
        window,
        targets,
        seed=seed,
        on_progress=lambda done, total: report("evaluate", done, total),
    )
