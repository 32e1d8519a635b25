"""Channels: subscribe, publish, page through the past, see who is there; and who may do what where."""

from __future__ import annotations

from typing import Any

import pytest

from hubbub import ChannelOptions
from tests.support import BOTH_LANES, Client, HandClock, Running, serve

pytestmark = BOTH_LANES


async def test_subscribe_publish_unsubscribe(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice, server.client("bob") as bob:
        reply = await alice.ask("subscribe", channel="news:sport")
        assert reply == {
            "type": "subscribed",
            "ref": "ask-1",
            "channel": "news:sport",
            "epoch": reply["epoch"],
            "offset": 0,
            "recovered": False,
            "messages": [],
        }
        ack = await bob.ask("publish", channel="news:sport", data={"goal": [1, None, True, 0.5, "ü"]}, key="match")
        assert ack == {"type": "ack", "ref": "ask-1", "offset": 1, "epoch": reply["epoch"]}
        assert await alice.receive() == {
            "type": "publication",
            "channel": "news:sport",
            "offset": 1,
            "data": {"goal": [1, None, True, 0.5, "ü"]},
            "user_id": "bob",
            "key": "match",
        }
        await bob.nothing_more()  # it is not subscribed
        assert (await alice.ask("publish", channel="news:sport", data=2))["offset"] == 2
        assert alice.seen[-2]["data"] == 2, "a publication goes before its ack"
        await server.hubbub.publish("news:sport", {"by": "the app"})
        assert await alice.receive() == {
            "type": "publication",
            "channel": "news:sport",
            "offset": 3,
            "data": {"by": "the app"},
        }
        assert (await alice.ask("unsubscribe", channel="news:sport"))["type"] == "unsubscribed"
        assert await alice.refused("unsubscribe", channel="news:sport") == "not_subscribed"
        await bob.ask("publish", channel="news:sport", data=4)
        await alice.nothing_more()
        async with server.http() as http:
            body = {"channel": "news:sport", "data": None, "key": "k"}
            answer = await http.post("/api/publish", json=body)
            assert answer.json() == {"channel": "news:sport", "epoch": reply["epoch"], "offset": 5}


async def test_subscribing_twice_delivers_once(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        await alice.ask("subscribe", channel="news")
        await server.hubbub.publish("news", 1)
        reply = await alice.ask("subscribe", channel="news")
        assert reply["offset"] == 1
        await server.hubbub.publish("news", 2)
        assert [m["data"] for m in alice.seen if m["type"] == "publication"] == [1]
        assert (await alice.receive())["data"] == 2
        await alice.nothing_more()
        await alice.ask("unsubscribe", channel="news")
        assert "news" not in server.hub.channels or not server.hub.channels["news"].size


async def test_history_pages(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        empty = await alice.ask("history", channel="news")
        assert (empty["messages"], empty["more"], empty["offset"]) == ([], False, 0)
        for number in range(1, 11):
            await server.hubbub.publish("news", number)

        async def page(**fields: Any) -> tuple[list[int], bool]:
            answer = await alice.ask("history", channel="news", **fields)
            assert answer["offset"] == 10
            assert [m["offset"] for m in answer["messages"]] == [m["data"] for m in answer["messages"]]
            async with server.http() as http:
                same = await http.get("/api/channels/news/history", params=fields)
                assert same.json()["messages"] == answer["messages"]
                assert same.json()["more"] == answer["more"]
            return [m["data"] for m in answer["messages"]], answer["more"]

        assert await page() == (list(range(1, 11)), False)
        assert await page(limit=3) == ([8, 9, 10], True)
        assert await page(before=8, limit=3) == ([5, 6, 7], True)
        assert await page(before=2, limit=3) == ([1], False)
        assert await page(after=0, limit=3) == ([1, 2, 3], True)
        assert await page(after=3, limit=3) == ([4, 5, 6], True)
        assert await page(after=8, limit=3) == ([9, 10], False)
        assert await page(after=3, before=6) == ([4, 5], False)
        assert await page(after=10) == ([], False)
        assert await page(before=1) == ([], False)
        assert await page(before=0) == ([], False)
        server.advance(3601)
        assert await page() == ([], False)
        for wrong in ({"limit": 0}, {"limit": 201}, {"after": -1}, {"before": 2**54}):
            assert await alice.refused("history", channel="news", **wrong) == "invalid_message"


async def test_presence_of_users_and_devices(lane: str) -> None:
    async with serve(lane) as server, server.client("alice", grants={"info": {"name": "Alice"}}) as alice:
        reply = await alice.ask("subscribe", channel="news", presence=True)
        assert reply["count"] == 1
        assert reply["presence"] == {
            "alice": {"info": {"name": "Alice"}, "devices": 1, "since": "2027-01-15T08:00:00.000Z"}
        }
        assert list((await alice.receive())["joined"]) == ["alice"]
        async with server.client("bob") as bob, server.client("bob") as second:
            await bob.ask("subscribe", channel="news")
            joined = await alice.expect("presence_changed")
            assert list(joined["joined"]) == ["bob"]
            assert joined["left"] == []
            await second.ask("subscribe", channel="news")
            await alice.nothing_more()  # a second device is no news
            answer = await alice.ask("presence", channel="news")
            assert answer["count"] == 2
            assert answer["users"]["bob"]["devices"] == 2
            async with server.http() as http:
                same = (await http.get("/api/channels/news/presence")).json()
                assert same == {"channel": "news", "count": 2, "users": answer["users"]}
            await second.ask("unsubscribe", channel="news")
            await bob.nothing_more()  # it did not ask to be told of comings and goings
        await alice.nothing_more()  # bob is in the grace
        assert (await alice.ask("presence", channel="news"))["users"]["bob"]["devices"] == 0
        server.advance(3.1)
        left = await alice.receive()
        assert left == {"type": "presence_changed", "channel": "news", "joined": {}, "left": ["bob"], "count": 1}
        assert (await alice.ask("presence", channel="empty"))["users"] == {}


async def test_large_channels_tell_counts(lane: str) -> None:
    async with serve(lane, presence_limit=2) as server, server.client("a") as first, server.client("b") as second:
        await first.ask("subscribe", channel="news", presence=True)
        await second.ask("subscribe", channel="news")
        await first.expect("presence_changed", count=2)
        async with server.client("c") as third:
            reply = await third.ask("subscribe", channel="news", presence=True)
            assert "presence" not in reply
            assert reply["count"] == 3
            changed = await first.expect("presence_changed")
            assert (changed["joined"], changed["left"], changed["count"]) == ({}, [], 3)
            answer = await first.ask("presence", channel="news")
            assert (answer["users"], answer["count"]) == ({}, 3)


CHANNELS = {
    "own:*": ChannelOptions(),
    "bare:*": ChannelOptions(history_size=0),
    "short:*": ChannelOptions(history_ttl=10, history_size=3),
    "quiet:*": ChannelOptions(presence=False),
    "app:*": ChannelOptions(publish="server"),
    "wall:*": ChannelOptions(publish="anyone", subscribe="anyone"),
    "club:*": ChannelOptions(publish="subscribers"),
}


async def test_options_per_pattern(lane: str) -> None:
    grants = {"subscribe": ["own:*", "bare:*", "short:*", "quiet:*", "app:*", "club:*"], "publish": ["*"]}
    async with (
        serve(lane, channels=CHANNELS) as server,
        server.client("alice", grants=grants) as alice,
        server.client("poor", grants={"subscribe": (), "publish": ()}) as poor,
    ):
        # no history: no offsets, no recovery
        bare = await alice.ask("subscribe", channel="bare:1", since={"epoch": "x", "offset": 1})
        assert (bare["offset"], bare["recovered"]) == (0, False)
        assert (await alice.receive())["type"] == "gap"
        assert (await alice.ask("publish", channel="bare:1", data=1))["offset"] == 0
        assert [(m["offset"], m["data"]) for m in alice.seen if m["type"] == "publication"] == [(0, 1)]
        assert (await alice.ask("history", channel="bare:1"))["messages"] == []
        # little history
        for number in range(5):
            await alice.ask("publish", channel="short:1", data=number)
        assert [m["data"] for m in (await alice.ask("history", channel="short:1"))["messages"]] == [2, 3, 4]
        server.advance(11)
        assert (await alice.ask("history", channel="short:1"))["messages"] == []
        # no presence
        assert "presence" not in await alice.ask("subscribe", channel="quiet:1", presence=True)
        assert await alice.refused("presence", channel="quiet:1") == "forbidden"
        # who may publish
        assert await alice.refused("publish", channel="app:1", data=1) == "forbidden"
        await server.hubbub.publish("app:1", 1)
        assert await poor.refused("publish", channel="own:1", data=1) == "forbidden"
        assert (await poor.ask("publish", channel="wall:1", data=1))["type"] == "ack"
        assert (await poor.ask("subscribe", channel="wall:1"))["type"] == "subscribed"
        assert await poor.refused("subscribe", channel="own:1") == "forbidden"
        assert await alice.refused("publish", channel="club:1", data=1) == "forbidden"
        await alice.ask("subscribe", channel="club:1")
        assert (await alice.ask("publish", channel="club:1", data=1))["type"] == "ack"
        assert await poor.refused("subscribe", channel="club:1") == "forbidden"


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "-a", "a" * 129, "a\n", "user:", "a\x00"])
async def test_names_that_are_none(lane: str, name: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice, server.http() as http:
        for kind in ("subscribe", "history", "presence"):
            assert await alice.refused(kind, channel=name) in ("invalid_message", "forbidden")
        assert await alice.refused("publish", channel=name, data=1) in ("invalid_message", "forbidden")
        assert (await http.post("/api/publish", json={"channel": name, "data": 1})).status_code in (403, 422)


async def attempts(client: Client, name: str) -> list[tuple[str, str]]:
    """Everything that can be tried on a channel by WebSocket: the answers' codes and texts, without the name."""
    since = {"epoch": "aaaaaaaa", "offset": 0}
    answers = [
        await client.ask("subscribe", channel=name),
        await client.ask("subscribe", channel=name, since=since),
        await client.ask("subscribe", channel=name, presence=True),
        await client.ask("history", channel=name),
        await client.ask("presence", channel=name),
        await client.ask("publish", channel=name, data=1),
    ]
    if name.startswith("room:"):
        room = name[5:]
        answers += [
            await client.ask("join_room", room_id=room),
            await client.ask("join_room", room_id=room, since=since),
            await client.ask("chat_message", room_id=room, message="hello"),
            await client.ask("typing", room_id=room),
        ]
    for answer in answers:
        assert answer["type"] == "error", answer
    return [(answer["code"], answer["message"].replace(name, "?").replace(name[5:], "?")) for answer in answers]


async def furnish(server: Running) -> None:
    """Channels with something in them that nobody else may learn of."""
    await server.hubbub.create_room("secret")
    await server.hubbub.publish("private:1", "secret")
    await server.hubbub.notify("bob", "secret", "secret")


async def test_what_is_forbidden_looks_like_what_is_not_there(lane: str) -> None:
    grants: dict[str, Any] = {"subscribe": ["news"], "publish": ["news"], "rooms": ["general"]}
    async with (
        serve(lane, rate_limit=0, user_rate_limit=0) as server,
        server.client("bob") as bob,
        server.client("mallory", grants=grants) as mallory,
    ):
        await furnish(server)
        await bob.ask("join_room", room_id="secret")
        await bob.ask("chat_message", room_id="secret", message="secret")
        await bob.ask("subscribe", channel="private:1")
        there = [await attempts(mallory, name) for name in ("room:secret", "user:bob", "private:1")]
        missing = [await attempts(mallory, name) for name in ("room:absent", "user:nob", "private:2")]
        assert there == missing
        assert "secret" not in str(there)
        assert mallory.seen
        assert [m for m in mallory.seen if m["type"] not in ("error", "auth_success")] == []
        answer = await mallory.ask("list_rooms")
        assert [room["room_id"] for room in answer["rooms"]] == ["general"]
        await bob.nothing_more()  # and nobody noticed a thing
        async with server.http(bearer=server.token("mallory", **grants)) as http:
            for path in ("/api/channels/{}/history", "/api/channels/{}/presence"):
                for name in ("room:secret", "room:absent", "user:bob", "private:1", "private:2", "news"):
                    answered = await http.get(path.format(name))
                    assert answered.status_code == 403
                    assert answered.json()["error"]["code"] == "forbidden"
            for body in ({"channel": "private:1", "data": 1}, {"channel": "news", "data": 1}):
                assert (await http.post("/api/publish", json=body)).status_code == 403
            rooms = (await http.get("/api/rooms")).json()
            assert [room["room_id"] for room in rooms] == ["general"]
            for room in ("secret", "absent"):
                answered = await http.post("/api/rooms", json={"room_id": room})
                assert answered.status_code == 403
        async with server.client("mallory", path="/ws/chat/secret", grants=grants) as client:
            assert await client.closed() == 4404


async def test_own_channels_and_the_administrator(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.client("bob") as bob,
        server.client("root", grants={"admin": True, "subscribe": (), "publish": ()}) as root,
    ):
        await furnish(server)
        await bob.expect("notification")
        own = await bob.ask("history", channel="user:bob")
        assert [m["data"]["title"] for m in own["messages"]] == ["secret"]
        assert await bob.refused("publish", channel="user:bob", data=1) == "forbidden"
        assert await bob.refused("presence", channel="user:bob") == "forbidden"
        assert (await bob.ask("history", channel="room:general"))["code"] == "not_joined"
        await bob.ask("join_room", room_id="general")
        assert (await bob.ask("history", channel="room:general"))["type"] == "history"
        assert (await bob.ask("presence", channel="room:general"))["count"] == 1
        assert await bob.refused("publish", channel="room:general", data=1) == "forbidden"
        assert await bob.refused("unsubscribe", channel="room:general") == "forbidden"
        assert (await root.ask("history", channel="private:1"))["type"] == "history"
        assert (await root.ask("presence", channel="room:general"))["count"] == 1
        assert (await root.ask("publish", channel="private:1", data=1))["type"] == "ack"
        assert await root.refused("publish", channel="room:general", data=1) == "forbidden"
        async with server.http() as http:
            for channel in ("room:general", "user:bob"):
                answer = await http.post("/api/publish", json={"channel": channel, "data": 1})
                assert answer.status_code == 403


async def test_too_many_channels(lane: str) -> None:
    async with (
        serve(lane, max_channels_per_session=3, max_channels=4, presence_grace=0) as server,
        server.client("alice") as alice,
    ):
        for name in ("a", "b", "c"):
            await alice.ask("subscribe", channel=name)
        assert await alice.refused("subscribe", channel="d") == "too_many"
        assert (await alice.ask("subscribe", channel="a"))["type"] == "subscribed"
        assert await alice.refused("join_room", room_id="general") == "too_many"
        await alice.ask("unsubscribe", channel="a")
        assert (await alice.ask("subscribe", channel="d"))["type"] == "subscribed"
        assert sorted(server.hub.channels) == ["b", "c", "d"]
        # the broker is full of channels that are in use: refused, and nothing of it stays behind
        async with server.client("bob") as bob:
            await bob.ask("subscribe", channel="e")
            assert await bob.refused("subscribe", channel="f") == "too_many"
            assert await bob.refused("unsubscribe", channel="f") == "not_subscribed"
            assert sorted(server.hub.channels) == ["b", "c", "d", "e"]
            assert await bob.refused("publish", channel="g", data=1) == "too_many"
            await alice.ask("unsubscribe", channel="b")
            assert (await bob.ask("subscribe", channel="f"))["type"] == "subscribed"


async def test_publishing_once_with_a_key(lane: str) -> None:
    clock = HandClock()
    async with (
        serve(lane, clock=clock) as server,
        server.client("alice") as alice,
        server.client("alice") as phone,
        server.client("bob") as bob,
    ):
        await bob.ask("subscribe", channel="news")
        first = await alice.ask("publish", channel="news", data=1, idempotency_key="k")
        again = await phone.ask("publish", channel="news", data=1, idempotency_key="k")
        assert (again["epoch"], again["offset"]) == (first["epoch"], first["offset"]) == (first["epoch"], 1)
        assert (await alice.ask("publish", channel="other", data=1, idempotency_key="k"))["offset"] == 1
        assert (await bob.ask("publish", channel="news", data=2, idempotency_key="k"))["offset"] == 2, "a user's own"
        async with server.http() as http:
            body = {"channel": "news", "data": 3, "idempotency_key": "k"}
            assert (await http.post("/api/publish", json=body)).json()["offset"] == 3, "no user's is the server's"
            assert (await http.post("/api/publish", json=body)).json()["offset"] == 3
            del body["idempotency_key"]
            answer = await http.post("/api/publish", json=body, headers={"Idempotency-Key": "k"})
            assert answer.json()["offset"] == 3
            answer = await http.post("/api/publish", json=body, headers={"Idempotency-Key": "k" * 129})
            assert answer.status_code == 422
        assert (await server.hubbub.publish("news", 3, idempotency_key="k")).offset == 3
        assert (await server.hubbub.publish("news", 4, idempotency_key="l")).offset == 4
        await bob.drained()
        assert [message["data"] for message in bob.seen if message["type"] == "publication"] == [1, 2, 3, 4]
        for wrong in ("", "k" * 129, 7):
            assert await alice.refused("publish", channel="news", data=1, idempotency_key=wrong) == "invalid_message"
        server.advance(301)
        assert (await alice.ask("publish", channel="news", data=5, idempotency_key="k"))["offset"] == 5
        assert (await bob.expect("publication"))["data"] == 5


async def test_a_version_that_is_not_newer_is_not_published(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice, server.client("bob") as bob:
        await bob.ask("subscribe", channel="price")
        for version, offset in ((0, 1), (5, 2), (5, 2), (3, 2), (2**53, 3)):
            ack = await alice.ask("publish", channel="price", data=version, version=version)
            assert ack["offset"] == offset, version
        assert (await alice.ask("publish", channel="price", data="plain"))["offset"] == 4
        async with server.http() as http:
            answer = await http.post("/api/publish", json={"channel": "price", "data": "late", "version": 7})
            assert answer.json()["offset"] == 4
        assert (await server.hubbub.publish("price", "late", version=8)).offset == 4
        assert (await alice.ask("publish", channel="other", data=1, version=1))["offset"] == 1
        seen = [message["data"] for message in await bob.drained()]
        assert seen == [0, 5, 2**53, "plain"]
        for wrong in (-1, 2**53 + 1, "1"):
            assert await alice.refused("publish", channel="price", data=1, version=wrong) == "invalid_message"
        with pytest.raises(ValueError, match="a version"):
            await server.hubbub.publish("price", 1, version=-1)
        with pytest.raises(ValueError, match="an idempotency key"):
            await server.hubbub.publish("price", 1, idempotency_key="")
