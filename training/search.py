"""What a trial of a search is judged by: nDCG@10 on rolling cuts before the test, generators fitted once per cut.

The final cut is never looked at: not by the generators, not by the ranker, not by the judge.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_repo.asof import AsOfReader
from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from serving.candidates.contract import CandidateGenerator
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Recommender
from training.fit_ranker import fit_ranker
from training.generators.contract import Past
from training.line_up import fit_line_up
from training.metrics import per_user
from training.offline_table import offline_item_table
from training.save_bundle import feature_columns
from training.split import Log, Window, drawn, split_by_time
from training.train import Stopwatch, TrainConfig, WindowRows, read_log, window_rows

F64 = npt.NDArray[np.float64]
#: Called between steps with what is done next; may raise to end the trial.
Step = Callable[[str], None]

METRIC: Final = "ndcg@10"
#: Configurations whose rows are kept: neighbours of a search often differ in the ranker only.
_KEPT: Final = 2


@dataclass(frozen=True)
class _AsOf:
    """Everything as of the start of a window; its past remembers which generators it has fitted."""

    reader: AsOfReader
    table: ItemTable
    past: Past


class Judge:
    """Trains and judges configurations on rolling cuts.

    A training as `larder train` does it, but for the final cut: at each cut the ranker learns from the `windows` before
    it, through the production cascade. Generators are fitted once per window and setting, and kept.

    Parameters
    ----------
    config
        The protocol: target, repeats, windows, users. Of the configurations judged only what may be searched counts.
    cuts
        How many rolling cuts a configuration is judged at, the latest first.

    Raises
    ------
    BadInputError
        If the events reach back too little.
    """

    def __init__(self, settings: Settings, config: TrainConfig, cuts: int) -> None:
        self._settings, self._config = settings, config
        self.log: Log = read_log(settings)
        split = split_by_time(
            self.log.time_us, test_share=config.test_share, windows=config.windows + cuts, stride=config.stride
        )
        self._rolling = split.rolling
        if len(self._rolling) <= cuts:
            raise BadInputError(
                f"{len(self._rolling)} rolling windows are too few for {cuts} cuts and one to learn from"
            )
        #: The windows a configuration is judged at, by number, the latest first.
        self.cuts: tuple[int, ...] = tuple(range(len(self._rolling), len(self._rolling) - cuts, -1))
        self._known: dict[int, _AsOf] = {}
        self._rows: OrderedDict[str, dict[int, WindowRows]] = OrderedDict()

    def judge(self, config: TrainConfig, step: Step = lambda what: None) -> Iterator[F64]:
        """Train at each cut and yield nDCG@10 of its warm users, shape (users,), the latest cut first.

        A caller that has seen enough stops asking; what was not asked for is not computed.
        """
        config = replace(config, target=self._config.target, repeats=self._config.repeats, windows=self._config.windows)
        for number, cut in enumerate(self.cuts, start=1):
            yield self._judge_at(config, cut, partial(_said, step, f"cut {number} of {len(self.cuts)}: "))

    def _judge_at(self, config: TrainConfig, cut: int, step: Step) -> F64:
        rows = [self._window_rows(config, number, step) for number in range(max(cut - config.windows, 1), cut)]
        step("ranker")
        reader, table, generators = self._fitted(config, cut, step)
        names = feature_columns(config.service, generators)
        seed, threads = self._settings.seed, self._settings.threads
        ranker = fit_ranker([one.rows for one in rows], names, config.ranker, seed=seed, threads=threads).ranker
        recommender = Recommender(generators, ranker, config.service, config.policy, fusion=rows[-1].fusion)
        step("lists")
        window = self._rolling[cut - 1]
        targets = self._targets(window, [seed, 3])
        lists, wanted = {}, {}
        for user_id, taken in targets.items():
            if reader.user(user_id, window.start_us).known:
                slate = recommender.recommend(reader, table, user_id, window.start_us, k=10)
                lists[user_id], wanted[user_id] = [item.item_id for item in slate.items], taken
        if not wanted:
            raise BadInputError(f"nobody known takes anything at cut {cut}: nothing to judge by")
        return per_user(lists, wanted)[METRIC]

    def _targets(self, window: Window, seed: list[int]) -> dict[str, set[str]]:
        targets = self.log.targets(window, self._config.target)
        return targets if self._config.users is None else drawn(targets, self._config.users, seed)

    def _window_rows(self, config: TrainConfig, number: int, step: Step) -> WindowRows:
        """Return the rows of a window, its lists fused as the window before it taught: from the first one on."""
        key = repr((config.line_up, config.fusion, config.candidates, config.sampling))
        known = self._rows.setdefault(key, {})
        self._rows.move_to_end(key)
        while len(self._rows) > _KEPT:
            self._rows.popitem(last=False)
        if number not in known:
            before = self._window_rows(config, number - 1, step).fusion if number > 1 else None
            step(f"window {number}")
            known[number] = window_rows(
                self._settings,
                config,
                self.log,
                self._rolling[number - 1],
                number,
                Stopwatch(),
                lambda done, total: None,
                before,
                self._fitted(config, number, step),
            )
        return known[number]

    def _fitted(
        self, config: TrainConfig, number: int, step: Step
    ) -> tuple[AsOfReader, ItemTable, tuple[CandidateGenerator, ...]]:
        start = self._rolling[number - 1].start_us
        if number not in self._known:
            step(f"features of window {number}")
            reader = AsOfReader(self._settings, start)
            table = offline_item_table(reader, start)
            past = Past(self.log.before(start), table, start, self._settings.seed, self._settings.threads)
            self._known[number] = _AsOf(reader, table, past)
        as_of = self._known[number]
        return as_of.reader, as_of.table, fit_line_up(config.line_up, as_of.past)


def _said(step: Step, prefix: str, what: str) -> None:
    step(prefix + what)
