"""Who is it: the ways that a token comes, what is refused and how, and how long a session may live on a token."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import jwt
import pytest
import websockets
from websockets.asyncio.client import connect

from hubbub import issue_token, logs
from tests.lanes import lacks, needs
from tests.support import BOTH_LANES, SECRET, Client, Running, serve, settings_for

pytestmark = BOTH_LANES


def ways(token: str) -> dict[str, dict[str, Any]]:
    """How a handshake may carry a token: options for ``Running.client``."""
    return {
        "header": {"additional_headers": {"Authorization": f"Bearer {token}"}},
        "subprotocol": {"subprotocols": ["hubbub.json", f"bearer.{token}"]},
        "cookie": {"additional_headers": {"Cookie": f"a=1; hubbub_token={token}; b=2"}},
        "query": {"path": f"/ws?x=1&token={token}"},
    }


async def test_each_way_to_bring_a_token(lane: str) -> None:
    async with serve(lane) as server:
        for options in ways(server.token("alice")).values():
            async with server.client(**options) as client:
                answer = await client.receive()
                assert answer["type"] == "auth_success"
                assert answer["user_id"] == "alice"
                assert answer["heartbeat"] == server.hub.settings.heartbeat_interval
                assert answer["token_expires"] == server.hubbub.clock.time() + 3600
                assert client.connection.subprotocol in (None, "hubbub.json"), "a token is never sent back"
        async with server.client() as client:
            answer = await client.ask("auth", token=server.token("bob"))
            assert (answer["type"], answer["user_id"]) == ("auth_success", "bob")


async def test_precedence_of_handshake_tokens(lane: str) -> None:
    async with serve(lane) as server:
        order = ["header", "subprotocol", "cookie", "query"]
        for first, best in enumerate(order):
            chosen: dict[str, Any] = {"additional_headers": {}}
            for name in reversed(order[first:]):
                options = ways(server.token(name))[name]
                chosen["additional_headers"].update(options.pop("additional_headers", {}))
                chosen.update(options)
            async with server.client(**chosen) as client:
                assert (await client.receive())["user_id"] == best


def bad_tokens(server: Running) -> dict[str, str]:
    now = server.hubbub.clock.time()
    foreign = settings_for(secret="another secret, also long enough for HS256")
    claims = {"sub": "alice", "exp": now + 60}
    return {
        "empty claims": jwt.encode({"exp": now + 60}, SECRET, "HS256"),
        "no exp": jwt.encode({"sub": "alice"}, SECRET, "HS256"),
        "nonsense": "nonsense",
        "expired": server.token("alice", ttl=1)[:-1] + "x",
        "foreign": issue_token(foreign, "alice", now=now, ttl=60),
        "none": jwt.encode(claims, "", "none"),
        "other algorithm": jwt.encode(claims, SECRET * 2, "HS512"),
        "not yet": jwt.encode({**claims, "nbf": now + 30}, SECRET, "HS256"),
        "foreign audience": jwt.encode({**claims, "aud": "elsewhere"}, SECRET, "HS256"),
    }


async def test_bad_tokens_are_refused_after_the_accept(lane: str) -> None:
    async with serve(lane) as server:
        old = server.token("alice", ttl=1)
        server.advance(10)
        for why, token in {**bad_tokens(server), "really expired": old}.items():
            async with server.client() as client:
                answer = await client.ask("auth", token=token)
                assert (answer["type"], answer["code"]) == ("error", "authentication_failed"), why
                assert token not in str(answer)
                assert await client.closed() == 4401, why
        for options in ways(old).values():
            async with server.client(**options) as client:
                answer = await client.receive()
                assert (answer["type"], answer["code"]) == ("error", "authentication_failed")
                assert "expired" in answer["message"]
                assert await client.closed() == 4401
        assert not server.hub.users


async def test_nothing_before_auth(lane: str) -> None:
    async with serve(lane) as server:
        for kind, fields in {
            "ping": {},
            "subscribe": {"channel": "news"},
            "join_room": {"room_id": "general"},
            "chat_message": {"message": "hello"},
            "list_rooms": {},
        }.items():
            async with server.client() as client:
                assert await client.refused(kind, **fields) == "authentication_required"
                assert await client.closed() == 4401
        async with server.client() as client:  # a wrong shape tells nothing, and costs nothing yet
            await client.send_raw("{")
            assert (await client.expect("error"))["code"] == "invalid_json"
            assert (await client.ask("auth", token=server.token("alice")))["type"] == "auth_success"


async def test_auth_timeout(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice, server.client() as silent:
        await alice.ask("subscribe", channel="news")
        server.advance(9.9)
        async with server.http() as http:
            assert (await http.get("/health")).json()["active_connections"] == 2
            assert (await http.get("/api/channels/news/presence")).json()["count"] == 1
        await alice.nothing_more()
        server.advance(0.2)
        assert (await silent.receive())["code"] == "authentication_timeout"
        assert await silent.closed() == 4401
        await alice.nothing_more()


async def test_expiry_is_enforced_and_announced(lane: str) -> None:
    async with serve(lane) as server, server.client("alice", grants={"ttl": 100}) as client:
        server.advance(69)
        await client.nothing_more()
        server.advance(2)
        warning = await client.receive()
        assert warning == {"type": "token_expiring", "in": 29}
        server.advance(1)
        await client.nothing_more()  # said once
        server.advance(31)  # exp + the leeway
        assert (await client.receive())["code"] == "authentication_failed"
        assert await client.closed() == 4401


async def test_reauthentication_in_place(lane: str) -> None:
    async with serve(lane) as server, server.client("alice", grants={"ttl": 100}) as client:
        await client.ask("subscribe", channel="news")
        server.advance(75)
        assert (await client.receive())["type"] == "token_expiring"
        answer = await client.ask("auth", token=server.token("alice", ttl=100))
        assert answer["session"] == client.session
        assert answer["token_expires"] == server.hubbub.clock.time() + 100
        server.advance(60)
        await client.nothing_more()
        server.advance(15)
        assert await client.receive() == {"type": "token_expiring", "in": 25}
        # neither another's token nor a bad one ends what a good one began
        assert await client.refused("auth", token=server.token("bob")) == "forbidden"
        assert await client.refused("auth", token="nonsense") == "authentication_failed"
        await server.hubbub.publish("news", 1)
        assert (await client.receive())["data"] == 1
        assert server.hub.sessions_of("alice") == 1
        assert server.hub.sessions_of("bob") == 0
        server.advance(40)
        assert await client.closed() == 4401


async def test_fresh_grants_apply_at_once(lane: str) -> None:
    async with serve(lane) as server, server.client("alice", grants={"subscribe": ["news"]}) as client:
        assert await client.refused("subscribe", channel="secret") == "forbidden"
        await client.ask("auth", token=server.token("alice", subscribe=["secret"]))
        assert (await client.ask("subscribe", channel="secret"))["type"] == "subscribed"
        assert await client.refused("subscribe", channel="news") == "forbidden"


async def test_revocation(lane: str) -> None:
    async with serve(lane) as server, server.http() as http:
        async with (
            server.client("alice", grants={"jti": "one"}) as one,
            server.client("alice", grants={"jti": "two"}) as two,
            server.client("bob") as bob,
        ):
            kept = server.token("alice")
            answer = await http.post("/api/sessions/disconnect", json={"token_id": "one"})
            assert answer.json() == {"disconnected": 1, "complete": True}
            assert (await one.expect("error"))["code"] == "authentication_failed"
            assert await one.closed() == 4401
            await two.nothing_more()
            server.advance(1)
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "alice", "revoke": True})
            assert answer.json() == {"disconnected": 1, "complete": True}
            assert await two.closed() == 4401
            async with server.client(path=f"/ws?token={kept}") as again:
                assert (await again.receive())["code"] == "authentication_failed"
                assert await again.closed() == 4401
            server.advance(1)
            async with server.client("alice"):
                pass  # a token made since then is good
            # without revoke it is only a goodbye
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "bob", "reason": "enough"})
            assert answer.json() == {"disconnected": 1, "complete": True}
            assert await bob.closed() == 1000
            assert bob.connection.close_reason == ("" if lacks(lane, "close reasons") else "enough")
        async with server.client("bob"):
            pass
        assert (await http.post("/api/sessions/disconnect", json={"user_id": "nobody"})).json() == {
            "disconnected": 0,
            "complete": True,
        }
        assert (await http.post("/api/sessions/disconnect", json={})).status_code == 422


async def test_a_long_reason_is_cut_to_what_a_close_frame_holds(lane: str) -> None:
    async with serve(lane) as server, server.http() as http, server.client("bob") as bob:
        reason = "€" * 100  # 300 bytes; a close frame has room for 123
        await http.post("/api/sessions/disconnect", json={"user_id": "bob", "reason": reason})
        assert await bob.closed() == 1000
        needs(lane, "close reasons")
        assert reason.startswith(bob.connection.close_reason or "no reason came")


async def test_a_session_goes_on_and_replaces_its_ghost(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as ghost, server.client("bob") as bob:
        async with server.client("alice", session=ghost.session) as again:
            assert again.session == ghost.session
            assert await ghost.closed() == 4409
            assert server.hub.sessions_of("alice") == 1
            # another user's session id opens nothing and replaces nobody
            async with server.client("alice", session=bob.session):
                await bob.nothing_more()
            # nor does something that is no session id
            async with server.client("alice", session="short") as other:
                assert other.session != "short"
            await again.nothing_more()
        token = server.token("bob")
        async with server.client(path=f"/ws?token={token}&session={bob.session}") as again:
            assert (await again.receive())["session"] == bob.session
            assert await bob.closed() == 4409


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:{port}", True),
        ("https://app.example", True),
        ("https://app.example:443", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:1", False),
        (None, True),
    ],
)
async def test_origin(lane: str, origin: str | None, allowed: bool) -> None:
    async with serve(lane, origins=("https://app.example",)) as server:
        wanted: dict[str, Any] = {} if origin is None else {"origin": origin.format(port=server.port)}
        for path in ("/ws", "/ws/chat/general", "/ws/echo"):
            if allowed:
                async with server.client(path=path, **wanted):
                    continue
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with server.client(path=path, **wanted):
                    pass
            assert refused.value.response.status_code == 403


async def test_tokens_never_reach_the_log(
    lane: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    quiet = logging.getLogger("tests.client")
    quiet.propagate = False
    logs.configure("debug", pretty=False)
    async with serve(lane) as server:
        server.hub.clock.time()
        good, bad = server.token("alice"), server.token("alice")[:-4] + "AAAA"
        seen: list[Any] = []
        for token in (good, bad):
            for options in ways(token).values():
                path = options.pop("path", "/ws")
                for place in (path, path.replace("/ws", "/ws/chat/nowhere"), path.replace("/ws", "/missing")):
                    try:
                        async with connect(server.ws + place, proxy=None, logger=quiet, **options) as connection:
                            client = Client(connection)
                            with suppress(websockets.ConnectionClosed):
                                await client.send("auth", token=token, wrong={"token": token})
                                await client.send("auth", token=[token])
                                await client.receive()
                            seen += client.seen
                    except websockets.InvalidStatus as refused:
                        seen.append(refused.response.body)
            async with server.http(bearer=token) as http:
                for method, place in [
                    ("GET", "/health"),
                    ("GET", "/missing"),
                    ("POST", "/api/notifications/send"),
                    ("GET", "/api/rooms"),
                    ("GET", "/metrics"),
                ]:
                    answer = await http.request(method, place, params={"token": token})
                    seen.append(answer.text)
    out, err = capsys.readouterr()
    assert "token=[redacted]" in err, "the log was looked at"
    for token in (good, bad):
        assert token not in out + err
        assert token.split(".")[2] not in out + err
        assert token not in str(seen)
