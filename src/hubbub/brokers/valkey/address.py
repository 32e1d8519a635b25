"""Where the engine is: the forms of HUBBUB_VALKEY_URL.

What is wrong with one is said without a word of it: wherever a person slips, a piece of the password may stand there.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from hubbub.errors import ConfigurationError

Kind = Literal["standalone", "sentinel", "cluster"]
FORMS: Final = (
    "valkey://[user:password@]host:6379/0 (or redis://; valkeys:// and rediss:// with TLS), unix:///path/to/socket, "
    "valkey+sentinel://host:26379,host:26379/service, or valkey+cluster://host:6379,host:6379"
)
_SCHEMES: Final = (
    "unix",
    *(engine + kind for engine in ("valkey", "valkeys", "redis", "rediss") for kind in ("", "+sentinel", "+cluster")),
)
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS: Final = ("db", "username", "password", *_TLS_OPTIONS)
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class Address:
    """One server.

    :ivar path: of a Unix socket; None for TCP.
    :ivar tls: None for none.
    """

    host: str = ""
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)

    def at(self, host: str, port: int) -> Address:
        """The same with another host and port."""
        return replace(self, host=host, port=port)

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Target:
    """What a URL names.

    :ivar seeds: the server; or the sentinels; or some servers of the Cluster.
    :ivar server: what to connect to the servers with that the sentinels name.
    """

    kind: Kind
    seeds: tuple[Address, ...]
    server: Address
    service: str = ""


class _Unclear(ValueError):
    """What is wrong with a URL, in words that are none of it."""


def target_of(url: str) -> Target:
    """Read a URL.

    :raises ConfigurationError: it is none of :data:`FORMS`. Nothing of the URL is in it.
    """
    try:
        return _read(url.strip())
    except _Unclear as error:
        why = str(error)
    except (ValueError, TypeError):
        why = "it makes no sense"
    # out of the except: what Python itself said of the URL, with pieces of it, is not this one's context
    raise ConfigurationError(f"HUBBUB_VALKEY_URL: {why}. Use {FORMS}")


def _read(url: str) -> Target:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise _Unclear(
            "it does not begin with a scheme, as valkey://host:6379 or unix:///path do (there are three slashes)"
        )
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        near = get_close_matches(scheme, _SCHEMES, 1)
        raise _Unclear("its scheme is unknown" + (f" (is {near[0]}:// meant?)" if near else ""))
    if not rest.isprintable():
        raise _Unclear("there is a character in it that cannot be seen: percent-encode it")
    engine, _, kind = scheme.partition("+")
    unix = engine == "unix"
    if "#" in rest or (not unix and set(rest.rpartition("@")[0]) & set("/?[]@")):
        raise _Unclear(
            "the user or the password has characters that must be percent-encoded, as %2F for /, %23 for #, %3F for ?, "
            "%5B for [, %40 for @"
        )
    parts = urlsplit(f"redis://{rest}")
    login, _, hosts = parts.netloc.rpartition("@")
    options = _options(parts.query, sentinel=kind == "sentinel", tls=engine in ("valkeys", "rediss"))
    user, _, password = login.partition(":")
    server = Address(
        username=unquote(user) or options.get("username"),
        password=unquote(password) or options.get("password"),
        tls=_tls(options) if engine in ("valkeys", "rediss") else None,
    )
    if unix:
        return _unix(server, hosts, parts.path, options)
    if kind == "sentinel":
        return _sentinel(server, hosts, parts.path, options)
    server = replace(server, db=_db(options, parts.path))
    if kind == "cluster":
        if server.db:
            raise _Unclear("a Cluster has only the database 0: leave the number away")
        seeds = _servers(server, hosts, 6379)
        return Target("cluster", seeds, seeds[0])
    if "," in hosts:
        raise _Unclear("several servers are for valkey+sentinel:// and valkey+cluster://")
    server = server.at(*_host(hosts, 6379)) if hosts else server.at("localhost", 6379)
    return Target("standalone", (server,), server)


def _unix(server: Address, hosts: str, path: str, options: dict[str, str]) -> Target:
    if hosts:
        raise _Unclear("a socket's path begins with the third slash: unix:///path/to/socket")
    if not path.strip("/"):
        raise _Unclear("the path of the socket is missing")
    server = replace(server, host="localhost", path=unquote(path), db=_db(options, ""))
    return Target("standalone", (server,), server)


def _sentinel(server: Address, hosts: str, path: str, options: dict[str, str]) -> Target:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise _Unclear("the name of the service is missing, as in …:26379/mymaster")
    user, password = (options.get(name) for name in _SENTINEL_OPTIONS)
    watchers = _servers(replace(server, username=user, password=password), hosts, 26379)
    server = replace(server, host=watchers[0].host, port=watchers[0].port, db=_db(options, db))
    return Target("sentinel", watchers, server, unquote(service))


def _servers(like: Address, hosts: str, port: int) -> tuple[Address, ...]:
    return tuple(like.at(*_host(each, port)) for each in hosts.split(","))


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, number = parts.hostname, parts.port
    except ValueError:
        raise _Unclear(
            "behind the host's colon there must be a port, a number up to 65535; an IPv6 address stands in brackets, as "
            "[::1]:6379"
        ) from None
    if not host and not (text.startswith(":") and number):
        raise _Unclear("a server has no name: each is host:port, with commas between them")
    return host or "localhost", number or port


def _db(options: dict[str, str], path: str) -> int:
    db = options.get("db") or path.strip("/") or "0"
    if not (db.isascii() and db.isdigit() and len(db) < 10):
        raise _Unclear("what comes behind the host's slash, or as ?db=, is no number of a database, as 0 is")
    return int(db)


def _options(query: str, *, sentinel: bool, tls: bool) -> dict[str, str]:
    known = (*_OPTIONS, *(_SENTINEL_OPTIONS if sentinel else ()))
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    for number, name in enumerate(options, start=1):
        if name not in known:
            raise _Unclear(
                f"option {number} behind the ? is unknown: there are {', '.join(known)} (and an & in a value is %26)"
            )
        if name in _TLS_OPTIONS and not tls:
            raise _Unclear(f"{name} is for TLS, so the scheme must be valkeys:// or rediss://")
    return options


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """With the options that redis-py's URLs have: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs``."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    except OSError as error:
        raise _Unclear(f"the file of ssl_ca_certs cannot be used: {error.strerror}") from None
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required").lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in options:
        try:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        except OSError as error:
            raise _Unclear(f"the file of ssl_certfile or ssl_keyfile cannot be used: {error.strerror}") from None
    return context
