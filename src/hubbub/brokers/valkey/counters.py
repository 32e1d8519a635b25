"""Sliding window counters in the engine, by the library `limits`: what limits that all nodes share are counted with."""

from __future__ import annotations

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


class EngineCounters:
    """The :class:`hubbub.quotas.Counters` of an engine. It has connections of its own, a few, made when first needed.

    Its keys are ``<prefix>:limits:{<kind>/<key>/<amount>/<seconds>/second}``, and the same with ``/-1``; they end by
    themselves after two windows.

    :raises ConfigurationError: HUBBUB_VALKEY_URL makes no sense.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.valkey_url
        self._prefix = f"{settings.valkey_prefix}:limits"
        self._target = target_of(self._url)
        self._storage: RedisStorage | None = None
        self._items: dict[tuple[str, int, int], RateLimitItemPerSecond] = {}

    async def take(self, kind: str, key: str, amount: int, window: int, count: int) -> bool:
        name, item = self._named(kind, key, amount, window)
        try:
            return await self._open().acquire_sliding_window_entry(name, item.amount, item.get_expiry(), count)
        except _FAULTS as error:
            raise BrokerUnavailable(f"the engine does not count: {error}") from error

    async def state(self, kind: str, key: str, amount: int, window: int) -> tuple[int, int, float]:
        name, item = self._named(kind, key, amount, window)
        try:
            before, left, current, ends = await self._open().get_sliding_window(name, item.get_expiry())
        except _FAULTS as error:
            raise BrokerUnavailable(f"the engine does not count: {error}") from error
        return before, current, left or max(0.0, ends - window)

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

    def _named(self, kind: str, key: str, amount: int, window: int) -> tuple[str, RateLimitItemPerSecond]:
        item = self._items.get((kind, amount, window))
        if item is None:
            item = RateLimitItemPerSecond(amount, window, namespace=kind)
            self._items[kind, amount, window] = item
        return item.key_for(key), item

    def _open(self) -> RedisStorage:
        if self._storage is None:
            self._storage = storage_of(self._url, self._target, self._prefix)
        return self._storage


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
