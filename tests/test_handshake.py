"""The opening handshake: RFC 6455 section 4.2, with the server protocol of `websockets` as the oracle."""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from hubbub.handshake import BadRequest, accept_key, accept_response, check, parse, refuse_response

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the sample of section 1.3
GOOD = [
    (b"host", b"chat.example:8000"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-version", b"13"),
]

moderate = settings(deadline=None, max_examples=200)


def request(
    *extra: tuple[bytes, bytes],
    without: bytes = b"",
    method: bytes = b"GET",
    target: bytes = b"/ws",
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """A request head as uvicorn rebuilds it: a good one, less the header ``without``, plus the ``extra`` ones."""
    headers = [(name, value) for name, value in GOOD if name != without]
    lines = [b"%s: %s\r\n" % header for header in [*headers, *extra]]
    return b"%s %s %s\r\n" % (method, target, version) + b"".join(lines) + b"\r\n"


def instead(name: bytes, value: bytes) -> bytes:
    return request((name, value), without=name)


def refusal(raw: bytes) -> int:
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    assert str(caught.value) == caught.value.reason
    return caught.value.status


# ── A handshake that is in order


def test_a_good_request_is_read() -> None:
    got = parse(
        request(
            (b"Origin", b"https://chat.example"),
            (b"Cookie", b" a=b\t"),
            (b"sec-websocket-protocol", b"hubbub.v1, bearer.abc"),
            target=b"/rooms/caf%C3%A9%2Fx?token=a%20b&c=?",
        )
    )
    assert got.path == "/rooms/café/x"
    assert got.raw_path == b"/rooms/caf%C3%A9%2Fx"
    assert got.query_string == b"token=a%20b&c=?"
    assert got.subprotocols == ["hubbub.v1", "bearer.abc"]
    assert got.key == KEY
    assert got.headers[:5] == GOOD
    assert got.headers[5:7] == [(b"origin", b"https://chat.example"), (b"cookie", b"a=b")]


def test_the_checks_serve_headers_that_were_parsed_elsewhere() -> None:
    assert check(b"GET", [*GOOD, (b"sec-websocket-protocol", b"a,b")]) == (KEY, ["a", "b"])
    with pytest.raises(BadRequest):
        check(b"GET", [])


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/?", "/", b""),
        (b"//a/b", "//a/b", b""),
        (b"/%ff", "/\ufffd", b""),
        (b"http://other.example/ws?x", "/ws", b"x"),
        (b"WSS://other.example?x", "/", b"x"),
        (b"ws://other.example", "/", b""),
    ],
)
def test_request_targets(target: bytes, path: str, query: bytes) -> None:
    """RFC 9112 section 3.2: origin form, and absolute form, which "a server MUST accept"."""
    got = parse(request(target=target))
    assert (got.path, got.query_string) == (path, query)


@pytest.mark.parametrize("target", [b"*", b"", b"ws", b"host:80", b"/a#b", b"/\xc3\xa9", b"/a\tb", b"/a\x00", b"/\x7f"])
def test_targets_that_are_refused(target: bytes) -> None:
    assert refusal(request(target=target)) == 400


@pytest.mark.parametrize(
    "connection", [b"upgrade", b"UPGRADE", b"keep-alive, Upgrade", b"keep-alive,\tupgrade ,", b",Upgrade"]
)
def test_the_connection_header_is_a_list_in_any_case(connection: bytes) -> None:
    """Section 4.2.1, item 4."""
    assert parse(instead(b"connection", connection)).key == KEY


def test_the_connection_header_may_stand_in_several_lines() -> None:
    """RFC 9110 section 5.3."""
    assert parse(request((b"connection", b"keep-alive"))).key == KEY


@pytest.mark.parametrize("upgrade", [b"WebSocket", b"WEBSOCKET"])
def test_the_upgrade_header_is_read_in_any_case(upgrade: bytes) -> None:
    """Section 4.2.1, item 3."""
    assert parse(instead(b"upgrade", upgrade)).key == KEY


def test_subprotocols_of_several_lines_are_one_list() -> None:
    """Section 11.3.4: the header may appear several times in a request."""
    raw = request((b"sec-websocket-protocol", b"a, b"), (b"sec-websocket-protocol", b"c,,d"))
    assert parse(raw).subprotocols == ["a", "b", "c", "d"]


def test_utf_8_in_a_header_is_read_where_it_contains_the_byte_of_a_control() -> None:
    """A cookie that says "Åse" has the byte 0x85, which by itself would be NEXT LINE."""
    assert parse(request((b"cookie", "name=Åse…".encode()))).headers[-1] == (b"cookie", "name=Åse…".encode())


# ── What is refused


@pytest.mark.parametrize("method", [b"POST", b"get", b"HEAD", b"OPTIONS", b"CONNECT", b"G\xffT"])
def test_another_method_than_get_is_refused(method: bytes) -> None:
    """Section 4.2.1, item 1."""
    assert refusal(request(method=method)) == 405


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2", b"http/1.1", b"HTTP/1.1\n"])
def test_another_http_version_is_refused(version: bytes) -> None:
    """Section 4.2.1, item 1."""
    assert refusal(request(version=version)) == 505


@pytest.mark.parametrize("name", [name for name, _ in GOOD])
def test_every_header_of_the_handshake_is_needed(name: bytes) -> None:
    """Section 4.2.1, items 2 to 6."""
    assert refusal(request(without=name)) == (426 if name == b"sec-websocket-version" else 400)


@pytest.mark.parametrize(
    "name", [b"Host", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Origin", b"Authorization"]
)
def test_a_header_that_must_stand_once_is_refused_twice(name: bytes) -> None:
    value = dict(GOOD).get(name.lower(), b"x")
    once = [] if name.lower() in dict(GOOD) else [(name, value)]
    assert parse(request(*once)).key == KEY
    assert refusal(request(*once, (name.upper(), value))) == 400


@pytest.mark.parametrize("host", [b"a/b?c=", b"a@b", b"a b", b"a\\b", b"a#b", b"\xc3\xa9.example", b"a,b/"])
def test_a_host_that_would_change_the_url_is_refused(host: bytes) -> None:
    """RFC 9112 section 3.2: a Host with an invalid value is answered with 400."""
    assert refusal(instead(b"host", host)) == 400


@pytest.mark.parametrize("host", [b"a.example", b"127.0.0.1:80", b"[::1]:8000", b"my_service:80", b""])
def test_hosts_that_are_in_order(host: bytes) -> None:
    assert parse(instead(b"host", host)).key == KEY


@pytest.mark.parametrize(
    "upgrade", [b"notwebsocket", b"websocket, h2c", b"websocket/13", b'"websocket"', b"", b"web socket"]
)
def test_another_upgrade_is_refused(upgrade: bytes) -> None:
    assert refusal(instead(b"upgrade", upgrade)) == 400


@pytest.mark.parametrize("connection", [b"", b"keep-alive", b"upgraded", b"no-upgrade", b"keep-alive upgrade"])
def test_a_connection_header_without_upgrade_is_refused(connection: bytes) -> None:
    assert refusal(instead(b"connection", connection)) == 400


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"abc",
        KEY[:-1],
        KEY + b"=",
        KEY[:-2],
        b64encode(b"x" * 15),
        b64encode(b"x" * 17),
        b64encode(b"x" * 18),
        KEY.replace(b"G", b"-"),
        KEY.replace(b"G", b"\xff"),
        KEY + b", " + KEY,
    ],
)
def test_a_key_that_is_not_16_bytes_in_base64_is_refused(key: bytes) -> None:
    """Section 4.2.1, item 5."""
    assert refusal(instead(b"sec-websocket-key", key)) == 400


@pytest.mark.parametrize("version", [b"", b"8", b"12", b"14", b"013", b"13, 8", b"13.0", b"1 3"])
def test_another_websocket_version_is_told_which_one_is_spoken(version: bytes) -> None:
    """Section 4.4."""
    with pytest.raises(BadRequest) as caught:
        parse(instead(b"sec-websocket-version", version))
    assert caught.value.status == 426
    answer = refuse_response(426, body=b"", headers=caught.value.headers).split(b"\r\n")
    assert answer[0] == b"HTTP/1.1 426 Upgrade Required"
    assert {b"sec-websocket-version: 13", b"upgrade: websocket", b"connection: close, upgrade"} < set(answer)


@pytest.mark.parametrize(
    "offered", [b"", b",", b"a b", b"a;b", b"a,b/c", b"caf\xe9", b"\xc3\xa9", b'"a"', b"a=b", b"a\tb"]
)
def test_subprotocols_that_are_not_tokens_are_refused(offered: bytes) -> None:
    """Section 11.3.4. A byte beyond ASCII must not do more than that (granian, CVE-2026-42544)."""
    assert refusal(request((b"sec-websocket-protocol", offered))) == 400


@pytest.mark.parametrize("control", [*range(9), *range(10, 32), 0x7F, 0x85])
@pytest.mark.parametrize("around", [b"a%sb", b"%sb", b"a%s"])
@pytest.mark.parametrize("name", [b"x-any", b"sec-websocket-protocol", b"sec-websocket-key", b"host"])
def test_control_characters_in_a_value_are_refused(control: int, around: bytes, name: bytes) -> None:
    """RFC 9110 section 5.5; and NEXT LINE, which a str takes for the end of a line."""
    assert refusal(instead(name, around % bytes([control]))) == 400
    with pytest.raises(BadRequest):
        check(b"GET", [*GOOD, (b"x-any", around % bytes([control]))])


@pytest.mark.parametrize("value", ["a\x85b".encode(), b"\x85", "é".encode() + b"\x85"])
def test_next_line_is_refused_in_utf_8_too(value: bytes) -> None:
    assert refusal(request((b"cookie", value))) == 400


@pytest.mark.parametrize(
    "name", [b"", b" x", b"x ", b"x y", b"x\t", b"x\x00", b"\xc3\xa9", b"x(", b"x\ny", b"x\ry", b"x/"]
)
def test_names_that_are_not_tokens_are_refused(name: bytes) -> None:
    """RFC 9110 section 5.1; RFC 9112 section 5.1 for the blank before the colon, section 5.2 for folded lines."""
    assert refusal(request((name, b"v"))) == 400


@pytest.mark.parametrize(
    "header", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b"content-length", b"0x0")]
)
def test_a_body_is_refused(header: tuple[bytes, bytes]) -> None:
    assert refusal(request(header)) == 400


def test_a_body_of_no_bytes_is_no_body() -> None:
    assert parse(request((b"content-length", b"0"))).key == KEY


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n",
        b"GET /ws HTTP/1.1",
        b"GET  /ws HTTP/1.1\r\n\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n\r\n",
        request()[:-2],
        request() + b"GET",
        request().replace(b"\r\n", b"\n"),
        request().replace(b"host: ", b"host "),
        request()[:-2] + b"x-any\r\n\r\n",
        request().replace(b"upgrade: websocket", b"upgrade: websocket\n x-y: z"),
        request().replace(b"upgrade: websocket", b"upgrade: websocket\r x-y: z"),
    ],
)
def test_heads_that_are_malformed_are_refused(raw: bytes) -> None:
    assert refusal(raw) == 400


@moderate
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for head in (raw, raw + b"\r\n\r\n", request(target=b"/" + raw), request((b"x", raw)), request((raw, b"x"))):
        with suppress(BadRequest):
            parse(head)


# ── The oracle

MUTATED = [
    b"host",
    b"upgrade",
    b"connection",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-protocol",
]


@moderate
@given(
    st.integers(0, 400),
    st.one_of(st.just(b""), st.binary(min_size=1, max_size=2), st.sampled_from([b",", b" ", b"\t", b", a"])),
    st.integers(0, 2),
)
def test_what_we_take_the_oracle_takes_too(at: int, inserted: bytes, removed: int) -> None:
    """Not the other way round: we also look at Host, NEXT LINE and the tokens of names."""
    good = request((b"sec-websocket-protocol", b"chat"))
    raw = good[:at] + inserted + good[at + removed :]
    try:
        ours = parse(raw)
    except BadRequest:
        return
    server = ServerProtocol(subprotocols=[Subprotocol(name) for name in ours.subprotocols])
    server.receive_data(raw)
    [theirs] = server.events_received()
    assert not isinstance(theirs, Response)
    response = server.accept(theirs)  # type: ignore[arg-type]  # before the handshake is done, an event is a Request
    assert response.status_code == 101
    assert response.headers["Sec-WebSocket-Accept"].encode() == accept_key(ours.key)


@moderate
@given(st.lists(st.from_regex(r"[!#$%&'*+.^_`|~0-9a-zA-Z-]{1,20}", fullmatch=True), max_size=4, unique=True))
def test_a_client_is_read_and_reads_our_answer(offered: list[str]) -> None:
    names = [Subprotocol(name) for name in offered]
    client = ClientProtocol(parse_uri("ws://chat.example/a?b"), subprotocols=names or None)
    client.send_request(client.connect())
    ours = parse(b"".join(client.data_to_send()))
    assert (ours.path, ours.query_string, ours.subprotocols) == ("/a", b"b", offered)
    chosen = offered[-1] if offered else None
    client.receive_data(accept_response(ours.key, subprotocol=chosen, headers=[(b"server", b"hubbub")]))
    assert client.handshake_exc is None
    assert client.state is OPEN
    assert client.subprotocol == chosen


# ── What is written


def test_the_accept_key_of_the_rfc() -> None:
    """Section 1.3."""
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_answer_of_the_rfc() -> None:
    assert accept_response(KEY, subprotocol="chat", headers=[(b"Set-Cookie", b"a=b"), (b"set-cookie", b"c=d")]) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"upgrade: websocket\r\n"
        b"connection: Upgrade\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"sec-websocket-protocol: chat\r\n"
        b"Set-Cookie: a=b\r\n"
        b"set-cookie: c=d\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x\r\ny", b"a"),
        (b"x: y", b"a"),
        (b"", b"a"),
    ],
)
def test_nothing_can_be_smuggled_into_an_answer(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        accept_response(KEY, subprotocol=None, headers=[header])
    with pytest.raises(ValueError, match="header"):
        refuse_response(403, body=b"", headers=[header])


def test_nothing_can_be_smuggled_through_a_content_type() -> None:
    with pytest.raises(ValueError, match="content-type"):
        refuse_response(403, body=b"", headers=[], content_type=b"text/plain\r\nx: y")


@pytest.mark.parametrize("name", [b"Upgrade", b"connection", b"Sec-WebSocket-Accept", b"sec-websocket-extensions"])
def test_headers_that_the_handshake_owns_are_not_taken(name: bytes) -> None:
    with pytest.raises(ValueError, match="handshake itself"):
        accept_response(KEY, subprotocol=None, headers=[(name, b"x")])


@pytest.mark.parametrize("subprotocol", ["", "a b", "a\r\nb", "é", "a,b", "a?b", "\ud800"])
def test_a_subprotocol_that_is_not_a_token_is_not_written(subprotocol: str) -> None:
    with pytest.raises(ValueError, match="token"):
        accept_response(KEY, subprotocol=subprotocol, headers=[])


def read_response(raw: bytes) -> Response:
    client = ClientProtocol(parse_uri("ws://chat.example/"))
    client.send_request(client.connect())
    client.receive_data(raw)
    client.receive_eof()
    [response] = client.events_received()
    assert isinstance(response, Response)
    return response


def test_a_client_reads_a_refusal() -> None:
    """Section 4.2.2, item 5.3."""
    got = read_response(refuse_response(403, body=b"No.", headers=[(b"x-reason", b"origin")]))
    assert (got.status_code, got.reason_phrase, bytes(got.body or b"")) == (403, "Forbidden", b"No.")
    assert dict(got.headers.raw_items()) == {
        "x-reason": "origin",
        "content-type": "text/plain; charset=utf-8",
        "content-length": "3",
        "connection": "close",
    }


def test_a_refusal_takes_the_headers_of_an_app() -> None:
    """Starlette's denial responses bring a content-length and a content-type of their own."""
    headers = [(b"Content-Length", b"99"), (b"Content-Type", b"application/json"), (b"Connection", b"keep-alive")]
    got = read_response(refuse_response(401, body=b"{}", headers=headers))
    assert got.headers.get_all("content-length") == ["2"]
    assert got.headers.get_all("content-type") == ["application/json"]
    assert got.headers.get_all("connection") == ["close"]


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    """RFC 9110 section 8.6: no content-length with 204."""
    raw = refuse_response(status, body=b"ignored", headers=[])
    assert raw.endswith(b"connection: close\r\n\r\n")
    assert b"content" not in raw.partition(b"\r\n")[2]


def test_a_status_without_a_name_is_written() -> None:
    assert refuse_response(499, body=b"", headers=[]).startswith(b"HTTP/1.1 499 \r\n")


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, 1000])
def test_a_status_that_cannot_refuse_is_not_written(status: int) -> None:
    with pytest.raises(ValueError, match="200 to 599"):
        refuse_response(status, body=b"", headers=[])
