"""The opening handshake of RFC 6455, for a server: a request head in, an answer to write out.

Behind a proxy, two parsers read the same bytes; whatever the two could read differently is refused here with 400, before
anything looks at the path or at a token: repeated single headers, stray control characters, names that are not tokens.

Who may connect (origin, token, limits) is decided elsewhere.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus
from re import compile as regex
from typing import Final
from urllib.parse import unquote

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, values without surrounding blanks, in the order and as often as they were sent."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_WEBSOCKET: Final = b"websocket"
_ALPHANUMERIC: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# For bytes.translate: what is left, or gone, after deleting a set of bytes tells in one pass what a text is made of.
_TOKEN: Final = b"!#$%&'*+-.^_`|~" + _ALPHANUMERIC  # RFC 9110 section 5.6.2
_HOST: Final = b"-._~!$&'()*+,;=%[]:" + _ALPHANUMERIC  # RFC 3986 section 3.2.2, and a port
_TARGET: Final = bytes(range(0x21, 0x7F)).replace(b"#", b"")  # printable ASCII without a fragment
_CONTROLS: Final = bytes(byte for byte in range(0x20) if byte != 0x09) + b"\x7f"  # RFC 9110 section 5.5
_NEXT_LINE: Final = b"\x85"  # a line break to str.splitlines, once decoded as Latin-1

_KEY: Final = regex(rb"[A-Za-z0-9+/]{22}==").fullmatch  # 16 bytes in base64: RFC 6455 section 4.1, item 7
_ABSOLUTE: Final = regex(rb"(?i:https?|wss?)://[^/?]+").match

# Headers that would mean two things if they were there twice.
_SINGLE: Final = (
    b"host",  # RFC 9112 section 3.2
    b"origin",  # RFC 6454 section 7.3
    b"authorization",  # RFC 9110 section 11.6.2
    b"upgrade",
    b"sec-websocket-key",  # RFC 6455 sections 11.3.1 and 11.3.5
    b"sec-websocket-version",
    b"content-length",
)
_OURS: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"transfer-encoding",
        b"upgrade",
    }
)
_FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})


@dataclass(slots=True)
class Request:
    """A handshake that is in order.

    ``raw_path`` is the path as it was sent, without the query; ``path`` is the same percent-decoded (bytes that are not
    UTF-8 become U+FFFD), as ASGI has it. ``subprotocols`` are in the client's order of preference.
    """

    path: str
    raw_path: bytes
    query_string: bytes
    headers: Headers
    subprotocols: list[str]
    key: bytes


class BadRequest(Exception):
    """The handshake is refused: answer with :func:`refuse_response`.

    :param status: of the HTTP answer.
    :param reason: for a person; fixed texts, nothing that the peer sent.
    :param headers: what the answer must carry beside it.
    """

    def __init__(self, reason: str, *, status: int = 400, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers: Headers = list(headers)


def parse(raw: bytes) -> Request:
    """Read a complete request head, from the request line to the empty line (RFC 6455 section 4.2.1).

    :raises BadRequest: for whatever is not an opening handshake that every parser would read in the same way.
    """
    lines = raw.split(b"\r\n")
    if len(lines) < 3 or lines.pop() or lines.pop():
        raise BadRequest("The request head is not complete.")
    request_line = lines[0].split(b" ")
    if len(request_line) != 3:
        raise BadRequest("The request line is malformed.")
    method, target, version = request_line
    if version != b"HTTP/1.1":
        raise BadRequest("A WebSocket handshake is an HTTP/1.1 request.", status=505)
    headers: Headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadRequest("A header line has no colon.")
        headers.append((name.lower(), value.strip(b" \t")))
    return request(method, target, headers)


def request(method: bytes, target: bytes, headers: Headers) -> Request:
    """The same of a head that an HTTP parser has read already.

    :raises BadRequest: as :func:`parse` does.
    """
    raw_path, _, query_string = origin_form(target).partition(b"?")
    key, subprotocols = check(method, headers)
    path = raw_path.decode()
    return Request(unquote(path) if "%" in path else path, raw_path, query_string, headers, subprotocols, key)


def origin_form(target: bytes) -> bytes:
    """The path and query of a request target (RFC 9112 section 3.2): origin form, or absolute form stripped to it."""
    if target.translate(None, _TARGET):
        raise BadRequest("The request target has characters that must be percent-encoded.")
    if target.startswith(b"/"):
        return target
    authority = _ABSOLUTE(target)
    if authority is None:
        raise BadRequest("The request target is not a path.")
    rest = target[authority.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def check(method: bytes, headers: Headers) -> tuple[bytes, list[str]]:
    """The checks of RFC 6455 section 4.2.1 on a request that was parsed already. The target is the caller's to check.

    :param headers: names in lower case, values without surrounding blanks.
    :returns: the Sec-WebSocket-Key, and the subprotocols that the client offers.
    :raises BadRequest: 405 for another method than GET, 426 for another version than 13, else 400.
    """
    if method != b"GET":
        raise BadRequest("A WebSocket handshake is a GET request.", status=405, headers=[(b"allow", b"GET")])
    one = dict(headers)
    if len(one) == len(headers):
        _check_syntax(one, one.values())
    else:
        names = [name for name, _ in headers]
        _check_syntax(names, [value for _, value in headers])
        if any(names.count(name) > 1 for name in _SINGLE):
            raise BadRequest("A header is repeated that must stand once.")
        for name in (b"connection", b"sec-websocket-protocol"):  # RFC 9110 section 5.3: lines of a list are one list
            if name in one:
                one[name] = b",".join([value for other, value in headers if other == name])
    host = one.get(b"host")
    if host is None or host.translate(None, _HOST):
        raise BadRequest("The Host header is missing or malformed.")
    if one.get(b"upgrade", b"").lower() != _WEBSOCKET:
        raise BadRequest("The Upgrade header is not 'websocket'.")
    connection = one.get(b"connection", b"").lower()
    if connection != b"upgrade" and b"upgrade" not in [option.strip(b" \t") for option in connection.split(b",")]:
        raise BadRequest("The Connection header does not have 'upgrade'.")
    if one.get(b"sec-websocket-version") != b"13":
        # RFC 6455 section 4.4; RFC 9110 section 15.5.22 wants the Upgrade beside it.
        supported = [(b"upgrade", _WEBSOCKET), (b"sec-websocket-version", b"13")]
        raise BadRequest("The WebSocket version is not 13.", status=426, headers=supported)
    # A body would be read by one side and taken for frames by the other.
    if b"transfer-encoding" in one or one.get(b"content-length", b"0") != b"0":
        raise BadRequest("A WebSocket handshake has no body.")
    key = one.get(b"sec-websocket-key", b"")
    if not _KEY(key):
        raise BadRequest("The Sec-WebSocket-Key is not 16 bytes in base64.")
    offered = one.get(b"sec-websocket-protocol")
    return key, [] if offered is None else _subprotocols(offered)


def _check_syntax(names: Collection[bytes], values: Collection[bytes]) -> None:
    """RFC 9110 sections 5.1 and 5.5: names are tokens, values are text. Joined: one pass over all costs as much as over one."""
    if b"" in names or b"".join(names).translate(None, _TOKEN):
        raise BadRequest("A header name is malformed.")
    text = b"".join(values)
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise BadRequest("A header value has control characters.")
    if _NEXT_LINE in text and not all(map(_is_plain, values)):
        raise BadRequest("A header value has control characters.")


def _is_plain(value: bytes) -> bool:
    """False for a value with the byte 0x85, unless it belongs to a letter of UTF-8 text (browsers send cookies so)."""
    try:
        return _NEXT_LINE not in value or "\x85" not in value.decode()
    except UnicodeDecodeError:
        return False


def _subprotocols(offered: bytes) -> list[str]:
    """RFC 6455 section 11.3.4: a list of at least one token; RFC 9110 section 5.6.1: empty elements are passed over."""
    tokens = [token for element in offered.split(b",") if (token := element.strip(b" \t"))]
    if not tokens or b"".join(tokens).translate(None, _TOKEN):
        raise BadRequest("A subprotocol is not a token.")
    return [token.decode("ascii") for token in tokens]


def accept_key(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2, item 5.4)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def accept_response(key: bytes, *, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The 101 answer (RFC 6455 section 4.2.2), to be followed by frames.

    :param subprotocol: one of those that the client offered, or None.
    :param headers: further headers, such as cookies.
    :raises ValueError: for a header or subprotocol that cannot be written, or one that the handshake itself sets.
    """
    parts = [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ",
        accept_key(key),
        b"\r\n",
    ]
    if subprotocol is not None:
        token = subprotocol.encode("ascii", "replace")  # by a question mark, which is not in a token
        if not token or token.translate(None, _TOKEN):
            raise ValueError(f"{subprotocol!r} is not a token, as a subprotocol must be (RFC 6455 section 11.3.4)")
        parts += (b"sec-websocket-protocol: ", token, b"\r\n")
    for name, value in headers:
        if name.lower() in _OURS:
            raise ValueError(f"the handshake itself sets or rules out the header {name!r}")
        parts += _header_line(name, value)
    parts.append(b"\r\n")
    return b"".join(parts)


def refuse_response(
    status: int,
    *,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    content_type: bytes = b"text/plain; charset=utf-8",
) -> bytes:
    """A whole HTTP answer that refuses the handshake (RFC 6455 section 4.2.2, item 5.3); close the connection after it.

    :param status: 200 to 599. With 204 and 304 no body is written (RFC 9110 section 6.4.1).
    :param headers: further headers. A content-type here stands in for ``content_type``; connection, content-length and
        transfer-encoding are passed over, since the answer sets its own.
    :raises ValueError: for a status or a header that cannot be written.
    """
    if not 200 <= status <= 599:
        raise ValueError(f"{status} cannot refuse a handshake: use 200 to 599")
    lines: list[bytes] = []
    connection = b"close"
    for name, value in headers:
        lower = name.lower()
        if lower in _FRAMING:
            continue
        if lower == b"content-type":
            content_type = value
            continue
        if lower == b"upgrade":
            connection = b"close, upgrade"  # RFC 9110 section 7.8
        lines += _header_line(name, value)
    if status in (204, 304):
        body = b""
    else:
        lines += _header_line(b"content-type", content_type)
        lines += (b"content-length: %d\r\n" % len(body),)
    return b"".join([_status_line(status), *lines, b"connection: ", connection, b"\r\n\r\n", body])


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""  # RFC 9112 section 4: it may be empty, the blank before it may not
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase.encode("ascii"))


def _header_line(name: bytes, value: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """One header to write. A value with a line break would be a header, or an answer, that nobody meant."""
    if not name or name.translate(None, _TOKEN):
        raise ValueError(f"{name!r} is not a header name")
    if len(value.translate(None, _CONTROLS)) != len(value):
        raise ValueError(f"the value of the header {name!r} has control characters")
    return name, b": ", value, b"\r\n"
