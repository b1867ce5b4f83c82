"""Counts which features were missing in what the ranker saw: a broken one shows here before it shows in clicks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_repo.services import feature_list


class MissingFeatures(Collector):
    """Sums per feature, kept as arrays: a counter object per feature would cost fifty calls a request.

    Features of several services that have one name are one feature, with one sum.
    """

    def __init__(self) -> None:
        self._missing: dict[str, npt.NDArray[np.int64]] = {}
        self._rows: dict[str, int] = {}

    def add(self, service: str, matrix: npt.NDArray[np.float32]) -> None:
        """Count what is missing in the rows of the served items.

        Parameters
        ----------
        service
            Name of the feature service the columns are of.
        matrix
            float32, one row per item; a column per feature, then retrieval's; NaN is missing.
        """
        missing = self._missing.get(service)
        if missing is None or len(missing) != matrix.shape[1]:
            missing = self._missing[service] = np.zeros(matrix.shape[1], np.int64)
        missing += np.isnan(matrix).sum(axis=0)
        self._rows[service] = self._rows.get(service, 0) + len(matrix)

    def collect(self) -> Iterator[Metric]:
        """Give the sums to Prometheus."""
        missing: dict[str, int] = {}
        rows: dict[str, int] = {}
        for service, counts in list(self._missing.items()):
            for name, count in zip(feature_list(service), counts, strict=False):  # retrieval's columns follow
                missing[name] = missing.get(name, 0) + int(count)
                rows[name] = rows.get(name, 0) + self._rows[service]
        values = CounterMetricFamily(
            "larder_missing_feature_values", "Values of served items the ranker had to do without", labels=["feature"]
        )
        seen = CounterMetricFamily("larder_feature_values", "Values the ranker saw of served items", labels=["feature"])
        for name, count in missing.items():
            values.add_metric([name], count)
            seen.add_metric([name], rows[name])
        yield values
        yield seen
