"""A read of Feast's API: all views of a request in one round trip, its response filled from wire bytes.

Feast's own loop asks view by view and makes a message per cell in Python (docs/decisions/0008).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureView
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import _get_table_entity_values, _populate_response_from_feature_data

from feature_repo.online_keys import checked_project
from feature_repo.packed_row import PackedRows, read_rows
from feature_repo.protobuf_rows import FeastView, ReadRow
from feature_repo.read_request import Command, ReadPlan, RowsOf, Stored
from feature_repo.rows import within_max_age


class FeastViews:
    """Layouts of Feast's views, by identity: making one takes longer than reading rows with it.

    Feast hands out the same objects until its registry's cache expires.
    """

    _MOST = 256

    def __init__(self) -> None:
        self._known: dict[int, tuple[FeatureView, FeastView]] = {}  # the table is held, so that its id stays its own

    def of(self, table: FeatureView) -> FeastView:
        """Return the layout of a view."""
        known = self._known.get(id(table))
        if known is None:
            if len(self._known) >= self._MOST:
                self._known.clear()
            known = self._known[id(table)] = (table, FeastView(table))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One view of a request: which of the rows read stands at which place of the response (None: all in order)."""

    table: FeatureView
    view: FeastView
    features: list[str]
    rows: RowsOf
    places: list[int] | None


class FeastRequest:
    """What Feast asks of the online store in one `get_online_features`.

    Parameters
    ----------
    grouped_refs, join_key_values, join_keys
        As Feast hands them to `_read_features_per_fv`: views with the features asked for, entity values by join key,
        join keys by entity name.
    views
        Where the layouts of earlier requests are kept.

    Raises
    ------
    BadInputError
        If a view's entity is missing or null.
    """

    def __init__(
        self,
        project: str,
        grouped_refs: Sequence[tuple[FeatureView, list[str]]],
        join_key_values: Mapping[str, Sequence[Value]],
        join_keys: Mapping[str, str],
        views: FeastViews,
    ) -> None:
        self._asked = [
            _asked(table, views.of(table), features, _get_table_entity_values(table, join_keys, join_key_values))
            for table, features in grouped_refs
        ]
        self._plan = ReadPlan(checked_project(project), [asked.rows for asked in self._asked])

    @property
    def commands(self) -> list[Command]:
        """What to ask Redis."""
        return self._plan.commands

    def fill(
        self, replies: Sequence[Any], response: GetOnlineFeaturesResponse, *, full_names: bool, with_versions: bool
    ) -> None:
        """Append every feature to Feast's response.

        Raises
        ------
        ForeignRowError
            If a row was written with another schema, or is damaged.
        """
        now_us = time.time_ns() // 1000
        for asked, (_, _, stored) in zip(self._asked, self._plan.stored(replies), strict=True):
            table, rows = asked.table, _rows(asked.view, stored, now_us)
            n = len(rows) if asked.places is None else len(asked.places)
            prefix = f"{table.projection.name_to_use()}__" if full_names else ""
            response.metadata.feature_names.val.extend([prefix + name for name in asked.features])
            if with_versions:  # Feast adds those of the view, and nothing else where there are no features
                _populate_response_from_feature_data([], [], (), response, full_names, table, n, with_versions)
            if asked.places is not None and len(rows) > 1:
                rows = rows.take(asked.places)
            asked.view.fill(response, rows, asked.features, n)


class KeyedRead:
    """What Feast asks in `online_read`: rows of one view by entity key."""

    def __init__(self, project: str, table: FeatureView, keys: Sequence[EntityKey]) -> None:
        self._view, self._table = FeastView(table), table
        entities = [self._view.entities(key) for key in keys]
        first, fields = [first for first, _ in entities], [field for _, field in entities if field is not None]
        request = RowsOf(self._view.layout, first, fields if len(self._view.layout.entities) > 1 else None)
        self._plan = ReadPlan(checked_project(project), [request])

    @property
    def commands(self) -> list[Command]:
        """What to ask Redis."""
        return self._plan.commands

    def rows(self, replies: Sequence[Any], features: Sequence[str] | None) -> list[ReadRow]:
        """Return the rows as Feast's values; all features where `features` is None."""
        ((_, _, stored),) = self._plan.stored(replies)
        rows = _rows(self._view, stored, time.time_ns() // 1000)
        return self._view.unpack(rows, features or [field.name for field in self._table.features])


def _asked(table: FeatureView, view: FeastView, features: list[str], values: Mapping[str, Sequence[Value]]) -> _Asked:
    first, fields = view.entity_columns(values)
    index: dict[Any, int] = {}
    keys: Sequence[Any] = first if fields is None else list(zip(first, fields, strict=True))
    places = [index.setdefault(key, len(index)) for key in keys]
    if len(index) == len(keys):
        return _Asked(table, view, features, RowsOf(view.layout, first, fields), None)
    # An entity that stands in several rows (the user, in every row of its items) is read once.
    if fields is None:
        return _Asked(table, view, features, RowsOf(view.layout, list(index)), places)
    first, fields = (list(column) for column in zip(*index, strict=True))
    return _Asked(table, view, features, RowsOf(view.layout, first, fields), places)


def _rows(view: FeastView, stored: Stored, now_us: int) -> PackedRows:
    rows = read_rows(view.layout, stored)
    return rows if view.max_age_us is None else rows.only(within_max_age(view.max_age_us, rows.time, now_us))
