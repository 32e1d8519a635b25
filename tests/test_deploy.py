"""The files in deploy/: real proxies before real nodes, a real Valkey with the configuration and the rights given there.

What needs Docker or Kubernetes is only read: ``test_manifests.py``.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import websockets
from websockets.asyncio.client import connect

from hubbub.publisher import AsyncPublisher
from tests.engine_support import HOST, Engine, Shards, running_node, running_nodes, until
from tests.proxies import HAPROXY, NGINX, HAProxy, Nginx, Proxy, proxy, sessions
from tests.support import API_KEY, TLS, Client, HandClock, Running, running, settings_for
from tests.support import until as until_true

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx: run scripts/ensure-nginx")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy (apt-get install haproxy)")


# -- nginx ---------------------------------------------------------------------------------------------------------


@needs_nginx
@pytest.mark.anyio
@pytest.mark.slow
async def test_nginx_before_two_nodes(valkey_settings: dict[str, str], tmp_path: Path) -> None:
    """Connections are spread, people on both nodes talk, a node that dies is left and one that comes back is used."""
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(url, tmp_path, valkey_prefix=prefix, metrics="open"))
        front = stack.enter_context(proxy(Nginx, tmp_path, [node.port for node in nodes]))
        clients = [await stack.enter_async_context(front.client(nodes[0], f"user-{number}")) for number in range(10)]
        assert await sessions(nodes) == [5, 5]
        for client in clients:
            await client.ask("subscribe", channel="news")
        await clients[0].ask("publish", channel="news", data="hello")
        for client in clients[1:]:
            assert (await client.expect("publication"))["data"] == "hello"
        await _what_http_shows(front)

        await nodes[1].kill()
        ended = await asyncio.gather(*(_ended(client) for client in clients))
        assert Counter(ended) == {True: 5, False: 5}
        left = next(client for client, gone in zip(clients, ended, strict=True) if not gone)
        await left.ask("publish", channel="news", data="missed")
        for number in range(4):
            async with front.client(nodes[0], f"back-{number}") as back:  # no attempt fails
                answer = await back.ask("subscribe", channel="news", since={"epoch": "", "offset": 0})
                assert answer["type"] == "subscribed"
        assert (await sessions(nodes[:1]))[0] >= 5


@needs_nginx
@pytest.mark.anyio
@pytest.mark.slow
async def test_nginx_is_not_left_without_nodes_by_a_rolling_restart(
    valkey_settings: dict[str, str], tmp_path: Path
) -> None:
    """Nobody is refused while one of two is away, and who comes afterwards goes to both: also after each was away once.

    nginx counts a node's failures, and forgets them when a request to it ends well; a WebSocket does not end.
    """
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(url, tmp_path, valkey_prefix=prefix, metrics="open"))
        front = stack.enter_context(proxy(Nginx, tmp_path, [node.port for node in nodes]))
        for away, left in (nodes, nodes[::-1]):
            await away.kill()
            for number in range(6):
                await stack.enter_async_context(front.client(left, f"meanwhile-{number}"))
            await away.start()
            await away.until_ready()
            before = await sessions((away, left))
            for number in range(12):
                await stack.enter_async_context(front.client(left, f"after-{number}"))
            after = await sessions((away, left))
            assert after[0] == min(12, (sum(before) + 12) // 2), (
                before,
                after,
            )  # least connections: it is the emptier one


async def _ended(client: Client) -> bool:
    """Whether the connection is gone; a ping tells."""
    try:
        await client.ask("ping")
    except websockets.ConnectionClosed:
        return True
    return False


async def _what_http_shows(front: Proxy) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    options: dict[str, Any] = {"trust_env": False, "verify": TLS, "headers": headers}
    async with httpx2.AsyncClient(base_url=f"http://{HOST}:{front.port}", **options) as http:
        health = (await http.get("/health")).json()
        assert (health["status"], health["engine"], health["nodes"]) == ("healthy", "ok", 2)
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.get("/health/ready")).status_code == 404
        assert (await http.post("/api/publish", json={"channel": "other", "data": 1})).status_code == 200
        sent = await http.post("/api/rooms/general/files?name=x.bin&as_user=alice", content=b"x" * (3 << 20))
        assert sent.status_code == 201, sent.text


@needs_nginx
def test_nginx_starts_while_nodes_are_down(tmp_path: Path) -> None:
    """Its own addresses are nobody's here: names that nobody knows would end it, so one dead node would end all."""
    assert Nginx(tmp_path, []).check() == ""


@needs_nginx
@pytest.mark.anyio
@pytest.mark.slow
async def test_nginx_finds_a_node_that_was_down_when_it_started(
    valkey_settings: dict[str, str], tmp_path: Path
) -> None:
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(url, tmp_path, valkey_prefix=prefix, metrics="open"))
        await nodes[0].kill()
        front = stack.enter_context(proxy(Nginx, tmp_path, [node.port for node in nodes]))
        for number in range(4):
            await stack.enter_async_context(front.client(nodes[1], f"user-{number}"))
        await nodes[0].start()
        await nodes[0].until_ready()
        for number in range(4):
            await stack.enter_async_context(front.client(nodes[1], f"more-{number}"))
        assert await sessions(nodes) == [4, 4]


SECRETS = re.compile(r"eyJ|signature=|expires=|token=")


@needs_nginx
@pytest.mark.anyio
async def test_nginx_writes_no_token_into_its_logs(valkey_settings: dict[str, str], tmp_path: Path) -> None:
    """Neither of what goes well, nor of what it refuses, nor of what it cannot pass on."""
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        (node,) = await stack.enter_async_context(running_nodes(url, tmp_path, "a", valkey_prefix=prefix))
        front = stack.enter_context(proxy(Nginx, tmp_path, [node.port]))
        base, token = f"{HOST}:{front.port}", node.token("alice")
        referer = {"referer": f"http://{base}/?token={token}"}
        async with connect(f"ws://{base}/ws?token={token}", proxy=None, additional_headers=referer) as connection:
            assert (await Client(connection).receive())["type"] == "auth_success"
        async with httpx2.AsyncClient(base_url=f"http://{base}", trust_env=False, verify=TLS) as http:
            await http.get(f"/api/files/abc?expires=1&signature={token}", headers=referer)
            await http.post(f"/api/rooms/general/files?name=x&token={token}", content=b"x" * (11 << 20))
            async with asyncio.timeout(20):  # until the rate of handshakes is exceeded
                while (await http.get(f"/ws?token={token}")).status_code != 429:
                    pass
            await node.kill()
            assert (await http.get(f"/?token={token}")).status_code == 502
            assert (await http.get(f"/api/rooms/general/files?token={token}")).status_code == 502
    written = front.written
    for name, text in written.items():
        assert not SECRETS.search(text), (name, SECRETS.search(text))
    lines = written["access.log"].splitlines()
    assert any('"GET /ws HTTP/1.1" 101 ' in line and f"node={HOST}:{node.port}" in line for line in lines)
    assert any('"GET /api/files/abc HTTP/1.1" 4' in line for line in lines)
    assert any('" 413 ' in line for line in lines)
    assert any('"GET / HTTP/1.1" 502 ' in line and "node_status=502" in line for line in lines)


@needs_nginx
@pytest.mark.anyio
async def test_nginx_tells_who_connects(valkey_settings: dict[str, str], tmp_path: Path) -> None:
    """The limit per address counts clients, not nginx; what a client says of itself counts for nothing."""
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    options = {"valkey_prefix": prefix, "max_connections_per_address": 1}
    async with AsyncExitStack() as stack:
        (node,) = await stack.enter_async_context(running_nodes(url, tmp_path, "a", **options))
        front = stack.enter_context(proxy(Nginx, tmp_path, [node.port]))
        forged = {"X-Forwarded-For": "203.0.113.9"}
        await stack.enter_async_context(front.client(node, "alice", local_addr=("127.0.0.2", 0)))
        await stack.enter_async_context(front.client(node, "bob", local_addr=("127.0.0.3", 0)))
        url = f"ws://{HOST}:{front.port}/ws"
        async with connect(url, proxy=None, local_addr=("127.0.0.2", 0), additional_headers=forged) as connection:
            eve = Client(connection)
            assert (await eve.receive())["code"] == "too_many"
            assert await eve.closed() == 4429


# -- HAProxy -------------------------------------------------------------------------------------------------------


@needs_haproxy
@pytest.mark.anyio
@pytest.mark.slow
async def test_haproxy_before_two_nodes(valkey_settings: dict[str, str], tmp_path: Path) -> None:
    """Connections are spread, nobody is refused while one node after the other is away, and no token is logged."""
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(url, tmp_path, valkey_prefix=prefix, metrics="open"))
        front = stack.enter_context(proxy(HAProxy, tmp_path, [node.port for node in nodes]))
        for number in range(10):
            await stack.enter_async_context(front.client(nodes[0], f"user-{number}"))
        assert await sessions(nodes) == [5, 5]
        await _what_http_shows(front)
        for away, left in (nodes, nodes[::-1]):
            await away.kill()
            for number in range(6):
                await stack.enter_async_context(front.client(left, f"meanwhile-{number}"))
            await away.start()
            await away.until_ready()
            async with asyncio.timeout(20):  # until it has been asked
                while not (await sessions((away,)))[0]:
                    await stack.enter_async_context(front.client(left, "again"))
                    await asyncio.sleep(0.1)
        base, token = f"{HOST}:{front.port}", nodes[0].token("alice")
        async with connect(f"ws://{base}/ws?token={token}", proxy=None) as connection:
            assert (await Client(connection).receive())["type"] == "auth_success"
        async with httpx2.AsyncClient(base_url=f"http://{base}", trust_env=False, verify=TLS) as http:
            await http.get(f"/api/files/abc?expires=1&signature={token}")
            async with asyncio.timeout(20):  # until the rate of handshakes is exceeded
                while (await http.get(f"/ws?token={token}")).status_code != 429:
                    pass
            for node in nodes:
                await node.kill()
            assert (await http.get(f"/?token={token}")).status_code == 503
    for name, text in front.written.items():
        assert not SECRETS.search(text), (name, SECRETS.search(text))
    assert '"GET /ws HTTP/1.1" 101 ' in front.written["log"]


@needs_haproxy
@pytest.mark.anyio
@pytest.mark.slow
async def test_haproxy_sends_nobody_to_a_node_that_is_not_ready(
    valkey_settings: dict[str, str], own_valkey: Engine, tmp_path: Path
) -> None:
    """Of two nodes one has lost its engine: it lives, and hears nothing. Who is there stays."""
    url, prefix = valkey_settings["valkey_url"], valkey_settings["valkey_prefix"]
    async with AsyncExitStack() as stack:
        well = await stack.enter_async_context(
            running_node(url, tmp_path / "a", "a", valkey_prefix=prefix, metrics="open")
        )
        deaf = await stack.enter_async_context(running_node(own_valkey.url, tmp_path / "b", "b", metrics="open"))
        front = stack.enter_context(proxy(HAProxy, tmp_path, [well.port, deaf.port]))
        for number in range(4):
            await stack.enter_async_context(front.client(well, f"user-{number}"))
        assert await sessions((well, deaf)) == [2, 2]
        await asyncio.to_thread(own_valkey.kill)
        await deaf.until_ready(False)
        down = re.compile(rf"node-{deaf.port} is DOWN, reason: Layer7 wrong status, code: 503")
        await asyncio.to_thread(
            until, lambda: bool(down.search(front.written["log"])), "it did not leave out the deaf node"
        )
        for number in range(4):
            await stack.enter_async_context(front.client(well, f"new-{number}"))
        assert await sessions((well, deaf)) == [6, 2]


# -- Valkey --------------------------------------------------------------------------------------------------------

PASSWORD = "a-password"
USERS = {
    line.split()[1]: line.replace("@PASSWORD@", PASSWORD).split()[2:]
    for line in (DEPLOY / "valkey-users.acl").read_text().splitlines()
}


def admit(engine: Engine) -> None:
    """Make the users of deploy/valkey-users.acl, but for the one that we are."""
    for name in USERS.keys() - {"default"}:
        engine.call("ACL", "SETUSER", name, *USERS[name])


def denials(engine: Engine) -> list[str]:
    """What the engine denied its users."""
    found = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in engine.call("ACL", "LOG")]
    return [f"{bytes(each[b'reason']).decode()} {bytes(each[b'object']).decode()}" for each in found]


@pytest.mark.anyio
async def test_the_rights_of_the_acl_suffice_and_are_few() -> None:
    with Engine() as engine:
        admit(engine)
        await everything(f"valkey://hubbub:{PASSWORD}@{HOST}:{engine.port}/0")
        assert denials(engine) == []
        for words in (
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("GET", "elsewhere"),
            ("DEBUG", "SLEEP", 0),
        ):
            engine.call("ACL", "DRYRUN", "hubbub", "GET", "hubbub:x")
            assert engine.call("ACL", "DRYRUN", "hubbub", *words) != b"OK", words


def test_whoever_is_there_may_ask_whether_it_lives_and_nothing_else() -> None:
    """The probes of Compose and Kubernetes have no password: theirs would stand in a command line."""
    assert USERS["default"] == ["off"]
    with Engine() as engine:
        admit(engine)
        assert engine.call("ACL", "DRYRUN", "probe", "PING") == b"OK"
        assert bytes(engine.call("ACL", "GETUSER", "probe")[5]) == b"-@all +ping"
        for words in (("GET", "hubbub:x"), ("PUBLISH", "hubbub:x", 1), ("SUBSCRIBE", "hubbub:x"), ("INFO",)):
            assert engine.call("ACL", "DRYRUN", "probe", *words) != b"OK", words
        engine.user, engine.password = "probe", "none"
        assert engine.call("PING") == b"PONG"


@pytest.mark.anyio
async def test_the_rights_of_the_acl_suffice_in_a_cluster() -> None:
    with Shards() as shards:
        for engine in shards.engines:
            admit(engine)
        await everything(shards.url.replace("://", f"://hubbub:{PASSWORD}@"))
        assert [denials(engine) for engine in shards.engines] == [[], [], []]


async def everything(url: str) -> None:
    """What two nodes and a publisher ask of an engine."""
    settings = settings_for(valkey_url=url, rate_limit=0, user_rate_limit=1, user_rate_burst=100, heartbeat_interval=0)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(settings, clock=HandClock())) for _ in range(2)]
        async with asyncio.timeout(30):
            while not all(node.hub.cluster.others for node in nodes):
                await asyncio.sleep(0.01)
        async with nodes[0].client("alice") as alice, nodes[1].client("bob") as bob:
            await people_talk(nodes, alice, bob)
        async with AsyncPublisher(url) as outside:
            await outside.publish("news", 2)
            await outside.notify("alice", "t", "m")
            await outside.disconnect("carol", revoke=True)
            assert not await outside.online("carol")
        async with nodes[1].client("bob") as bob:
            answer = await bob.ask("subscribe", channel="news", since={"epoch": "", "offset": 0})
            assert answer["type"] == "subscribed"
            while (await bob.ask("ping"))["type"] == "pong":  # until its rate, which the nodes share
                pass
            await until_true(lambda: nodes[1].hub.quotas.bought > 0, "the engine did not count")
    assert not any(node.hub.quotas.failed for node in nodes)


async def people_talk(nodes: list[Running], alice: Client, bob: Client) -> None:
    for client in (alice, bob):
        assert (await client.ask("subscribe", channel="news", presence=True))["type"] == "subscribed"
        assert (await client.ask("join_room", room_id="general"))["type"] == "room_joined"
    await alice.ask("publish", channel="news", data=1, idempotency_key=secrets.token_hex(8))
    await bob.expect("publication")
    await bob.ask("chat_message", room_id="general", message="hello")
    await alice.expect("message")
    assert (await alice.ask("history", channel="news"))["type"] == "history"
    assert (await alice.ask("presence", channel="news"))["type"] == "presence"
    async with nodes[0].http() as http:
        sent = {"user_id": "bob", "title": "t", "message": "m"}
        assert (await http.post("/api/notifications/send", json=sent)).json()["delivered"] == 1
        await bob.expect("notification")
        for body in ({"user_id": "bob"}, {"user_id": "carol", "revoke": True}):
            assert (await http.post("/api/sessions/disconnect", json=body)).json()["complete"]
    await bob.closed()


def test_the_configuration_of_valkey_is_taken() -> None:
    with Engine(include=str(DEPLOY / "valkey.conf")) as engine:
        for name, value in (("maxmemory-policy", b"noeviction"), ("appendonly", b"yes"), ("maxmemory", b"1073741824")):
            assert engine.call("CONFIG", "GET", name) == [name.encode(), value]
        limits = bytes(engine.call("CONFIG", "GET", "client-output-buffer-limit")[1]).decode()
        assert "pubsub 67108864 16777216 30" in limits
