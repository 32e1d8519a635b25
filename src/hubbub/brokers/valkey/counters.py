"""Token buckets in the engine, through the library `limits`: what limits that all nodes share are counted with."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from limits import RateLimitItemPerSecond
from limits.aio.storage.redis import RedisClusterStorage, RedisSentinelStorage, RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from hubbub.brokers.valkey.address import Address, Target, target_of
from hubbub.errors import BrokerUnavailable
from hubbub.settings import Settings

CONNECT: Final = 1.0
"""Seconds for making a connection."""
CONNECTIONS: Final = 8
BUCKET: Final = Path(__file__).with_name("bucket.lua").read_text()


class EngineCounters:
    """The :class:`hubbub.quotas.Counters` of an engine. It has connections of its own, a few, made when first needed.

    The library finds, connects and names; of its ways to count, windows, none goes on at the rate after a burst, so the
    bucket is a script of our own. Its keys are ``<prefix>:limits:{<kind>/<key>/<burst>/<seconds>/second}``; they end by
    themselves.

    :raises ConfigurationError: HUBBUB_VALKEY_URL makes no sense.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.valkey_url
        self._prefix = f"{settings.valkey_prefix}:limits"
        self._target = target_of(self._url)
        self._storage: RedisStorage | None = None
        self._script: Any = None
        self._items: dict[tuple[str, float, int], RateLimitItemPerSecond] = {}

    async def take(self, kind: str, key: str, rate: float, burst: int, count: int) -> tuple[int, float]:
        if self._storage is None:
            self._storage = storage_of(self._url, self._target, self._prefix)
            bridge: Any = self._storage.bridge
            self._script = bridge.get_connection().register_script(BUCKET)
        name = self._storage.bridge.prefixed_key(f"{{{self._item(kind, rate, burst).key_for(key)}}}")
        try:
            taken, full = await self._script([name], [1e6 / rate, burst, count])
        except _FAULTS as error:
            raise BrokerUnavailable(f"the engine does not count: {error}") from error
        return taken, float(full) / 1e6

    async def close(self) -> None:
        storage, self._storage = self._storage, None
        if storage is None:
            return
        bridge: Any = storage.bridge
        clients = [bridge.storage]
        if isinstance(storage, RedisSentinelStorage):
            clients += [bridge.storage_replica, *bridge.sentinel.sentinels]
        for client in clients:
            await client.aclose()

    def _item(self, kind: str, rate: float, burst: int) -> RateLimitItemPerSecond:
        item = self._items.get((kind, rate, burst))
        if item is None:
            item = RateLimitItemPerSecond(burst, max(1, ceil(burst / rate)), namespace=kind)
            self._items[kind, rate, burst] = item
        return item


_FAULTS: Final = (RedisError, RedisClusterException, OSError)


def storage_of(url: str, target: Target, prefix: str) -> RedisStorage:
    """The library's storage for an engine. It connects later."""
    options: dict[str, Any] = {
        "implementation": "redispy",
        "key_prefix": prefix,
        "socket_connect_timeout": CONNECT,
        "retry": Retry(NoBackoff(), 1),
        **_login(target.server),
        **_tls(url, target.server),
    }
    if target.kind == "cluster":
        return RedisClusterStorage(_uri("redis+cluster", target), max_connections=CONNECTIONS, **options)
    options["db"] = target.server.db
    if target.kind == "sentinel":
        watcher = {**_tls(url, target.server), "socket_connect_timeout": CONNECT, "username": None, "password": None}
        return RedisSentinelStorage(
            _uri("redis+sentinel", target),
            service_name=target.service,
            use_replicas=False,
            sentinel_kwargs={**watcher, **_login(target.seeds[0])},
            **options,
        )
    server = target.server
    if server.path is not None:
        return RedisStorage(f"async+redis+unix://{server.path}", **options)
    options.pop("ssl", None)  # the scheme says it
    return RedisStorage(_uri("rediss" if server.tls is not None else "redis", target), **options)


def _uri(scheme: str, target: Target) -> str:
    hosts = ",".join(f"[{each.host}]:{each.port}" if ":" in each.host else str(each) for each in target.seeds)
    return f"async+{scheme}://{hosts}"


def _login(server: Address) -> dict[str, str]:
    login = {"username": server.username, "password": server.password}
    return {name: value for name, value in login.items() if value is not None}


def _tls(url: str, server: Address) -> dict[str, Any]:
    """The options of TLS as redis-py takes them: those of the URL."""
    if server.tls is None:
        return {}
    given = {name: value for name, value in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")}
    check = given.pop("ssl_check_hostname", "true").lower() not in ("false", "0", "no")
    if given.get("ssl_cert_reqs", "required").lower() == "none":
        check = False
    return {"ssl": True, **given, "ssl_check_hostname": check}
