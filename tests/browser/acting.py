"""What programs do beside the people at the page: say much at once, act as moderators, watch what is sent."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from playwright.sync_api import Page, WebSocket
from websockets.sync.client import connect

from tests.browser.conftest import Person, Server, Somebody

PAYLOADS = [
    "<script>window.harm.push('script')</script>",
    "<img src=x onerror=\"window.harm.push('img');alert(1)\">",
    '"><svg onload=alert(2)>',
    "'-alert(3)-'",
    '<a href="javascript:alert(4)">press</a>',
    "<iframe srcdoc='<script>parent.alert(5)</script>'>",
    "{{constructor.constructor('alert(6)')()}} ${alert(7)}",
    "</textarea><style>*{display:none}</style><b>bold",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "\u202egnp.exe\u202c \u2066x\u2069 Z\u0351\u036b\u0343a\u0363l\u0348g",
]
STRANGERS = (
    "iframe, style, object, embed, form[action], #app b, #app i:not(.typing-dots i), #app script, dialog script,"
    " [onerror], [onload],"
    ' img:not([src^="blob:"]), a:not(.skip):not([href^="http://"]):not([href^="https://"]):not([href="docs"])'
)
"""Elements that the page never makes."""


def asks(server: Server, user: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a user's messages over a socket of its own; returns the replies, in order."""
    with connect(server.url.replace("http", "ws") + "ws", proxy=None) as socket:
        everything = [{"type": "auth", "token": server.dev_token(user)}, *requests]
        for number, request in enumerate(everything):
            socket.send(json.dumps({**request, "ref": str(number)}))
        replies: list[dict[str, Any]] = []
        while len(replies) < len(everything):
            answer = json.loads(socket.recv(10))
            assert answer["type"] != "error", answer
            if "ref" in answer:
                replies.append(answer)
    return replies[1:]


def talk(server: Server, user: str, room: str, texts: list[str]) -> list[int]:
    """Say much at once; returns the messages' ids."""
    said = ({"type": "chat_message", "room_id": room, "message": text} for text in texts)
    return [answer["id"] for answer in asks(server, user, {"type": "join_room", "room_id": room}, *said)[1:]]


def frames_of(page: Page) -> list[dict[str, Any]]:
    """What the page sends over its WebSockets from now on (open or reload it afterwards)."""
    sent: list[dict[str, Any]] = []

    def watch(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(json.loads(frame)))

    page.on("websocket", watch)
    return sent


def png(width: int, height: int, color: tuple[int, int, int] = (15, 118, 110)) -> bytes:
    """A picture of one color."""
    rows = (b"\0" + bytes(color) * width) * height

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def two(somebody: Somebody, names: tuple[str, str], name: str, room_id: str, **choices: str) -> tuple[Person, Person]:
    """Two people in a room that the first one made."""
    first, second = somebody(names[0]), somebody(names[1])
    first.make_room(name, room_id, **choices)
    second.enter(room_id)
    return first, second
