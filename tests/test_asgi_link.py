"""The slower lane's link, against a server that is made up: what it says at the end, and that it does end."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from hubbub.messages import JSON
from hubbub.transports.asgi import AsgiLink
from tests.support import DEADLINE, HandClock, settings_for

pytestmark = pytest.mark.anyio


class Server:
    """As much of an ASGI server as a link sees, and of a hub as well.

    :param sends: the close codes that it sends; others are an error.
    :param strict: whether it sends no close frame while it is asked for the next message.
    :param stuck: whether it never gets a close frame off.
    :param answers: whether the peer answers one.
    """

    def __init__(
        self, sends: range = range(1000, 5000), *, strict: bool = True, stuck: bool = False, answers: bool = True
    ) -> None:
        self.sends = sends
        self.strict = strict
        self.stuck = stuck
        self.answers = answers
        self.receiving = 0
        self.sent: list[dict[str, Any]] = []
        self.gone: list[int] = []
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        self.receiving += 1
        try:
            return await self.events.get()
        finally:
            self.receiving -= 1

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            assert not (self.receiving and self.strict), "granian waits for the one before it does the other"
            if message["code"] not in self.sends:
                raise RuntimeError("no such code")
            if self.stuck:
                await asyncio.get_running_loop().create_future()
            if self.answers:
                self.events.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
        self.sent.append(message)

    def lost(self, link: Any, code: int) -> None:
        self.gone.append(code)

    def caught_up(self, link: Any) -> None: ...

    def wrote_behind(self, link: Any) -> None: ...

    def link(self, close_timeout: float = 0.05) -> AsgiLink:
        sink: Any = self
        settings = settings_for(close_timeout=close_timeout)
        return AsgiLink(sink, JSON, settings, HandClock(), settings.message_limit, self.send, Counter())

    async def ends(self, link: AsgiLink, code: int) -> None:
        """Run a link, close it, and wait for its end."""
        running = asyncio.create_task(link.run(self.receive))
        await turns()
        link.close(code, "why")
        async with asyncio.timeout(DEADLINE):
            await running


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_close_frame_is_sent_while_nothing_is_received() -> None:
    server = Server()
    await server.ends(server.link(close_timeout=DEADLINE), 4401)
    assert server.sent == [{"type": "websocket.close", "code": 4401, "reason": "why"}]
    assert server.gone == [4401]


@pytest.mark.parametrize("server", [Server(stuck=True), Server(answers=False)], ids=["stuck", "unanswered"])
async def test_a_close_frame_that_leads_to_nothing(server: Server) -> None:
    server.events = asyncio.Queue()
    await server.ends(server.link(), 4401)
    assert server.gone == [4401]


@pytest.mark.parametrize(("code", "sent"), [(1000, 1000), (1009, 1000), (1011, 4503), (1012, 4503), (4401, 4401)])
async def test_close_codes_that_a_server_does_not_send(code: int, sent: int) -> None:
    """Autobahn, below Daphne, sends 1000 and what is an app's own. The other says the same about coming back."""
    server = Server(range(1000, 1001) if sent == 1000 else range(3000, 5000))
    await server.ends(server.link(), code)
    assert [message["code"] for message in server.sent] == [sent]
    assert server.gone == [code]


@pytest.mark.parametrize(("sends", "codes"), [(range(1000, 5000), [1012]), (range(3000, 5000), [4503])])
async def test_a_link_that_its_server_cancels_says_so(sends: range, codes: list[int]) -> None:
    server = Server(sends, strict=False)
    running = asyncio.create_task(server.link().run(server.receive))
    await turns()
    running.cancel()
    await asyncio.wait((running,))
    assert [message["code"] for message in server.sent] == codes
    assert server.gone == [1006]


async def test_a_cancelled_link_does_not_wait() -> None:
    server = Server(strict=False, stuck=True)
    running = asyncio.create_task(server.link().run(server.receive))
    await turns()
    running.cancel()
    await turns()
    assert running.cancelled()
    assert (server.sent, server.gone) == ([], [1006])
