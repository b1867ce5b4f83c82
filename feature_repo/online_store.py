"""Feast's online store on packed rows: `PackedRedisOnlineStore`, named in feature_store.yaml.

Feast's API works on it unchanged. Rows are the ones `online_reader` reads and ingest writes (docs/packed-rows.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any, Literal

import redis
import redis.asyncio
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.repo_config import FeastConfigBaseModel
from redis.exceptions import RedisError

from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.events import MAX_FUTURE_S
from feature_repo.online_keys import base_key, checked_project, row_key, row_keys
from feature_repo.protobuf_rows import FeastRow, FeastView, ReadRow, is_ours
from feature_repo.redis_scripts import connect_to, connect_to_async
from feature_repo.row_index import delete_rows
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows, write_rows_async


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc] # Feast has no types
    """Settings of the store in feature_store.yaml."""

    type: Literal["feature_repo.online_store.PackedRedisOnlineStore"] = (
        "feature_repo.online_store.PackedRedisOnlineStore"
    )
    host: str = "127.0.0.1"
    port: int = 6399
    #: Longest wait of a read, as part of a request.
    timeout_ms: int = 50
    #: Longest wait of a write or deletion, which is not.
    write_timeout_ms: int = 10_000


class PackedRedisOnlineStore(OnlineStore):  # type: ignore[misc] # Feast has no types
    """One packed row per (view, entity); a view of two entities is one hash per first entity, declared order."""

    def __init__(self) -> None:
        self._reader: redis.Redis | None = None
        self._writer: redis.Redis | None = None
        self._async_clients: dict[tuple[int, bool], redis.asyncio.Redis] = {}

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Which methods have an asynchronous twin."""
        return SupportedAsyncMethods(read=True, write=True)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows, each atomically and unless a newer one (by `seq`, then feature time) is there.

        Raises
        ------
        BadInputError
            If a row is dated in the future: it would keep honest rows out.
        UnavailableError
            If Redis fails; repeating is safe.
        """
        if self._writer is None:
            self._writer = _connect(config, write=True)
        write_rows(self._writer, checked_project(config.project), _packed(table, data))
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows without blocking the event loop; the twin of `online_write_batch`."""
        client = self._async_client(config, write=True)
        await write_rows_async(client, checked_project(config.project), _packed(table, data))
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Read rows in one round trip; (None, None) where there is none.

        Raises
        ------
        ForeignRowError
            If a row was written with another schema.
        UnavailableError
            If Redis does not answer.
        """
        if self._reader is None:
            self._reader = _connect(config)
        query = _Query(config, table, entity_keys)
        try:
            pipeline = self._reader.pipeline(transaction=False)
            for command in query.commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py has no types there
            return query.decode(pipeline.execute(), requested_features)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Read rows without blocking the event loop; the twin of `online_read`."""
        query = _Query(config, table, entity_keys)
        try:
            pipeline = self._async_client(config).pipeline(transaction=False)
            for command in query.commands:
                pipeline.execute_command(*command)
            return query.decode(await pipeline.execute(), requested_features)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Remove the rows of views that are no longer registered; nothing need be prepared for new ones."""
        self._delete(config, tables_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the rows of the project's views. The event stream stays: it holds accepted events."""
        self._delete(config, tables)

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._reader, self._writer):
            if client is not None:
                client.close()
        self._reader = self._writer = None
        clients, self._async_clients = self._async_clients, {}
        for async_client in clients.values():
            await async_client.aclose()

    def _delete(self, config: RepoConfig, tables: Sequence[FeatureView]) -> None:
        if not tables:
            return
        with _connect(config, write=True) as client:
            for table in tables:
                delete_rows(client, checked_project(config.project), table.name)
            if any(is_ours(table.name) for table in tables):
                # What ingest folded is gone: the next materialisation has to build all rows, not only the older ones.
                client.set(base_key(config.project), "rebuilding", xx=True)

    def _async_client(self, config: RepoConfig, *, write: bool = False) -> redis.asyncio.Redis:
        """Return the client of the running event loop: connections cannot be used from another one."""
        key = (id(asyncio.get_running_loop()), write)
        if key not in self._async_clients:
            options: PackedRedisOnlineStoreConfig = config.online_store
            timeout_ms = options.write_timeout_ms if write else options.timeout_ms
            self._async_clients[key] = connect_to_async(options.host, options.port, timeout_ms)
        return self._async_clients[key]


class _Query:
    """The commands that read some rows, and what their answers mean."""

    def __init__(self, config: RepoConfig, table: FeatureView, entity_keys: Sequence[EntityKey]) -> None:
        self._view, self._n = FeastView(table), len(entity_keys)
        self._features = [field.name for field in table.features]
        project, name = checked_project(config.project), table.name
        found = [self._view.entities(key) for key in entity_keys]
        self._places: list[list[int]] = []  # which rows each command brings
        self.commands: list[tuple[Any, ...]] = []
        hashes: dict[str, list[int]] = {}
        for place, (first, second) in enumerate(found):
            if second is not None:
                hashes.setdefault(first, []).append(place)
        alone = [place for place, (_, second) in enumerate(found) if second is None]
        if alone:
            self._places.append(alone)
            self.commands.append(("MGET", *row_keys(project, name, [found[place][0] for place in alone])))
        for first, places in hashes.items():
            self._places.append(places)
            self.commands.append(("HMGET", row_key(project, name, first), *(found[place][1] for place in places)))

    def decode(self, replies: Sequence[Any], requested: Sequence[str] | None) -> list[ReadRow]:
        values: list[bytes | None] = [None] * self._n
        for places, reply in zip(self._places, replies, strict=True):
            for place, value in zip(places, reply, strict=True):
                values[place] = value
        age = self._view.max_age_us
        oldest = None if age is None else time.time_ns() // 1000 - age
        return self._view.unpack(values, requested or self._features, oldest)


def _packed(table: FeatureView, data: Sequence[FeastRow]) -> ViewRows:
    view = FeastView(table)
    limit = time.time() + MAX_FUTURE_S
    for _, _, when, _ in data:
        aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        if aware.timestamp() > limit:
            raise BadInputError(
                f"a row of {table.name} is dated {aware.isoformat()}, more than {MAX_FUTURE_S} s in the future: it "
                "would keep later rows out; correct its event time"
            )
    entities = [view.entities(key) for key, *_ in data]
    second = [field for _, field in entities if field is not None]
    return ViewRows(table.name, [first for first, _ in entities], view.pack(data), second or None)


def _connect(config: RepoConfig, *, write: bool = False) -> redis.Redis:
    options: PackedRedisOnlineStoreConfig = config.online_store
    return connect_to(options.host, options.port, options.write_timeout_ms if write else options.timeout_ms)


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(f"Redis did not answer: {type(error).__name__}: {error}")
