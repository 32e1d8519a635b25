"""The opening request: where its token may be, which pages may connect, which API keys are known. Sans-IO."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import unquote

from hubbub.errors import ConfigurationError


class Token(NamedTuple):
    """A token as it came, unverified, and where from. Its ``repr`` does not show it."""

    value: str
    source: Literal["header", "subprotocol", "cookie", "query"]

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


def find_token(
    headers: Iterable[tuple[bytes, bytes]], query_string: bytes, subprotocols: Iterable[str], cookie_name: str
) -> Token | None:
    """The token of an opening request, or None. Empty ones do not count.

    In this order: ``Authorization: Bearer …``, subprotocol ``bearer.…`` (never to be echoed in the reply), the
    cookie, ``?token=…``.

    :param headers: names in lower case, as ASGI has them.
    """
    cookie = ""
    wanted = cookie_name.encode("latin-1", "replace")
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer" and credentials.strip():
                return Token(credentials.strip(), "header")
        elif name == b"cookie" and not cookie:
            cookie = _cookie(value, wanted)
    for subprotocol in subprotocols:
        if subprotocol.startswith("bearer.") and len(subprotocol) > 7:
            return Token(subprotocol[7:], "subprotocol")
    if cookie:
        return Token(cookie, "cookie")
    for part in query_string.split(b"&"):
        if part.startswith(b"token=") and len(part) > 6:
            return Token(unquote(part[6:].decode("latin-1")), "query")
    return None


def _cookie(header: bytes, wanted: bytes) -> str:
    for pair in header.split(b";"):
        name, _, value = pair.partition(b"=")
        if name.strip() == wanted:
            return value.strip().strip(b'"').decode("latin-1")
    return ""


_AUTHORITY = r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?"
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rf"(https?)://{_AUTHORITY}")
_OTHER_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9_.:\[\]-]+")
_DEFAULT_PORT = {"http": 80, "https": 443}


def origin_allowed(origin: bytes | None, host: bytes | None, scheme: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of this origin may connect (against cross-site WebSocket hijacking, RFC 6455 section 10.2).

    Allowed: no ``Origin`` (not a browser: cookies of a victim are out of its reach), a listed origin, ``*``, and the
    same origin: host and port equal to the ``Host`` header's, where a port left out is the default one of the
    *origin's* scheme. An https page may reach a ``ws`` server, since behind a TLS proxy the server sees only ``ws``;
    it must be the same host and port still, and whoever serves https there owns the name. An http page may not reach
    a ``wss`` server: anybody on the network can put his script into such a page. (Where a proxy ends TLS, this last
    rule needs its ``X-Forwarded-Proto`` to be trusted, so that ``scheme`` is right.) ``null`` only passes with ``*``.

    :param scheme: of the request: ``ws``, ``wss``, ``http`` or ``https``. With any other only the list counts.
    """
    if origin is None or "*" in allowed:
        return True
    text = origin.decode("latin-1").lower()
    if _normal_origin(text) in _origins(allowed):
        return True
    page = _ORIGIN.fullmatch(text)
    place = _HOST.fullmatch(host.decode("latin-1").lower()) if host is not None else None
    if page is None or place is None or scheme not in ("ws", "wss", "http", "https"):
        return False
    if page[1] == "http" and scheme in ("wss", "https"):
        return False
    default = _DEFAULT_PORT[page[1]]
    return (page[2], int(page[3] or default)) == (place[1], int(place[2] or default))


def check_origins(allowed: Iterable[str]) -> None:
    """Refuse origins that could never match anything a browser sends.

    :raises ConfigurationError: names the first that is not ``scheme://host[:port]``.
    """
    for entry in allowed:
        if entry != "*" and _normal_origin(entry.lower()) is None:
            raise ConfigurationError(f"HUBBUB_ORIGINS: {entry!r} is no origin, write for instance https://app.example")


def _normal_origin(text: str) -> str | None:
    """An origin with its default port left out, as browsers write it (RFC 6454 section 6.1); None if it is not one."""
    if (match := _ORIGIN.fullmatch(text)) is None:
        return text if _OTHER_ORIGIN.fullmatch(text) else None  # an app's own scheme: capacitor://localhost
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{int(port)}" if port and int(port) != _DEFAULT_PORT[scheme] else "")


@lru_cache(maxsize=64)
def _origins(allowed: tuple[str, ...]) -> frozenset[str]:
    return frozenset(filter(None, (_normal_origin(entry.lower()) for entry in allowed)))


def api_key_matches(key: str, keys: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``keys``. Takes as long for a near miss as for a far one, and looks at every key."""
    given = key.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(given, known.encode("utf-8", "surrogatepass")) for known in keys]
    return bool(given) and any(matches)
