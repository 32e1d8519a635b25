"""Coming back: exactly what was missed, or a clear word that it cannot be had; never a silent hole, never twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from hubbub import ChannelOptions
from tests.support import BOTH_LANES, Running, serve

pytestmark = BOTH_LANES

CHANNELS = {"short:*": ChannelOptions(history_size=5, history_ttl=60), "bare:*": ChannelOptions(history_size=0)}


async def fill(server: Running, channel: str, count: int) -> None:
    for number in range(1, count + 1):
        await server.hubbub.publish(channel, number)


async def recover(server: Running, channel: str, offset: int, epoch: str | None = None) -> tuple[bool, list[int], bool]:
    """Subscribe with ``since``: recovered?, the offsets of the messages, and whether a gap was told."""
    async with server.client("alice") as client:
        if epoch is None:
            epoch = (await client.ask("history", channel=channel))["epoch"] or "none"
        reply = await client.ask("subscribe", channel=channel, since={"epoch": epoch, "offset": offset})
        assert reply["type"] == "subscribed", reply
        rest = await client.drained()
        assert [message["type"] for message in rest] in ([], ["gap"])
        for gap in rest:
            assert gap == {"type": "gap", "channel": channel, "epoch": reply["epoch"], "offset": reply["offset"]}
        offsets = [message["offset"] for message in reply["messages"]]
        assert offsets == [message["data"] for message in reply["messages"]]
        if reply["recovered"]:
            assert offsets == list(range(offset + 1, reply["offset"] + 1))
        # and what follows goes on from there
        await server.hubbub.publish(channel, reply["offset"] + 1)
        assert (await client.receive())["offset"] in (reply["offset"] + 1, 0)
        return reply["recovered"], offsets, bool(rest)


async def test_recovery_table(lane: str) -> None:
    refused: tuple[bool, list[int], bool] = (False, [], True)
    async with serve(lane, channels=CHANNELS, recovery_limit=20) as server:
        async with server.client("alice") as client:
            fresh = await client.ask("subscribe", channel="empty")
        assert await recover(server, "empty", 0, fresh["epoch"]) == (True, [], False)  # an empty history
        await fill(server, "a", 5)
        assert await recover(server, "a", 5) == (True, [], False)  # exactly the top
        await fill(server, "b", 5)
        assert await recover(server, "b", 2) == (True, [3, 4, 5], False)  # in the middle
        await fill(server, "c", 5)
        assert await recover(server, "c", 0) == (True, [1, 2, 3, 4, 5], False)  # from the very start
        await fill(server, "short:size", 8)
        assert await recover(server, "short:size", 2) == refused  # 3 was trimmed by size
        await fill(server, "short:edge", 8)
        assert await recover(server, "short:edge", 3) == (True, [4, 5, 6, 7, 8], False)  # just not
        await fill(server, "short:age", 2)
        server.advance(61)
        await server.hubbub.publish("short:age", 3)
        assert await recover(server, "short:age", 1) == refused  # 2 was trimmed by age
        assert await recover(server, "short:age", 3) == (True, [4], False)
        await fill(server, "short:gone", 2)
        server.advance(61)
        assert await recover(server, "short:gone", 1) == refused  # all of it is gone
        await fill(server, "short:top", 2)
        server.advance(61)
        assert await recover(server, "short:top", 2) == (True, [], False)  # but nothing was missed
        await fill(server, "d", 3)
        assert await recover(server, "d", 9) == refused  # an offset that was never given
        await fill(server, "e", 3)
        assert await recover(server, "e", 1, "foreign") == refused  # another epoch
        await fill(server, "f", 21)
        assert await recover(server, "f", 0) == refused  # more than one recovery may return
        assert await recover(server, "f", 2) == (True, list(range(3, 23)), False)
        assert await recover(server, "bare:1", 0) == refused  # a channel without history
        assert await recover(server, "unheard-of", 0, "foreign") == refused


async def test_recovery_of_a_room(lane: str) -> None:
    async with (
        serve(lane, catch_up_limit=3) as server,
        server.client("alice") as alice,
    ):
        position = (await alice.ask("join_room", room_id="general"))["position"]
        async with server.client("bob", path="/ws/chat/general") as bob:
            for text in ("one", "two"):
                await bob.ask("chat_message", message=text)
        async with server.client("alice") as again:
            back = await again.ask("join_room", room_id="general", since=position)
            assert back["recovered"] is True
            assert [m["data"]["message"] for m in back["messages"]] == ["one", "two"]
            assert [m["data"]["id"] for m in back["messages"]] == [1, 2]
            assert back["position"]["offset"] == 2
            for text in ("three", "four"):
                await again.ask("chat_message", room_id="general", message=text)
            lost = await again.ask("join_room", room_id="general", since=position)
            assert (lost["recovered"], lost["messages"]) == (False, [])
            gap = await again.receive()
            assert gap == {"type": "gap", "channel": "room:general", **lost["position"]}


class Reader:
    """A subscriber that goes and comes at random, and notes every offset that it was given."""

    def __init__(self, server: Running, channel: str, dice: random.Random) -> None:
        self.server = server
        self.channel = channel
        self.dice = dice
        self.position: dict[str, Any] | None = None
        self.offsets: list[int] = []
        self.reconnects = 0

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "publication" and message["channel"] == self.channel:
            self.offsets.append(message["offset"])
            assert self.position is not None
            self.position["offset"] = message["offset"]

    async def run(self, last: int) -> None:
        while not self.offsets or self.offsets[-1] < last:
            async with self.server.client("alice") as client:
                reply = await client.ask("subscribe", channel=self.channel, since=self.position)
                if self.position is None:
                    self.position = {"epoch": reply["epoch"], "offset": reply["offset"]}
                else:
                    assert reply["recovered"], reply
                for message in reply["messages"]:
                    self.take(message)
                for _ in range(self.dice.randrange(40)):
                    if self.offsets and self.offsets[-1] >= last:
                        return
                    self.take(await client.receive())
                self.reconnects += 1
                if self.dice.random() < 0.5:
                    client.connection.transport.abort()


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_offset_once_and_in_order_across_reconnects(lane: str, seed: int) -> None:
    dice = random.Random(seed)
    publishers, each = 4, 60
    async with serve(lane, rate_limit=0, user_rate_limit=0, max_connections_per_user=0) as server:

        async def publish(name: str) -> None:
            async with server.client(name) as client:
                for number in range(each):
                    await client.send("publish", channel="news", data=number)
                    if dice.random() < 0.3:
                        await client.expect("ack")
                await client.drained()

        readers = [Reader(server, "news", random.Random(seed * 100 + number)) for number in range(3)]
        async with server.client("warm") as client:  # an epoch from the start
            await client.ask("subscribe", channel="news")
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.run(publishers * each))
            for number in range(publishers):
                group.create_task(publish(f"publisher{number}"))
        for reader in readers:
            first = reader.offsets[0]
            assert reader.offsets == list(range(first, publishers * each + 1))


async def test_exclude_self(lane: str) -> None:
    """Neither live nor recovered; but the user's other devices, and everybody else, get it."""
    async with serve(lane) as server, server.client("bob") as bob, server.client("alice") as tablet:
        await bob.ask("subscribe", channel="news")
        await tablet.ask("subscribe", channel="news")
        async with server.client("alice") as phone:
            since = await phone.ask("subscribe", channel="news")
            position = {"epoch": since["epoch"], "offset": since["offset"]}
            await phone.ask("publish", channel="news", data="mine", exclude_self=True)
            await server.hubbub.publish("news", "theirs")
            assert [m["data"] for m in await phone.drained() if m["type"] == "publication"] == ["theirs"]
            for other in (bob, tablet):
                assert [(await other.receive())["data"] for _ in range(2)] == ["mine", "theirs"]

            async def missed(user: str, session: str | None) -> list[str]:
                async with server.client(user, session=session) as client:
                    reply = await client.ask("subscribe", channel="news", since=position)
                    assert reply["recovered"]
                    assert reply["offset"] == position["offset"] + 2
                    return [message["data"] for message in reply["messages"]]

            # while the phone lives, a session without a past is another device
            assert await missed("alice", None) == ["mine", "theirs"]
            assert await missed("alice", tablet.session) == ["mine", "theirs"]
        await tablet.closed()
        async with server.client("alice"):  # any device of hers
            assert await missed("alice", phone.session) == ["theirs"]
            # the phone is gone: who does not say which session it goes on with is taken for it
            assert await missed("alice", None) == ["theirs"]
            assert await missed("bob", None) == ["mine", "theirs"]
            assert await missed("bob", phone.session) == ["mine", "theirs"]


async def test_notifications_are_recovered(lane: str) -> None:
    async with serve(lane) as server:
        async with server.client("alice") as alice:
            reply = await alice.ask("subscribe", channel="user:alice")
            await server.hubbub.notify("alice", "first", "1")
            assert (await alice.receive())["offset"] == reply["offset"] + 1
        since = {"epoch": reply["epoch"], "offset": 1}
        await server.hubbub.notify(["alice", "bob"], "second", "2")
        await server.hubbub.notify("alice", "third", "3", "warning", {"a": [1]})
        async with server.client("alice") as again:
            back = await again.ask("subscribe", channel="user:alice", since=since)
            assert back["recovered"] is True
            assert [(m["type"], m["offset"], m["data"]["title"]) for m in back["messages"]] == [
                ("notification", 2, "second"),
                ("notification", 3, "third"),
            ]
            assert back["messages"][1]["data"]["metadata"] == {"a": [1]}
            await server.hubbub.notify("alice", "fourth", "4")
            assert (await again.receive())["data"]["title"] == "fourth"
            await again.nothing_more()  # once, although it subscribed
