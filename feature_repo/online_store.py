"""Feast's online store on packed rows: `PackedRedisOnlineStore`, named in feature_store.yaml.

Feast's API works on it unchanged. Rows are the ones `online_reader` reads and ingest writes (docs/packed-rows.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from redis.exceptions import RedisError, ResponseError

from feature_repo.errors import BadInputError, LarderError, UnavailableError
from feature_repo.events import MAX_FUTURE_S
from feature_repo.feast_reads import FeastRequest, FeastViews, KeyedRead
from feature_repo.online_keys import base_key, checked_project
from feature_repo.packed_row import ForeignRowError
from feature_repo.protobuf_rows import FeastRow, FeastView, ReadRow, is_ours
from feature_repo.read_request import Command
from feature_repo.redis_commands import run, run_async
from feature_repo.redis_scripts import connect_to, connect_to_async
from feature_repo.row_index import delete_rows
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_batches, write_rows_async


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc] # Feast has no types
    """Settings of the store in feature_store.yaml."""

    type: Literal["feature_repo.online_store.PackedRedisOnlineStore"] = (
        "feature_repo.online_store.PackedRedisOnlineStore"
    )
    host: str = "127.0.0.1"
    port: int = 6399
    #: Whether that is a node of a Redis Cluster.
    cluster: bool = False
    #: Longest wait of a read, as part of a request.
    timeout_ms: int = 50
    #: Longest wait of a write or deletion, which is not.
    write_timeout_ms: int = 10_000


class PackedRedisOnlineStore(OnlineStore):  # type: ignore[misc] # Feast has no types
    """One packed row per (view, entity); a view of two entities is one hash per first entity, declared order."""

    def __init__(self) -> None:
        self._reader: redis.Redis | None = None
        self._writer: redis.Redis | None = None
        self._views = FeastViews()
        # By event loop (weakly: the next one may get the same address) and whether it writes.
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bool, redis.asyncio.Redis]] = (
            WeakKeyDictionary()
        )

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
        self.write_packed(config, [_packed(table, data)])
        if progress:
            progress(len(data))

    def write_packed(self, config: RepoConfig, batches: Iterable[ViewRows]) -> None:
        """Write rows that are packed already; what `online_write_batch` and the batch engine share.

        Raises
        ------
        UnavailableError
            If Redis fails; repeating is safe.
        """
        if self._writer is None:
            self._writer = _connect(config, write=True)
        write_batches(self._writer, checked_project(config.project), batches)

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
        read = KeyedRead(config.project, table, entity_keys)
        return read.rows(self._ask(config, read.commands), requested_features)

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Read rows without blocking the event loop; the twin of `online_read`."""
        read = KeyedRead(config.project, table, entity_keys)
        return read.rows(await self._ask_async(config, read.commands), requested_features)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Fill the response of `get_online_features`: Feast's hook for stores that read all views at once."""
        request = FeastRequest(config.project, grouped_refs, join_key_values, entity_name_to_join_key_map, self._views)
        request.fill(
            self._ask(config, request.commands),
            online_features_response,
            full_names=full_feature_names,
            with_versions=include_feature_view_version_metadata,
        )

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Fill the response of `get_online_features_async`; the twin of `_read_features_per_fv`."""
        request = FeastRequest(config.project, grouped_refs, join_key_values, entity_name_to_join_key_map, self._views)
        request.fill(
            await self._ask_async(config, request.commands),
            online_features_response,
            full_names=full_feature_names,
            with_versions=include_feature_view_version_metadata,
        )

    def _ask(self, config: RepoConfig, commands: list[Command]) -> list[Any]:
        if self._reader is None:
            self._reader = _connect(config)
        try:
            return run(self._reader, commands)
        except (RedisError, OSError) as error:
            raise _failed(error) from error

    async def _ask_async(self, config: RepoConfig, commands: list[Command]) -> list[Any]:
        try:
            return await run_async(self._async_client(config), commands)
        except (RedisError, OSError) as error:
            raise _failed(error) from error

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
        clients, self._async_clients = self._async_clients, WeakKeyDictionary()
        for of_loop in clients.values():
            for async_client in of_loop.values():
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
        clients = self._async_clients.setdefault(asyncio.get_running_loop(), {})
        if write not in clients:
            options: PackedRedisOnlineStoreConfig = config.online_store
            timeout_ms = options.write_timeout_ms if write else options.timeout_ms
            clients[write] = connect_to_async(options.host, options.port, timeout_ms, cluster=options.cluster)
        return clients[write]


def refuse_future(view: str, time_us: int) -> None:
    """Check the event time of a row.

    Raises
    ------
    BadInputError
        If it lies too far in the future.
    """
    if time_us > (time.time() + MAX_FUTURE_S) * 1_000_000:
        when = datetime.fromtimestamp(time_us / 1_000_000, UTC)
        raise BadInputError(
            f"a row of {view} is dated {when.isoformat()}, more than {MAX_FUTURE_S} s in the future: it would keep "
            "later rows out; correct its event time"
        )


def _packed(table: FeatureView, data: Sequence[FeastRow]) -> ViewRows:
    view = FeastView(table)
    for _, _, when, _ in data:
        aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        refuse_future(table.name, int(aware.timestamp() * 1_000_000))
    entities = [view.entities(key) for key, *_ in data]
    second = [field for _, field in entities if field is not None]
    return ViewRows(table.name, [first for first, _ in entities], view.pack(data), second or None)


def _connect(config: RepoConfig, *, write: bool = False) -> redis.Redis:
    options: PackedRedisOnlineStoreConfig = config.online_store
    timeout_ms = options.write_timeout_ms if write else options.timeout_ms
    return connect_to(options.host, options.port, timeout_ms, cluster=options.cluster)


def _failed(error: BaseException) -> LarderError:
    if isinstance(error, ResponseError) and "caused error: WRONGTYPE" in str(error):
        return ForeignRowError(f"a key of the online store is not what this version keeps there: {error}")
    return UnavailableError(f"Redis did not answer: {type(error).__name__}: {error}")
