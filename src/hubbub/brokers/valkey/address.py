"""Where the engine is: the forms of HUBBUB_VALKEY_URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from hubbub.errors import ConfigurationError

Kind = Literal["standalone", "sentinel", "cluster"]
FORMS: Final = (
    "valkey://[user:password@]host:6379/0 (or redis://; valkeys:// and rediss:// with TLS), unix:///path/to/socket, "
    "valkey+sentinel://host:26379,host:26379/service, or valkey+cluster://host:6379,host:6379"
)
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


def target_of(url: str) -> Target:
    """Read a URL.

    :raises ConfigurationError: it is none of :data:`FORMS`.
    """
    scheme, separator, rest = url.partition("://")
    engine, _, kind = scheme.partition("+")
    if not separator or engine not in ("valkey", "valkeys", "redis", "rediss", "unix"):
        raise ConfigurationError(f"HUBBUB_VALKEY_URL: {scheme!r} is no scheme that is known here: use {FORMS}")
    if "@" in rest.replace("@", "", 1) or (engine != "unix" and "@" in rest.partition("/")[2]):
        # a part of the password may stand in any place now, so nothing of it is shown
        raise ConfigurationError(
            "HUBBUB_VALKEY_URL: the user or the password has characters that must be percent-encoded, as %2F for /, %23 for #, "
            "%40 for @"
        )
    plain = {"valkey": "redis", "valkeys": "rediss"}.get(engine, engine)
    try:
        if not kind:
            server = _server(f"{plain}://{rest}")
            return Target("standalone", (server,), server)
        if kind == "cluster":
            seeds = _seeds(plain, rest)
            return Target("cluster", seeds, seeds[0])
        if kind == "sentinel":
            return _sentinel(plain, rest)
    except (ValueError, OSError, TypeError) as error:
        why = "" if "@" in rest else f" ({error})"  # with a password in it, nothing of it is shown
        raise ConfigurationError(f"HUBBUB_VALKEY_URL makes no sense{why}: use {FORMS}") from None
    raise ConfigurationError(f"HUBBUB_VALKEY_URL: {kind!r} is unknown: use {FORMS}")


def _sentinel(plain: str, rest: str) -> Target:
    parts = urlsplit(f"redis://{rest}")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing, as in …:26379/mymaster")
    query = parse_qs(parts.query)
    first = parts.netloc.rpartition("@")[2].split(",")[0]
    login = parts.netloc.rpartition("@")[0]
    options = "&".join(part for part in parts.query.split("&") if part and not part.startswith("sentinel_"))
    server = _server(f"{plain}://{login + '@' if login else ''}{first}/{db or 0}" + (f"?{options}" if options else ""))
    user, password = (query.get(name, [None])[0] for name in _SENTINEL_OPTIONS)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    watcher = replace(server, username=user, password=password, db=0)
    return Target("sentinel", tuple(watcher.at(*_host(each, 26379)) for each in hosts), server, unquote(service))


def _seeds(plain: str, rest: str) -> tuple[Address, ...]:
    parts = urlsplit(f"redis://{rest}")
    login, _, hosts = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    first = _server(f"{plain}://{login + '@' if login else ''}{hosts.split(',')[0]}{query}")
    if first.db or parts.path.strip("/") not in ("", "0"):
        raise ValueError("a Cluster has only the database 0")
    return tuple(first.at(*_host(each, 6379)) for each in hosts.split(","))


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return parts.hostname, parts.port or port


def _server(url: str) -> Address:
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise ValueError(f"there is no option {min(unknown)!r}, only {', '.join(sorted(_OPTIONS))}")
    unix = parts.scheme == "unix"
    if unix and not parts.path:
        raise ValueError("the path of the socket is missing")
    db = options.get("db") or ("0" if unix else parts.path.strip("/") or "0")
    if not db.isdigit():
        raise ValueError(f"{db!r} is no number of a database")
    return Address(
        host=parts.hostname or "localhost",
        port=parts.port or 6379,
        path=unquote(parts.path) if unix else None,
        username=unquote(parts.username) if parts.username else options.get("username"),
        password=unquote(parts.password) if parts.password else options.get("password"),
        db=int(db),
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )


_OPTIONS: Final = frozenset(
    {
        *("db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
        *("ssl_cert_reqs", "ssl_check_hostname"),
    }
)


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """With the options that redis-py's URLs have: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs``."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required").lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
