"""What one says on one node of a cluster, all nodes do: sessions end, tokens are taken back, people are notified."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect

from hubbub import Hubbub
from hubbub.auth import REVOCATION_MEMORY
from hubbub.control import Announce, Count, Disconnect, Revoke, letter_of
from hubbub.entrance import REMEMBER_REVOCATION
from hubbub.errors import BrokerUnavailable, ClientError, ErrorCode
from hubbub.ports import LEASE
from hubbub.testing import HandClock, MemoryEngine
from tests.engine_support import Engine, running_node, running_nodes
from tests.support import Client, Running, running, settings_for, until

pytestmark = pytest.mark.anyio


class Cluster:
    """Servers in this process that share an engine, and a clock that is turned by hand."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = HandClock()
        self.engine = MemoryEngine(self.clock)
        self.nodes: list[Running] = []

    async def add(self, **settings: Any) -> Running:
        chosen = settings_for(**settings)
        app = FastAPI()
        Hubbub(app, settings=chosen, clock=self.clock, broker=self.engine.broker(chosen))
        node = await self._stack.enter_async_context(running(chosen, app=app))
        self.nodes.append(node)
        await until(lambda: all(len(each.hub.cluster.others) == len(self.nodes) - 1 for each in self.nodes))
        return node

    def forget(self, node: Running) -> None:
        """It is gone: nobody has to know it any more."""
        self.nodes.remove(node)

    async def settled(self) -> None:
        """What was told has been heard, and what is read again has been read."""
        for _ in range(20):
            await asyncio.sleep(0)
        await until(lambda: not any(each.hub.cluster._resyncing for each in self.nodes))


@asynccontextmanager
async def cluster(count: int = 2, **settings: Any) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        made = Cluster(stack)
        for _ in range(count):
            await made.add(**settings)
        yield made


@asynccontextmanager
async def with_token(node: Running, token: str, **options: Any) -> AsyncIterator[Client]:
    async with node.client(path=f"/ws?token={token}", **options) as client:
        yield client


async def refuses(node: Running, token: str) -> bool:
    """Whether a node refuses a token now."""
    async with with_token(node, token) as client:
        answer = await client.receive()
        if answer["type"] == "error":
            assert answer["code"] == "authentication_failed"
            assert await client.closed() == 4401
        return bool(answer["type"] == "error")


# -- ending sessions


async def test_all_sessions_of_a_user_end_wherever_they_are() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with two.client("bob") as b2, three.client("bob") as b3, two.client("alice") as alice, one.http() as http:
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "bob", "reason": "moved"})
            assert answer.json() == {"disconnected": 2, "complete": True}
            assert [await b2.closed(), await b3.closed()] == [1000, 1000]
            assert b2.connection.close_reason == "moved"
            await alice.nothing_more()
            await until(lambda: not two.hub.sessions_of("bob") and not three.hub.sessions_of("bob"))
            assert await one.hubbub.disconnect("bob") == 0
            assert await one.hubbub.disconnect("alice") == 1
            assert await one.hubbub.disconnect("") == 0


async def test_while_the_engine_is_away_this_node_does_its_part_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as here, two.client("bob") as there, one.http() as http:
            nodes.engine.cut(one.hubbub)
            with caplog.at_level(logging.WARNING, "hubbub"):
                answer = await http.post("/api/sessions/disconnect", json={"user_id": "bob"})
            assert answer.json() == {"disconnected": 1, "complete": False}
            assert await here.closed() == 1000
            await there.nothing_more()
            assert any("may not have reached all nodes" in record.getMessage() for record in caplog.records)
            answer = await http.post("/api/notifications/send", json={"user_id": "bob", "title": "t", "message": "m"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            answer = await http.post("/api/notifications/broadcast", json={"title": "t", "message": "m"})
            assert (answer.status_code, answer.json()["complete"]) == (200, False)


async def test_a_node_that_does_not_answer_is_not_counted_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubbub.cluster.ASK_SECONDS", 0.05)
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with two.client("bob") as b2, three.client("bob"), one.http() as http:
            nodes.engine.cut(three.hubbub)
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "bob"})
            assert answer.json() == {"disconnected": 1, "complete": False}
            assert await b2.closed() == 1000
            nodes.clock.advance(LEASE + 2)
            await until(lambda: len(one.hub.cluster.others) == 1)
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "bob"})
            assert answer.json() == {"disconnected": 0, "complete": True}, "who is gone is not waited for"


# -- taking tokens back


async def test_a_revoked_user_is_out_on_all_nodes_and_on_those_that_come_later() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        old = two.token("mallory")
        nodes.clock.advance(1)
        async with with_token(two, old) as client, two.client("alice") as alice, one.http() as http:
            await client.expect("auth_success")
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "mallory", "revoke": True})
            assert answer.json() == {"disconnected": 1, "complete": True}
            assert await client.closed() == 4401
            await alice.nothing_more()
        three = await nodes.add()
        for node in (one, two, three):
            assert await refuses(node, old)
            assert not await refuses(node, node.token("mallory")), "a token issued later is good"
            assert not await refuses(node, node.token("alice"))


async def test_one_token_is_taken_back_everywhere() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        stolen, own = two.token("bob", jti="the stolen one"), two.token("bob", jti="the other one")
        async with with_token(two, stolen) as thief, with_token(two, own) as bob, one.http() as http:
            await thief.expect("auth_success")
            await bob.expect("auth_success")
            answer = await http.post("/api/sessions/disconnect", json={"token_id": "the stolen one"})
            assert answer.json() == {"disconnected": 1, "complete": True}
            assert await thief.closed() == 4401
            await bob.drained()
        for node in (one, two, await nodes.add()):
            assert await refuses(node, stolen)
        assert not await refuses(one, own)


async def test_a_node_that_was_cut_off_learns_of_it_when_it_is_back() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        old, stolen = two.token("mallory"), two.token("bob", jti="stolen")
        nodes.clock.advance(1)
        async with with_token(two, old) as mallory, with_token(two, stolen) as thief, two.client("alice") as alice:
            await mallory.expect("auth_success")
            await thief.expect("auth_success")
            nodes.engine.cut(two.hubbub)
            nodes.clock.advance(LEASE + 2)
            await until(lambda: not one.hub.cluster.others)
            assert await one.hubbub.disconnect("mallory", revoke=True) == 0
            assert (await one.hub.cluster.everywhere.revoke(token_id="stolen")).sessions == 0
            assert not await refuses(two, old), "it cannot know yet"
            nodes.engine.heal(two.hubbub)
            assert await mallory.closed() == 4401
            assert await thief.closed() == 4401
            await alice.drained()
        assert await refuses(two, old)
        assert await refuses(two, stolen)


async def test_a_revocation_without_the_engine_follows_when_it_is_back() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        old = two.token("mallory")
        nodes.clock.advance(1)
        async with with_token(one, old) as here, with_token(two, old) as there, one.http() as http:
            await here.expect("auth_success")
            await there.expect("auth_success")
            nodes.engine.cut(one.hubbub)
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "mallory", "revoke": True})
            assert answer.json() == {"disconnected": 1, "complete": False}
            assert await here.closed() == 4401
            assert await refuses(one, old)
            assert not await refuses(two, old)
            nodes.engine.heal(one.hubbub)
            assert await there.closed() == 4401
            await nodes.settled()
        assert await refuses(three, old)
        assert await refuses(await nodes.add(), old)


async def test_a_revocation_that_was_kept_and_not_told_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke in between: the others were never away, so nothing makes them read what is kept."""
    async with cluster() as nodes:
        one, two = nodes.nodes
        old = two.token("mallory")
        nodes.clock.advance(1)
        async with with_token(two, old) as client:
            await client.expect("auth_success")
            peers = one.hub.cluster.peers
            assert peers is not None
            tell, faults = peers.tell, [BrokerUnavailable("the connection broke")]

            async def breaking(message: bytes, **how: Any) -> None:
                if faults:
                    raise faults.pop()
                await tell(message, **how)

            monkeypatch.setattr(peers, "tell", breaking)
            assert await one.hub.cluster.everywhere.revoke(user_id="mallory") == (0, False)
            assert await client.closed() == 4401


async def test_no_token_slips_in_beside_its_revocation() -> None:
    async with cluster() as nodes, AsyncExitStack() as stack:
        one, two = nodes.nodes
        old = two.token("mallory")
        nodes.clock.advance(1)
        clients: list[Client] = []

        async def storm() -> None:
            while len(clients) < 30:
                client = await stack.enter_async_context(with_token(two, old))
                clients.append(client)

        coming = asyncio.ensure_future(storm())
        await until(lambda: two.hub.sessions_of("mallory") > 5)
        await one.hubbub.disconnect("mallory", revoke=True)
        await coming
        assert len(clients) == 30
        for client in clients:
            assert await client.closed() == 4401
        assert two.hub.sessions_of("mallory") == 0


async def kept(node: Running) -> set[str]:
    peers = node.hub.cluster.peers
    assert peers is not None
    return set(await peers.kept("revoked"))


async def test_what_an_emptied_engine_forgot_the_nodes_tell_it_again() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        old, stolen = two.token("mallory"), two.token("bob", jti="stolen")
        nodes.clock.advance(1)
        await one.hubbub.disconnect("mallory", revoke=True)
        await one.hub.cluster.everywhere.revoke(token_id="stolen")
        assert await kept(two) == {"u:mallory", "t:stolen"}
        nodes.engine.restart(empty=True)
        await nodes.settled()
        assert await kept(two) == {"u:mallory", "t:stolen"}
        for node in (two, await nodes.add()):
            assert await refuses(node, old)
            assert await refuses(node, stolen)


async def test_an_older_revocation_that_comes_late_does_not_take_the_place_of_a_newer_one() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        nodes.engine.cut(one.hubbub)
        assert await one.hubbub.disconnect("mallory", revoke=True) == 0
        nodes.clock.advance(LEASE + 2)
        await until(lambda: not two.hub.cluster.others)
        between = two.token("mallory")
        nodes.clock.advance(1)
        await two.hubbub.disconnect("mallory", revoke=True)
        nodes.engine.heal(one.hubbub)
        await nodes.settled()
        for node in (one, two, await nodes.add()):
            assert await refuses(node, between)
            assert not await refuses(node, node.token("mallory"))


async def test_of_two_revocations_of_a_token_the_one_that_lasts_is_kept() -> None:
    """A node that has somebody with the token knows when it ends; another one does not, and comes with less, later."""
    async with cluster() as nodes:
        one, two = nodes.nodes
        stolen = two.token("bob", jti="stolen", ttl=2 * REMEMBER_REVOCATION)
        nodes.engine.cut(one.hubbub)
        assert not (await one.hub.cluster.everywhere.revoke(token_id="stolen")).complete
        nodes.clock.advance(LEASE + 2)
        await until(lambda: not two.hub.cluster.others)
        async with with_token(two, stolen) as thief:
            await thief.expect("auth_success")
            assert await two.hub.cluster.everywhere.revoke(token_id="stolen") == (1, True)
            assert await thief.closed() == 4401
        nodes.engine.heal(one.hubbub)
        await nodes.settled()
        nodes.clock.advance(REMEMBER_REVOCATION + LEASE + 10)
        assert await refuses(await nodes.add(), stolen)


async def test_what_an_engine_with_an_older_copy_forgot_the_nodes_tell_it_again() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        await one.hubbub.disconnect("mallory", revoke=True)
        copy = dict(nodes.engine._facts)
        nodes.clock.advance(30)
        between = two.token("mallory")
        nodes.clock.advance(1)
        await one.hubbub.disconnect("mallory", revoke=True)
        nodes.engine.restart(empty=True)
        nodes.engine._facts = copy
        await nodes.settled()
        for node in (one, two, await nodes.add()):
            assert await refuses(node, between)


async def test_what_the_engine_keeps_of_revocations_ends() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        await one.hubbub.disconnect("mallory", revoke=True)
        await one.hub.cluster.everywhere.revoke(token_id="stolen")
        nodes.clock.advance(REVOCATION_MEMORY + 2)
        assert await kept(two) == {"t:stolen"}
        nodes.engine.restart()  # all of it is read again, and that is no reason to keep it for longer
        await nodes.settled()
        three = await nodes.add()
        nodes.clock.advance(REMEMBER_REVOCATION - REVOCATION_MEMORY)
        for node in (one, two, three):
            assert await kept(node) == set()
            assert list(node.hub.entrance.verifier.revoked(nodes.clock.time())) == []
        nodes.engine.restart(empty=True)
        await nodes.settled()
        assert await kept(two) == set()


async def test_an_erased_user_is_out_everywhere() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        old = two.token("mallory")
        nodes.clock.advance(1)
        async with with_token(two, old) as client, one.http() as http:
            await client.expect("auth_success")
            assert (await http.delete("/api/users/mallory")).status_code == 200
            assert await client.closed() == 4401
        assert await refuses(two, old)


# -- telling people


async def test_a_notification_reaches_all_devices_on_all_nodes_once_and_counts_them() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with one.client("bob") as b1, two.client("bob") as b2, two.client("carol") as carol, one.http() as http:
            body = {"user_ids": ["bob", "carol", "bob", "nobody"], "title": "t", "message": "m"}
            answer = (await http.post("/api/notifications/send", json=body)).json()
            assert answer == {"status": "sent", "id": answer["id"], "delivered": 3, "complete": True}
            for client in (b1, b2, carol):
                assert (await client.expect("notification"))["data"]["id"] == answer["id"]
                await client.nothing_more()
            assert await three.hubbub.notify("carol", "again", "m") == 1
            assert (await carol.expect("notification"))["data"]["title"] == "again"
            assert await three.hubbub.notify([], "nobody", "m") == 0


async def test_a_notification_waits_for_a_user_who_is_away_whatever_node_they_come_to() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as bob:
            position = await bob.ask("subscribe", channel="user:bob")
        since = {"epoch": position["epoch"], "offset": position["offset"]}
        await until(lambda: not one.hub.sessions_of("bob"))
        assert await one.hubbub.notify("bob", "while away", "m") == 0
        async with two.client("bob") as bob:
            missed = await bob.ask("subscribe", channel="user:bob", since=since)
            assert [each["data"]["title"] for each in missed["messages"]] == ["while away"]


async def test_many_users_are_notified_at_once() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        users = [f"user-{number}" for number in range(1200)]
        async with two.client("user-7") as seven, two.client("user-1199") as last:
            assert await one.hubbub.notify(users, "all", "m") == 2
            assert (await seven.expect("notification"))["offset"] == 1
            assert (await last.expect("notification"))["offset"] == 1


async def test_a_broadcast_reaches_everybody_but_those_who_are_excluded() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with one.client("a") as a, two.client("b") as b, three.client("c") as c, three.client("a") as a3:
            async with two.client(), one.http() as http:
                body = {"title": "t", "message": "m", "exclude_users": ["b", ""]}
                answer = await http.post("/api/notifications/broadcast", json=body | {"exclude_users": ["b"]})
                assert answer.json() == {"status": "broadcasted", "delivered": 3, "complete": True}
                for client in (a, c, a3):
                    assert (await client.expect("broadcast_notification"))["data"]["title"] == "t"
                    await client.nothing_more()
                await b.nothing_more()
                assert await one.hubbub.broadcast("t", "m", exclude_users=["a", "c", ""]) == 1
                assert (await b.expect("broadcast_notification"))["data"]["title"] == "t"
            with pytest.raises(ValueError, match="at most 10000"):
                await one.hubbub.broadcast("t", "m", exclude_users=map(str, range(10_001)))


async def test_who_is_online_and_how_often_is_known_on_every_node() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with two.client("bob"), three.client("bob"), three.client("carol"), one.client("dave"):
            assert await one.hubbub.count_sessions("bob") == 2
            assert await three.hubbub.count_sessions("dave") == 1
            assert await one.hubbub.count_sessions("nobody") == 0
            assert await one.hubbub.online(["bob", "carol", "dave", "nobody", ""]) == {"bob", "carol", "dave"}
            assert await one.hubbub.online(str(number) for number in range(10_001)) == set()
            assert [len(node.hubbub.sessions("bob")) for node in nodes.nodes] == [0, 1, 1], "these are this node's"
            assert await asyncio.to_thread(one.hubbub.sync.count_sessions, "bob") == 2
            assert await asyncio.to_thread(one.hubbub.sync.online, ["carol"]) == {"carol"}


async def test_many_counts_at_once_are_few_questions() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with two.client("user-3"), two.client("user-3"), one.client("user-4"):
            before = one.hub.cluster.counts["told"]
            counts = await asyncio.gather(*(one.hubbub.count_sessions(f"user-{number}") for number in range(500)))
            assert [(user, count) for user, count in enumerate(counts) if count] == [(3, 2), (4, 1)]
            assert one.hub.cluster.counts["told"] - before < 20
            assert await one.hubbub.count_sessions("user-3") == 2


async def test_who_is_in_a_channel_is_known_on_every_node() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with one.client("bob") as b1, two.client("bob") as b2, two.client("carol") as carol:
            for client in (b1, b2, carol):
                await client.ask("subscribe", channel="news")
            await until(lambda: one.hubbub.presence("news") == {"bob": 2, "carol": 1})
            for node in nodes.nodes:
                assert await node.hubbub.who_is_in("news") == {"bob": 2, "carol": 1}
            assert three.hubbub.presence("news") == {}, "it has nobody there"
            assert await asyncio.to_thread(three.hubbub.sync.who_is_in, "news") == {"bob": 2, "carol": 1}
            assert await one.hubbub.who_is_in("nobody:here") == {}


async def test_a_user_is_subscribed_and_unsubscribed_on_all_nodes() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as b1, two.client("bob") as b2:
            assert await one.hubbub.subscribe("bob", "news") == 2
            for client in (b1, b2):
                assert (await client.expect("subscribed"))["channel"] == "news"
            await two.hubbub.publish("news", 1)
            for client in (b1, b2):
                assert (await client.expect("publication"))["data"] == 1
            assert await one.hubbub.unsubscribe("bob", "news", reason="enough") == 2
            for client in (b1, b2):
                assert (await client.expect("unsubscribed"))["reason"] == "enough"
            assert await two.hubbub.unsubscribe("bob", "news") == 0
            with pytest.raises(ClientError) as refused:
                await one.hubbub.subscribe("nobody", "not a name")
            assert refused.value.code == ErrorCode.INVALID_MESSAGE


# -- a device that comes back to another node


async def test_a_device_that_comes_back_elsewhere_ends_the_session_that_hangs() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with one.client("bob") as other, one.client("bob") as hangs:
            nodes.clock.advance(1)
            async with two.client("bob", session=hangs.session) as back:
                assert back.session == hangs.session
                assert await hangs.closed() == 4409
                await until(lambda: one.hub.sessions_of("bob") == 1)
                await other.nothing_more()
                nodes.clock.advance(1)
                async with one.client("bob", session=back.session) as again:
                    assert await back.closed() == 4409
                    await nodes.settled()
                    await again.nothing_more()
                    assert [node.hub.sessions_of("bob") for node in (one, two, three)] == [2, 0, 0]


async def test_another_users_session_is_not_ended_by_naming_it() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as bob:
            nodes.clock.advance(1)
            async with two.client("mallory", session=bob.session):
                await nodes.settled()
                await bob.nothing_more()


async def test_a_device_that_is_back_on_this_node_is_not_ended_by_an_older_word_of_another() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as bob:
            nodes.engine.cut(two.hubbub)
            nodes.clock.advance(1)
            async with two.client("bob", session=bob.session):
                nodes.clock.advance(1)
                async with one.client("bob", session=bob.session) as back:
                    assert await bob.closed() == 4409
                    nodes.engine.heal(two.hubbub)  # now it says that the device came there a second ago
                    await nodes.settled()
                    await back.nothing_more()
                    assert one.hub.sessions_of("bob") == 1


async def test_exclude_self_holds_for_a_device_that_came_back_elsewhere() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as first, one.client("alice") as alice:
            position = await first.ask("subscribe", channel="news")
            await alice.ask("subscribe", channel="news")
            ack = await first.ask("publish", channel="news", data="own", exclude_self=True)
            assert ack["offset"] == 1
            await one.hubbub.publish("news", "another's")
            since = {"epoch": position["epoch"], "offset": position["offset"]}
            nodes.clock.advance(1)
            async with two.client("bob", session=first.session) as back:
                missed = await back.ask("subscribe", channel="news", since=since)
                assert [each["data"] for each in missed["messages"]] == ["another's"]
                await back.ask("publish", channel="news", data="own too", exclude_self=True)
                await one.hubbub.publish("news", "last")
                assert (await back.expect("publication"))["data"] == "last"


async def test_a_second_device_elsewhere_gets_what_the_first_published_but_not_to_itself() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as first:
            position = await first.ask("subscribe", channel="news")
            await first.ask("publish", channel="news", data="of the first", exclude_self=True)
            since = {"epoch": position["epoch"], "offset": position["offset"]}
            async with two.client("bob") as second:  # it names no session: it is not the first one come back
                missed = await second.ask("subscribe", channel="news", since=since)
                assert [each["data"] for each in missed["messages"]] == ["of the first"]


# -- publishers without a server


# -- how many devices a user may have


async def test_a_users_devices_are_limited_over_all_nodes() -> None:
    async with cluster(3, max_connections_per_user=2) as nodes:
        one, two, three = nodes.nodes
        async with one.client("bob") as first, two.client("bob") as second, three.client("alice") as alice:
            nodes.clock.advance(1)
            async with three.client("bob") as third:
                refusal = await third.expect("error")
                assert (refusal["code"], refusal["retry_after"]) == ("too_many", 30.0)
                assert await third.closed() == 4429
            assert three.hub.metrics.limits["user"] == 1
            for other in (first, second, alice):
                await other.nothing_more()
        await until(lambda: not two.hub.sessions_of("bob"))
        async with two.client("bob") as again, two.client("bob") as another:
            await until(lambda: not two.hub.sessions_of("bob") < 2)
            await again.nothing_more()
            await another.nothing_more()


@pytest.mark.parametrize("apart", [0.0, 0.001, 1.0])
async def test_of_many_that_come_to_all_nodes_as_many_stay_as_may(apart: float) -> None:
    async with cluster(2, max_connections_per_user=3) as nodes, AsyncExitStack() as stack:
        one, two = nodes.nodes
        for node in (one, two, one, two, one, two):  # each node lets three in
            await stack.enter_async_context(node.client("bob"))
            nodes.clock.advance(apart)
        await until(lambda: not any(node.hub.cluster.devices.asking for node in (one, two)))
        await until(lambda: one.hub.sessions_of("bob") + two.hub.sessions_of("bob") <= 3)
        stay = one.hub.sessions_of("bob"), two.hub.sessions_of("bob")
        assert sum(stay) == 3
        assert apart < 1 or stay == (2, 1), "the oldest stay"


async def test_who_comes_at_the_same_time_as_those_who_were_let_in_takes_the_place_of_one() -> None:
    async with cluster(2, max_connections_per_user=2) as nodes:
        one, two = nodes.nodes
        async with one.client("bob"), two.client("bob"):
            await until(lambda: not any(node.hub.cluster.devices.asking for node in (one, two)))
            async with one.client("bob", session="-" * 16) as first:  # by its id
                await until(lambda: one.hub.sessions_of("bob") + two.hub.sessions_of("bob") == 2)
                await first.nothing_more()


async def test_who_connects_early_and_signs_in_late_comes_late() -> None:
    async with cluster(2, max_connections_per_user=1) as nodes:
        one, two = nodes.nodes
        async with connect(two.ws + "/ws", proxy=None) as early:
            await until(lambda: bool(two.hub.sessions))
            nodes.clock.advance(1)
            async with one.client("bob") as bob:
                await until(lambda: not one.hub.cluster.devices.asking)
                nodes.clock.advance(1)
                await early.send(json.dumps({"type": "auth", "token": two.token("bob")}))
                while (answer := json.loads(await early.recv()))["type"] != "error":
                    pass
                assert answer["code"] == "too_many"
                await bob.nothing_more()


async def test_a_device_that_changes_nodes_is_not_one_too_many() -> None:
    async with cluster(2, max_connections_per_user=1) as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as bob:
            nodes.clock.advance(1)
            async with two.client("bob", session=bob.session) as back:
                assert await bob.closed() == 4409
                await until(lambda: not two.hub.cluster.devices.asking)
                await back.nothing_more()


async def test_while_the_engine_is_away_each_node_limits_its_own() -> None:
    async with cluster(2, max_connections_per_user=1) as nodes:
        one, two = nodes.nodes
        nodes.engine.cut(one.hubbub)
        nodes.engine.cut(two.hubbub)
        async with one.client("bob") as bob, two.client("bob") as other:
            await until(lambda: not two.hub.cluster.devices.asking)
            await bob.nothing_more()
            await other.nothing_more()
            async with with_token(two, two.token("bob")) as third:
                assert (await third.expect("error"))["code"] == "too_many"


async def test_publishers_are_heard_like_an_admins_request() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        old = one.token("mallory")
        nodes.clock.advance(1)
        async with one.client("alice") as alice, two.client("bob") as bob, with_token(two, old) as mallory:
            await mallory.expect("auth_success")
            nodes.engine.tell(letter_of(Announce("t", "m", at=nodes.clock.time(), exclude=["bob", "mallory"])))
            assert (await alice.expect("broadcast_notification"))["data"]["title"] == "t"
            nodes.engine.tell(letter_of(Revoke(nodes.clock.time(), nodes.clock.time() + 60, "mallory")))
            assert await mallory.closed() == 4401
            assert await refuses(one, old)
            nodes.engine.tell(letter_of(Announce("", "m")))
            nodes.engine.tell(letter_of(Announce("t", "m" * 10_001)))
            nodes.engine.tell(letter_of(Disconnect("bob", 7)))
            nodes.engine.tell(letter_of(Count(["bob"])))
            nodes.engine.tell(b"nonsense")
            await until(lambda: [node.hub.cluster.counts["bad"] for node in nodes.nodes] == [5, 5])
            await bob.nothing_more()
            await alice.nothing_more()
            nodes.engine.tell(letter_of(Disconnect("bob", reason="by a script")))
            assert await bob.closed() == 1000


async def test_a_publisher_whose_clock_is_ahead_does_not_shut_users_out() -> None:
    async with cluster(1) as nodes:
        (one,) = nodes.nodes
        now = nodes.clock.time()
        nodes.engine.tell(letter_of(Revoke(now + 1e6, now + 2e6, "bob")))
        await nodes.settled()
        assert await refuses(one, one.token("bob"))
        nodes.clock.advance(61)
        assert not await refuses(one, one.token("bob"))


# -- what the nodes have together


async def test_health_says_what_all_nodes_have() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("a"), two.client("b"), two.client("b"), one.http(bearer=None) as http:
            nodes.clock.advance(2)  # a beat

            def told() -> bool:
                return one.hub.cluster.totals().sessions == 3

            await until(told)
            health = (await http.get("/health")).json()
            assert {name: health[name] for name in ("active_connections", "nodes", "total_connections")} == {
                "active_connections": 1, "nodes": 2, "total_connections": 3,
            }  # fmt: skip
            assert health["total_users"] == 2
            nodes.engine.kill(two.hubbub)
            nodes.clock.advance(LEASE + 2)
            await until(lambda: one.hub.cluster.totals().nodes == 1)
            assert (await http.get("/health")).json()["total_connections"] == 1


# -- over a real engine: servers that are processes


@pytest.mark.slow
async def test_two_servers_over_valkey(valkey_url: str, valkey_prefix: str, tmp_path: Path) -> None:
    async with (
        running_nodes(valkey_url, tmp_path, valkey_prefix=valkey_prefix) as (one, two),
        one.client("alice") as alice,
        one.client("bob") as b1,
        two.client("bob") as b2,
        two.client("carol") as carol,
        two.http() as http,
    ):
        body = {"user_ids": ["bob", "alice"], "title": "t", "message": "m"}
        answer = (await http.post("/api/notifications/send", json=body)).json()
        assert (answer["delivered"], answer["complete"]) == (3, True)
        for client in (alice, b1, b2):
            assert (await client.expect("notification"))["data"]["id"] == answer["id"]
            await client.nothing_more()
        await carol.nothing_more()
        body = {"title": "t", "message": "m", "exclude_users": ["carol"]}
        answer = (await http.post("/api/notifications/broadcast", json=body)).json()
        assert (answer["delivered"], answer["complete"]) == (3, True)
        for client in (alice, b1, b2):
            await client.expect("broadcast_notification")
        await carol.nothing_more()
        health = (await http.get("/health")).json()
        assert health["nodes"] == 2
        async with two.client("alice", session=alice.session):
            assert await alice.closed() == 4409, "it is back elsewhere"
        answer = (await http.post("/api/sessions/disconnect", json={"user_id": "bob"})).json()
        assert answer == {"disconnected": 2, "complete": True}
        assert [await b1.closed(), await b2.closed()] == [1000, 1000]


@pytest.mark.slow
async def test_a_server_that_stood_still_learns_what_was_revoked(
    valkey_url: str, valkey_prefix: str, tmp_path: Path
) -> None:
    async with running_nodes(valkey_url, tmp_path, valkey_prefix=valkey_prefix) as (one, two), one.http() as http:
        old = two.token("mallory")
        async with two.client("mallory") as mallory, two.client("alice") as alice:
            two.pause()
            try:
                body = {"user_id": "mallory", "revoke": True}
                answer = (await http.post("/api/sessions/disconnect", json=body)).json()
                assert answer == {"disconnected": 0, "complete": False}
                async with asyncio.timeout(30):  # until the others take it for gone
                    while (await http.get("/health")).json()["nodes"] == 2:
                        await asyncio.sleep(0.05)
                answer = (await http.post("/api/sessions/disconnect", json={"user_id": "mallory"})).json()
                assert answer == {"disconnected": 0, "complete": True}
            finally:
                two.resume()
            began = asyncio.get_running_loop().time()
            assert await mallory.closed() == 4401
            assert asyncio.get_running_loop().time() - began < 2.0 + LEASE
            await alice.drained()
        for node in (one, two):
            async with connect(f"{node.ws}/ws?token={old}", proxy=None) as connection:
                assert json.loads(await connection.recv())["code"] == "authentication_failed"


@pytest.mark.slow
async def test_a_revocation_goes_through_while_the_engine_is_away_and_comes_back_empty(
    own_valkey: Engine, tmp_path: Path
) -> None:
    async with running_nodes(own_valkey.url, tmp_path) as (one, two), one.http() as http:
        async with two.client("mallory") as mallory, two.client("alice") as alice:
            old = two.token("mallory")
            await asyncio.to_thread(own_valkey.kill)
            answer = (await http.post("/api/sessions/disconnect", json={"user_id": "mallory", "revoke": True})).json()
            assert answer == {"disconnected": 0, "complete": False}
            await alice.drained()
            await mallory.drained()
            await asyncio.to_thread(own_valkey.start)
            assert await mallory.closed() == 4401
            await alice.drained()
        await asyncio.to_thread(own_valkey.restart)  # it keeps nothing
        for node in (one, two):
            await node.until_ready()
        async with asyncio.timeout(10):  # until a node has told it again
            while not await asyncio.to_thread(lambda: own_valkey.call("EXISTS", "hubbub:{0}:k:revoked")):
                await asyncio.sleep(0.02)
        async with running_node(own_valkey.url, tmp_path, "later") as three:
            for node in (one, two, three):
                async with connect(f"{node.ws}/ws?token={old}", proxy=None) as connection:
                    assert json.loads(await connection.recv())["code"] == "authentication_failed"


@pytest.mark.slow
async def test_a_revocation_holds_within_two_seconds_and_after_a_restart(
    valkey_url: str, valkey_prefix: str, tmp_path: Path
) -> None:
    async with running_nodes(valkey_url, tmp_path, valkey_prefix=valkey_prefix) as (one, two), one.http() as http:
        old = two.token("mallory")

        async def refused() -> bool:
            async with connect(f"{two.ws}/ws?token={old}", proxy=None) as connection:
                return bool(json.loads(await connection.recv())["type"] == "error")

        assert not await refused()
        began = asyncio.get_running_loop().time()
        await http.post("/api/sessions/disconnect", json={"user_id": "mallory", "revoke": True})
        while not await refused():
            assert asyncio.get_running_loop().time() - began < 2.0
        await two.kill()
        await two.start()
        assert await refused()
