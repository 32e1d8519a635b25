"""Live notifications: to one, to many, to all; on every device; by whoever may."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import API_KEY, BOTH_LANES, serve

pytestmark = BOTH_LANES

SEND = "/api/notifications/send"
BROADCAST = "/api/notifications/broadcast"


async def test_to_one_to_many_on_all_devices(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.http() as http,
        server.client("alice") as phone,
        server.client("alice", subprotocols=["hubbub.msgpack"]) as laptop,
        server.client("bob") as bob,
        server.client() as stranger,
    ):
        body = {"user_id": "alice", "title": "Hi", "message": "there", "metadata": {"url": "/x", "n": [1, None]}}
        answer = await http.post(SEND, json=body)
        assert answer.status_code == 200
        sent = answer.json()
        assert sent == {"status": "sent", "id": sent["id"], "delivered": 2, "complete": True}
        wanted = {
            "type": "notification",
            "offset": 1,
            "data": {
                "id": sent["id"],
                "title": "Hi",
                "message": "there",
                "notification_type": "info",
                "timestamp": "2027-01-15T08:00:00.000Z",
                "metadata": {"url": "/x", "n": [1, None]},
            },
        }
        assert await phone.receive() == wanted
        assert await laptop.receive() == wanted
        await bob.nothing_more()
        body = {"user_ids": ["alice", "bob", "bob", "nobody"], "title": "t", "message": ""}
        answer = await http.post(SEND, json=body)
        assert answer.json()["delivered"] == 3
        for client in (phone, laptop, bob):
            assert (await client.receive())["data"]["id"] == answer.json()["id"]
            await client.nothing_more()  # once
        assert (await http.post(SEND, json={"user_id": "nobody", "title": "t", "message": "m"})).json()[
            "delivered"
        ] == 0
        assert await stranger.refused("ping") == "authentication_required"  # and it had got nothing before


async def test_the_four_types_and_wrong_bodies(lane: str) -> None:
    async with serve(lane) as server, server.http() as http, server.client("alice") as alice:
        good: dict[str, Any] = {"user_id": "alice", "title": "t", "message": "m"}
        for kind in ("info", "success", "warning", "error"):
            assert (await http.post(SEND, json={**good, "notification_type": kind})).status_code == 200
            assert (await alice.receive())["data"]["notification_type"] == kind
        wrong: list[dict[str, Any]] = [
            {**good, "notification_type": "fatal"},
            {**good, "notification_type": None},
            {**good, "user_ids": ["bob"]},
            {"title": "t", "message": "m"},
            {**good, "title": ""},
            {**good, "title": "t" * 501},
            {**good, "message": "m" * 10_001},
            {**good, "message": 1},
            {**good, "metadata": []},
            {**good, "user_id": ""},
            {**good, "user_id": "x" * 129},
            {**good, "typo": 1},
            {"user_ids": "alice", "title": "t", "message": "m"},
        ]
        for body in wrong:
            assert (await http.post(SEND, json=body)).status_code == 422, body
        for body in ({"title": "t"}, {"title": "t", "message": "m", "notification_type": "x"}):
            assert (await http.post(BROADCAST, json=body)).status_code == 422, body
        assert (await http.post(SEND, content=b"{")).status_code == 400
        assert (await http.post(SEND)).status_code == 422
        await alice.nothing_more()


async def test_broadcast(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.http() as http,
        server.client("alice") as phone,
        server.client("alice") as laptop,
        server.client("bob") as bob,
        server.client() as stranger,
    ):
        answer = await http.post(BROADCAST, json={"title": "T", "message": "M", "notification_type": "warning"})
        assert answer.json() == {"status": "broadcasted", "delivered": 3, "complete": True}
        for client in (phone, laptop, bob):
            assert await client.receive() == {
                "type": "broadcast_notification",
                "data": {
                    "title": "T",
                    "message": "M",
                    "notification_type": "warning",
                    "timestamp": "2027-01-15T08:00:00.000Z",
                },
            }
        answer = await http.post(BROADCAST, json={"title": "T", "message": "M", "exclude_users": ["alice", "zed"]})
        assert answer.json()["delivered"] == 1
        assert (await bob.receive())["type"] == "broadcast_notification"
        for client in (phone, laptop):
            await client.nothing_more()
        await stranger.send("auth", token="nonsense")
        assert (await stranger.receive())["code"] == "authentication_failed"


async def test_as_the_guide_sends_them(lane: str) -> None:
    """Its endpoints take query parameters, and answer with a status."""
    async with serve(lane) as server, server.http() as http, server.client("alice") as alice:
        query = {"user_id": "alice", "title": "a b", "message": "ü&=", "notification_type": "success"}
        answer = await http.post(SEND, params=query)
        assert answer.json()["status"] == "sent"
        data = (await alice.receive())["data"]
        assert (data["title"], data["message"], data["notification_type"]) == ("a b", "ü&=", "success")
        answer = await http.post(BROADCAST, params={"title": "t", "message": "m"})
        assert answer.json()["status"] == "broadcasted"
        assert (await alice.receive())["data"]["notification_type"] == "info"
        for wrong in ({"user_id": "alice"}, {"title": "t", "message": "m"}, {**query, "notification_type": "fatal"}):
            answer = await http.post(SEND, params=wrong)
            assert answer.status_code == 422, wrong
            assert answer.json()["detail"][0]["loc"][0] == "query"
        assert (await http.post(BROADCAST, params={"title": "t"})).status_code == 422
        await alice.nothing_more()


CALLS = [
    ("POST", SEND, {"user_id": "alice", "title": "t", "message": "m"}),
    ("POST", BROADCAST, {"title": "t", "message": "m"}),
    ("POST", "/api/publish", {"channel": "news", "data": 1}),
    ("GET", "/api/channels/news/history", None),
    ("GET", "/api/channels/news/presence", None),
    ("POST", "/api/sessions/disconnect", {"user_id": "alice"}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_who_may_call(lane: str, method: str, path: str, body: Any) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        old = server.token("root", admin=True, ttl=1)
        revoked = server.token("gone", admin=True)
        server.advance(10)
        server.hub.entrance.revoke(user_id="gone")
        callers = {
            API_KEY: 200,
            server.token("root", admin=True): 200,
            server.token("alice"): 403,
            server.token("alice", subscribe=["*"], publish=["*"], rooms=["*"]): 403,
            old: 401,
            revoked: 401,
            API_KEY[:-1]: 401,
            API_KEY + "x": 401,
            API_KEY.upper(): 401,
            "nonsense": 401,
        }
        for bearer, status in callers.items():
            if path.endswith("disconnect") and status == 200:
                continue
            async with server.http(bearer=bearer) as http:
                answer = await http.request(method, path, json=body)
                assert answer.status_code == status, (bearer, answer.text)
                if status == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
                if status != 200:
                    assert answer.json()["error"]["code"] in (
                        "forbidden",
                        "authentication_failed",
                        "authentication_required",
                    )
                    assert bearer not in answer.text
        async with server.http(bearer=None) as http:
            assert (await http.request(method, path, json=body)).status_code == 401
            # neither the query nor a cookie is a way in: a page of somebody else could use them
            token = server.token("root", admin=True)
            assert (await http.request(method, path, json=body, params={"token": token})).status_code == 401
            basic = {"authorization": f"Basic {API_KEY}", "cookie": f"hubbub_token={token}"}
            assert (await http.request(method, path, json=body, headers=basic)).status_code == 401
        assert [m["type"] for m in await alice.drained()] in ([], ["notification"] * 2, ["broadcast_notification"] * 2)


async def test_without_api_keys_only_administrators_call(lane: str) -> None:
    async with serve(lane, api_keys=()) as server:
        for bearer, status in ((API_KEY, 401), (server.token("root", admin=True), 200)):
            async with server.http(bearer=bearer) as http:
                answer = await http.post(BROADCAST, json={"title": "t", "message": "m"})
                assert answer.status_code == status


async def test_from_the_apps_own_code(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        assert await server.hubbub.notify("alice", "t", "m", metadata={"a": 1}) == 1
        assert await server.hubbub.notify(["alice", "bob"], "t", "m", "error") == 1
        assert await server.hubbub.broadcast("t", "m", exclude_users=["alice"]) == 0
        assert await server.hubbub.broadcast("t", "m", exclude_users=["bob"]) == 1
        kinds = [(await alice.receive())["type"] for _ in range(3)]
        assert sorted(kinds) == ["broadcast_notification", "notification", "notification"]


async def test_the_apps_own_code_cannot_send_a_type_that_clients_do_not_know(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        wrong: Any = "nope"
        for work in (server.hubbub.notify("alice", "t", "m", wrong), server.hubbub.broadcast("t", "m", wrong)):
            with pytest.raises(ValueError, match="one of info, success, warning, error, and not 'nope'"):
                await work
        await alice.nothing_more()
