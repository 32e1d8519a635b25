"""Messages that are hard to decode, in both codecs and over HTTP: an `error` for the sender, nothing for the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.hostile.support import BINARY, CLOSE, TEXT, Peer, Server, frame, token
from tests.support import API_KEY

DEEP = 20_000
JSONS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" ",
    "brackets": b"[" * DEEP,
    "braces": b'{"a":' * DEEP,
    "brackets in data": b'{"type":"publish","channel":"c","data":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "brackets in an unknown field": b'{"type":"ping","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "NaN": b'{"type":"publish","channel":"c","data":NaN}',
    "Infinity": b'{"type":"publish","channel":"c","data":-Infinity}',
    "1e999": b'{"type":"publish","channel":"c","data":1e999}',
    "huge integer": b'{"type":"publish","channel":"c","data":' + b"9" * 10_000 + b"}",
    "huge integer in an unknown field": b'{"type":"ping","x":' + b"9" * 10_000 + b',"ref":1}',
    "huge exponent": b'{"type":"publish","channel":"c","data":1e' + b"9" * 10_000 + b"}",
    "65 bits": b'{"type":"publish","channel":"c","data":18446744073709551616}',
    "lone surrogate": b'{"type":"publish","channel":"c","data":"\\ud800"}',
    "lone surrogate in a chat": b'{"type":"chat_message","message":"\\udfff"}',
    "surrogate key": b'{"type":"publish","channel":"c","data":{"\\ud800":1}}',
    "NUL": b'{"type":"chat_message","message":"a\\u0000b"}',
    "raw control": b'{"type":"chat_message","message":"a\x01b"}',
    "not an object": b"[]",
    "number": b"1",
    "string": b'"ping"',
    "no type": b"{}",
    "type a number": b'{"type":1}',
    "type a list": b'{"type":["ping"]}',
    "unknown type": b'{"type":"rm -rf"}',
    "long type": b'{"type":"' + b"x" * 30_000 + b'"}',
    "long ref": b'{"type":"ping","ref":"' + b"x" * 30_000 + b'"}',
    "ref a map": b'{"type":"ping","ref":{}}',
    "trailing": b'{"type":"ping"}{"type":"ping"}',
    "cut": b'{"type":"ping"',
    "comment": b'{"type":"ping"/**/}',
    "BOM": b'\xef\xbb\xbf{"type":"ping"}',
    "wrong field": b'{"type":"subscribe","channel":5}',
    "negative offset": b'{"type":"subscribe","channel":"c","since":{"epoch":"e","offset":-1}}',
    "float offset": b'{"type":"subscribe","channel":"c","since":{"epoch":"e","offset":1e300}}',
    "huge limit": b'{"type":"history","channel":"c","limit":1000000000}',
}
PACKS: dict[str, bytes] = {
    "empty": b"",
    "array of 4 GB": b"\xdd\xff\xff\xff\xff",
    "map of 4 GB": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff\x00",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff\x00",
    "extension of 4 GB": b"\xc9\xff\xff\xff\xff\x01",
    "extension": b"\xd4\x01\x00",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "never used": b"\xc1",
    "nested arrays": b"\x91" * DEEP,
    "nested maps": b"\x81\xa1a" * DEEP,
    "text that is not UTF-8": b"\x82\xa4type\xa4ping\xa3ref\xa2\xff\xfe",
    "JSON": b'{"type":"ping"}',
}


def packed(data: bytes) -> bytes:
    """A publish message with some bytes of MessagePack as its data."""
    head = msgspec.msgpack.encode({"type": "publish", "channel": "c", "ref": "r"})
    return bytes([head[0] + 1]) + head[1:] + b"\xa4data" + data


PACKED: dict[str, bytes] = {
    "NaN": b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "infinity": b"\xca\x7f\x80\x00\x00",
    "bytes": b"\xc4\x01x",
    "extension": b"\xd4\x01\x00",
    "integer keys": b"\x82\x01\x02\x03\x04",
    "colliding integer keys": b"\xdd\x00\x00\x00\x01\xde\x13\x88"
    + b"".join(b"\xcf" + ((index * (2**61 - 1)) % 2**64).to_bytes(8, "big") + b"\x00" for index in range(5000)),
    "list key": b"\x81\x90\x01",
    "deep": b"\x91" * DEEP + b"\xc0",
    "deep maps": b"\x81\xa1a" * DEEP + b"\xc0",
    "length bomb inside": b"\x91\xdd\xff\xff\xff\xff",
    "text not UTF-8": b"\xa2\xff\xfe",
}


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve(RATE_LIMIT="0", USER_RATE_LIMIT="0", ABUSE_LIMIT="0", MAX_MESSAGE_SIZE="300000")


@pytest.fixture
def neighbour(server: Server) -> Iterator[Peer]:
    """Somebody else on the same channel, who must get what is sane and nothing else."""
    peer = server.peer(user="neighbour")
    peer.ask("subscribe", channel="c")
    yield peer
    server.publish("c", "sane")
    assert peer.expect("publication")["data"] == "sane", "something else came"
    assert peer.ask("ping")["type"] == "pong"
    assert server.complaints() == []


def packing_peer(server: Server) -> Peer:
    return server.peer("/ws?format=msgpack", headers=[("Authorization", f"Bearer {token('packer')}")])


def unpacked(peer: Peer) -> dict[str, Any]:
    found = peer.receive()
    assert found is not None
    assert found[0] == BINARY, found
    message: dict[str, Any] = msgspec.msgpack.decode(found[1])
    return message


def test_json(server: Server, neighbour: Peer) -> None:
    with server.peer(user="sender") as peer:
        for name, text in JSONS.items():
            began = time.perf_counter()
            peer.send(frame(TEXT, text))
            if name in ("brackets in an unknown field",):
                assert peer.message()["type"] in ("error", "pong")
                continue
            answer = peer.expect("error")
            assert answer["code"] in ("invalid_json", "invalid_message", "unknown_type"), (name, answer)
            assert len(answer["message"]) < 400
            assert "Traceback" not in answer["message"]
            assert time.perf_counter() - began < 1.0, name
        assert peer.ask("ping")["type"] == "pong"


def test_msgpack(server: Server, neighbour: Peer) -> None:
    with packing_peer(server) as peer:
        assert unpacked(peer)["type"] == "auth_success"
        for name, data in [*PACKS.items(), *((name, packed(data)) for name, data in PACKED.items())]:
            before, began = server.rss(), time.perf_counter()
            peer.send(frame(BINARY, data))
            answer = unpacked(peer)
            assert answer["type"] == "error", (name, answer)
            assert answer["code"] in ("invalid_json", "invalid_message", "unknown_type"), (name, answer)
            assert time.perf_counter() - began < 1.0, name
            assert server.rss() < before + 20_000_000, name
        peer.send(frame(BINARY, msgspec.msgpack.encode({"type": "ping"})))
        assert unpacked(peer) == {"type": "pong"}


def test_the_other_kind_of_frame(server: Server, neighbour: Peer) -> None:
    with server.peer(user="sender") as peer:
        peer.send(frame(BINARY, b'{"type":"ping"}'))
        assert peer.expect("error")["code"] == "invalid_message"
        assert peer.ask("ping")["type"] == "pong"
    with packing_peer(server) as peer:
        unpacked(peer)
        peer.send(frame(TEXT, b'{"type":"ping"}'))
        assert unpacked(peer)["code"] == "invalid_message"


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe2\x82"], ids=lambda text: text.hex()
)
def test_text_that_is_not_utf8(server: Server, neighbour: Peer, text: bytes) -> None:
    for path in ("/ws", "/ws/echo"):
        with server.peer(path) as peer:
            peer.send(frame(TEXT, text))
            assert peer.close_code() == 1007


def test_http(server: Server, neighbour: Peer) -> None:
    publish, notify = "/api/publish", "/api/notifications/send"
    wrong = [text for name, text in JSONS.items() if name not in ("empty", "blank", "brackets in an unknown field")]
    wrong += [
        json.dumps({"channel": "c", "data": None}).replace("null", hard).encode()
        for hard in ("NaN", "Infinity", "1e999", '"\\ud800"', "9" * 5000, "[" * DEEP, '{"\\ud800":1}')
    ]
    wrong += [b'{"channel":"c","data":' + b"[" * DEEP + b"]" * DEEP + b"}", b"\xff\xfe", b"\x00"]
    for body in wrong:
        for path in (publish, notify):
            status, answer = server.request("POST", path, body, bearer=API_KEY)
            assert 400 <= status < 500, (body[:60], status, answer[:200])
            assert b"Traceback" not in answer
    for size in (2 << 20, 16 << 20):
        body = b'{"channel":"c","data":"' + b"x" * size + b'"}'
        try:
            status, _ = server.request("POST", publish, body, bearer=API_KEY)
        except (ConnectionError, IndexError, ValueError):
            continue  # the answer was lost to the RST that unread bytes cause
        assert status == 413
    for method, path in (("GET", publish), ("DELETE", "/api/rooms"), ("POST", "/health"), ("TRACE", "/")):
        assert 400 <= server.request(method, path, bearer=API_KEY)[0] < 500


def test_http_requests_that_are_cut_off(server: Server, neighbour: Peer) -> None:
    """Gone in the middle of the body: nothing to report, and nobody waits meanwhile."""
    for _ in range(5):
        peer = server.peer("")
        peer.send(b"POST /api/publish HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\n{")
        time.sleep(0.02)
        peer.reset()
        began = time.perf_counter()
        assert server.get("/health/live")[0] == 200
        assert time.perf_counter() - began < 1.0


def test_nothing_of_it_closed_the_connection(server: Server, neighbour: Peer) -> None:
    """Wrong messages cost an error each: a thousand of them in one segment, each answered, in order."""
    with server.peer(user="sender") as peer:
        peer.send(b"".join(frame(TEXT, b'{"type":"nope","ref":"%d"}' % index) for index in range(1000)))
        for index in range(1000):
            assert peer.message()["ref"] == str(index)
        peer.send(frame(CLOSE, b"\x03\xe8"))
        assert peer.close_code() == 1000
