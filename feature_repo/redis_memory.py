"""How much memory Redis uses and may use: it never evicts, so events are refused when it is full."""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import ResponseError

from feature_repo.redis_commands import is_cluster


def memory_use(client: redis.Redis) -> tuple[int, int]:
    """Return bytes used and their limit: `maxmemory`, else the machine's memory; of a cluster, of its fullest server.

    Both are 0 where the user may not ask: INFO is among the commands that access lists often leave out.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails.
    """
    try:
        if is_cluster(client):
            found: Any = client.info("memory", target_nodes=redis.RedisCluster.PRIMARIES)
            servers = list(found.values())
        else:
            servers = [client.info("memory")]
    except ResponseError:
        return 0, 0
    uses = [(int(one["used_memory"]), int(one["maxmemory"] or one["total_system_memory"])) for one in servers]
    return max(uses, key=lambda use: use[0] / use[1])
