"""Every example runs: in this process with what its head says, on two nodes of one engine, and once as its README says, as
a process of its own."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hubbub import Hubbub
from hubbub.testing import hub_client, running
from tests.support import TLS, settings_for, until
from tests.support import running as serving
from tests.workers_support import workers

ROOT = Path(__file__).parent.parent
NO_APPS = {"guide_client", "publish_from_elsewhere"}
EXAMPLES = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - NO_APPS)
KEY = "a-key-of-my-own-1234"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Imports an example anew: a hub starts with a clean slate."""
    monkeypatch.setenv("HUBBUB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HUBBUB_API_KEYS", KEY)
    loaded: list[str] = []

    def load(name: str) -> Any:
        full = f"examples.{name}"
        sys.modules.pop(full, None)
        loaded.append(full)
        return importlib.import_module(full)

    yield load
    for full in loaded:
        sys.modules.pop(full, None)


def http(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test", verify=TLS)


# -- what the heads of the files say ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_echo(load: Any) -> None:
    app = load("echo").app
    async with hub_client(app) as nobody, http(app) as client:
        assert (await nobody.ask("echo", text="hello"))["data"] == "Message received: hello"
        assert "WebSocket test" in (await client.get("/")).text


@pytest.mark.anyio
async def test_typed_messages(load: Any) -> None:
    async with hub_client(load("typed_messages").app, user="alice") as alice:
        assert (await alice.ask("ping"))["type"] == "pong"
        assert await alice.ask("chat", text="hi") == {"type": "chat.sent", "ref": alice.seen[-1]["ref"], "length": 2}
        assert (await alice.ask("remind", title="Tea", minutes=3))["data"] == "Tea in 3 minutes"
        assert await alice.refused("chat", text="spam") == "spam"
        assert await alice.refused("chat", text=1) == "invalid_message"
        assert await alice.refused("remind", title="Tea", minutes=0) == "invalid_message"
        assert await alice.refused("dance") == "unknown_type"
        await alice.send_raw("{")
        assert (await alice.expect("error"))["code"] == "invalid_json"


@pytest.mark.anyio
async def test_connection_manager(load: Any) -> None:
    app = load("connection_manager").app
    async with hub_client(app, user="alice") as alice:
        async with hub_client(app, user="bob") as bob:
            await alice.send("say", text="hi")
            for client in (alice, bob):
                assert (await client.expect("publication"))["data"] == "User alice: hi"
            await alice.send("whisper", to="bob", text="psst")
            assert await bob.expect("whisper") == {"type": "whisper", "from": "alice", "text": "psst"}
            assert await alice.refused("whisper", to="carol", text="psst") == "not_here"
        assert (await alice.expect("publication"))["data"] == "User bob left the chat"


@pytest.mark.anyio
async def test_rooms_heartbeat(load: Any) -> None:
    app = load("rooms_heartbeat").app
    async with hub_client(app, user="alice") as alice, hub_client(app, user="bob") as bob:
        assert (await alice.ask("subscribe", channel="rooms:red", presence=True))["count"] == 1
        await bob.ask("subscribe", channel="rooms:red")
        await bob.send("publish", channel="rooms:red", data={"text": "hi"})
        assert (await alice.expect("publication"))["data"] == {"text": "hi", "by": "bob"}
        assert await alice.refused("subscribe", channel="rooms:closed") == "forbidden"
        assert await alice.refused("publish", channel="rooms:red", data={"text": 1}) == "invalid_message"
        assert (await alice.ask("unsubscribe", channel="rooms:red"))["type"] == "unsubscribed"
        assert (await alice.ask("heartbeat"))["type"] == "heartbeat_ack"


@pytest.mark.anyio
async def test_token_auth(load: Any) -> None:
    app = load("token_auth").app
    async with running(app), http(app) as client:
        assert (await client.post("/login", params={"name": "alice", "password": "wrong"})).status_code == 401
        answer = await client.post("/login", params={"name": "alice", "password": "correct horse"})
        async with hub_client(app, path=f"/ws?token={answer.json()['token']}") as alice:
            assert (await alice.expect("auth_success"))["user_id"] == "alice"
            assert (await alice.ask("whoami"))["user_id"] == "alice"
        async with hub_client(app, path="/ws?token=wrong") as nobody:
            assert await nobody.closed() == 4401


@pytest.mark.anyio
async def test_first_message_auth(load: Any) -> None:
    app = load("first_message_auth").app
    hub: Hubbub = app.state.hubbub
    async with hub_client(app) as alice:
        assert "T" in (await alice.ask("time"))["data"]
        await alice.send("auth", token=hub.token("alice"))
        assert (await alice.expect("auth_success"))["user_id"] == "alice"
        assert (await alice.expect("welcome"))["user_id"] == "alice"
        assert (await alice.ask("secret"))["data"] == "the answer is 42, alice"
    async with hub_client(app) as nobody:
        await nobody.send("secret")
        assert (await nobody.expect("error"))["code"] == "authentication_required"
        assert await nobody.closed() == 4401


@pytest.mark.anyio
async def test_chat(load: Any) -> None:
    app = load("chat").app
    async with hub_client(app, user="alice", room="lobby") as alice, http(app) as client:
        await alice.expect("room_joined")
        await alice.send("chat_message", message="hi")
        assert (await alice.expect("message"))["data"]["message"] == "hi"
        assert (await client.get("/rooms")).json() == ["general", "kitchen", "lobby"]
        assert (await client.post("/rooms/lobby/announce", params={"text": "Dinner"})).json() == 2
        dinner = (await alice.expect("message"))["data"]
        assert (dinner["id"], dinner["user_id"], dinner["message"]) == (2, "house", "Dinner")
        assert (await client.post("/rooms/cellar/announce", params={"text": "x"})).status_code == 404


@pytest.mark.anyio
async def test_team_chat(load: Any) -> None:
    app = load("team_chat").app
    failed = {"build": 7, "commit": "c0ffee", "passed": False, "author": "alice"}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        hub_client(app, user="alice") as alice,
        hub_client(app, user="bob") as bob,
        hub_client(app, user="carol") as carol,
        http(app) as client,
    ):
        project = {"key": "apollo", "owner": "alice", "people": ["bob"]}
        assert (await client.post("/projects", json=project)).json() == "project-apollo"
        assert (await client.post("/projects", json=project)).status_code == 409
        assert (await alice.ask("get_room", room_id="project-apollo"))["room"]["me"]["role"] == "owner"
        assert (await bob.expect("room_added"))["room"]["me"]["role"] == "member"
        assert await carol.refused("join_room", room_id="project-apollo") == "not_found"
        assert await carol.refused("chat_message", room_id="project-apollo", message="hi") == "not_joined"
        await bob.ask("join_room", room_id="project-apollo")

        assert (await client.post("/hooks/build/apollo", json=failed)).status_code == 401
        wrong = {"Authorization": "Bearer another-key-of-somebody"}
        assert (await client.post("/hooks/build/apollo", json=failed, headers=wrong)).status_code == 403
        first = await client.post("/hooks/build/apollo", json=failed, headers=headers)
        again = await client.post("/hooks/build/apollo", json=failed, headers=headers)
        assert first.json() == again.json() == 1
        assert (await client.post("/hooks/build/gemini", json=failed, headers=headers)).status_code == 404
        said = (await bob.expect("message"))["data"]
        assert (said["user_id"], said["mentions"]) == ("build-bot", ["alice"])
        await bob.nothing()
        assert (await alice.expect("notification"))["data"]["metadata"]["room_id"] == "project-apollo"

        (room,) = (await client.get("/people/alice/rooms")).json()
        assert room == {"room_id": "project-apollo", "name": "Apollo", "unread": 1, "mentions": 1}
        assert (await client.get("/people/carol/rooms")).json() == []
        news = await carol.ask("join_room", room_id="news")
        assert news["room"]["message_count"] == 1
        assert await carol.refused("chat_message", room_id="news", message="me too") == "forbidden"


@pytest.mark.anyio
async def test_notifications(load: Any) -> None:
    app = load("notifications").app
    headers = {"Authorization": f"Bearer {KEY}"}
    async with hub_client(app, user="alice") as phone, hub_client(app, user="alice") as laptop, http(app) as client:
        params = {"user_id": "alice", "title": "Hello", "message": "World"}
        assert (await client.post("/api/notifications/send", params=params)).status_code == 401
        sent = await client.post("/api/notifications/send", params=params, headers=headers)
        assert sent.json()["delivered"] == 2
        assert (await client.post("/orders/7/pay", params={"customer": "alice"})).json() == 2
        await client.post("/orders/7/ship", params={"customer": "alice"})
        assert (await client.post("/close")).json() == 2
        for device in (phone, laptop):
            titles = [(await device.expect("notification"))["data"]["title"] for _ in range(3)]
            assert titles == ["Hello", "Paid", "Shipped"]
            assert (await device.expect("broadcast_notification"))["data"]["title"] == "Closing"


@pytest.mark.anyio
async def test_connection_limits(load: Any) -> None:
    app = load("connection_limits").app
    async with hub_client(app, user="alice"), hub_client(app, user="alice"), http(app) as client:
        token = app.state.hubbub.token("alice")
        async with hub_client(app) as third:
            await third.send("auth", token=token)
            assert (await third.expect("error"))["code"] == "too_many"
            assert await third.closed() == 4429
        assert (await client.get("/limits")).json() == {"connections": 2, "of": 4}


@pytest.mark.anyio
async def test_rate_limiting(load: Any) -> None:
    async with hub_client(load("rate_limiting").app, user="alice") as alice:
        assert (await alice.ask("report"))["data"] == "all is well"
        assert await alice.refused("report") == "rate_limited"
        for _ in range(8):
            await alice.ask("ping")
        assert await alice.refused("ping") == "rate_limited"


@pytest.mark.anyio
async def test_shop(load: Any) -> None:
    shop = load("shop")
    app = shop.app
    async with hub_client(app, user="alice") as alice, hub_client(app, user="bob") as bob, http(app) as client:
        await alice.send("order.place", what="tea", count=2, ref="1")
        request = await alice.expect("request", method="confirm")
        assert request["data"] == {"text": "2 tea for 6?"}
        assert shop.pool.opened == 1
        await alice.send("response", id=request["id"], data=True)
        assert await alice.expect("order.placed") == {"type": "order.placed", "ref": "1", "order_id": 1, "total": 6}
        assert shop.pool.opened == 0
        assert await alice.refused("order.place", what="gold") == "sold_out"
        assert await alice.refused("order.place", what="tea", count=0) == "invalid_message"
        assert (await alice.ask("subscribe", channel="orders:1"))["state"]["status"] == "placed"
        assert await bob.refused("subscribe", channel="orders:1") == "forbidden"
        assert await bob.refused("subscribe", channel="orders:2") == "not_found"
        assert (await client.post("/orders/1/ship")).json() == {"offset": 1, "devices": 1}
        assert (await alice.expect("publication"))["data"] == {"status": "shipped"}
        assert (await alice.expect("notification"))["data"]["title"] == "Shipped"


# -- on two nodes: loaded twice, an example has its variables twice, as two workers have them -------------------------


@pytest.fixture
def twice(load: Any, monkeypatch: pytest.MonkeyPatch, valkey_settings: dict[str, str]) -> Any:
    """Loads an example for two nodes, which share an engine and a database file as workers do."""
    for name, value in {**valkey_settings, "store_shared": "true"}.items():
        monkeypatch.setenv(f"HUBBUB_{name.upper()}", value)
    return lambda name: (load(name).app, load(name).app)


@asynccontextmanager
async def both(apps: tuple[FastAPI, FastAPI]) -> AsyncIterator[tuple[httpx2.AsyncClient, httpx2.AsyncClient]]:
    """Starts both, side by side; an HTTP client for each."""
    one, two = apps
    async with asyncio.TaskGroup() as starting:
        contexts = [running(app) for app in apps]
        for context in contexts:
            starting.create_task(context.__aenter__())
    try:
        await until(lambda: all(len(app.state.hubbub.hub.cluster.others) == 1 for app in apps))
        async with http(one) as first, http(two) as second:
            yield first, second
    finally:
        for context in contexts:
            await context.__aexit__(None, None, None)


@pytest.mark.anyio
async def test_connection_manager_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("connection_manager")
    async with both(apps), hub_client(one, user="alice") as alice, hub_client(two, user="bob") as b2:
        async with hub_client(one, user="bob") as b1:
            await b1.send("say", text="hi")
            for client in (alice, b1, b2):
                assert (await client.expect("publication"))["data"] == "User bob: hi"
            await alice.ask("whisper", to="bob", text="psst")
            for client in (b1, b2):
                assert (await client.expect("whisper"))["text"] == "psst"
            await b2.ask("whisper", to="alice", text="what?")
            assert (await alice.expect("whisper"))["from"] == "bob"
            assert await b2.refused("whisper", to="carol", text="psst") == "not_here"
        await until(lambda: not one.state.hubbub.sessions("bob"))
        assert await one.state.hubbub.online(["bob"]) == {"bob"}  # answered after what the app asks when one leaves
        await alice.ask("say", text="he is still here")
        assert (await alice.expect("publication"))["data"] == "User alice: he is still here"
        await alice.ask("whisper", to="bob", text="are you?")
        assert (await b2.expect("whisper"))["text"] == "are you?"
        await b2.close()
        assert (await alice.expect("publication"))["data"] == "User bob left the chat"


@pytest.mark.anyio
async def test_shop_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("shop")
    async with (
        both(apps) as (_, http2),
        hub_client(one, user="alice") as a1,
        hub_client(two, user="alice") as a2,
        hub_client(two, user="bob") as bob,
    ):
        for number, client in enumerate((a1, bob), 1):
            await client.send("order.place", what="tea")
            await client.send("response", id=(await client.expect("request"))["id"], data=True)
            assert (await client.expect("order.placed"))["order_id"] == number
        for client in (a1, a2):
            assert (await client.ask("subscribe", channel="orders:1"))["state"]["status"] == "placed"
        assert await bob.refused("subscribe", channel="orders:1") == "forbidden"
        assert (await http2.post("/orders/1/ship")).json() == {"offset": 1, "devices": 2}
        for client in (a1, a2):
            assert (await client.expect("publication"))["data"] == {"status": "shipped"}
            assert (await client.expect("notification"))["data"]["title"] == "Shipped"
        assert (await a1.ask("subscribe", channel="orders:1"))["state"]["status"] == "shipped"


@pytest.mark.anyio
async def test_token_auth_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("token_auth")
    async with both(apps) as (http1, _):
        answer = await http1.post("/login", params={"name": "alice", "password": "correct horse"})
        for app in (one, two):
            async with hub_client(app, path=f"/ws?token={answer.json()['token']}") as alice:
                assert (await alice.expect("auth_success"))["user_id"] == "alice"


@pytest.mark.anyio
async def test_rooms_heartbeat_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("rooms_heartbeat")
    async with both(apps), hub_client(one, user="alice") as alice, hub_client(two, user="bob") as bob:
        await alice.ask("subscribe", channel="rooms:red", presence=True)
        assert (await bob.ask("subscribe", channel="rooms:red", presence=True))["count"] == 2
        while "bob" not in (await alice.expect("presence_changed"))["joined"]:
            pass  # she herself
        await bob.send("publish", channel="rooms:red", data={"text": "hi"})
        assert (await alice.expect("publication"))["data"] == {"text": "hi", "by": "bob"}


@pytest.mark.anyio
async def test_chat_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("chat")
    async with both(apps) as (http1, http2), hub_client(one, user="alice", room="lobby") as alice:
        await alice.expect("room_joined")
        async with hub_client(two, user="bob", room="lobby") as bob:
            assert {user["user_id"] for user in (await bob.expect("room_joined"))["users"]} == {"alice", "bob"}
            assert (await alice.expect("user_joined", user_id="bob"))["room_id"] == "lobby"
            await bob.send("chat_message", message="hi")
            assert (await alice.expect("message"))["data"]["message"] == "hi"
            assert (
                (await http1.get("/rooms")).json()
                == (await http2.get("/rooms")).json()
                == ["general", "kitchen", "lobby"]
            )
            assert (await http2.post("/rooms/lobby/announce", params={"text": "Dinner"})).json() == 2
            assert (await bob.expect("message"))["data"]["message"] == "hi"
            for client in (alice, bob):
                assert (await client.expect("message"))["data"]["message"] == "Dinner"


@pytest.mark.anyio
async def test_team_chat_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("team_chat")
    failed = {"build": 7, "commit": "c0ffee", "passed": False, "author": "alice"}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        both(apps) as (http1, http2),
        hub_client(one, user="alice") as alice,
        hub_client(two, user="bob") as bob,
    ):
        project = {"key": "apollo", "owner": "alice", "people": ["bob"]}
        assert (await http1.post("/projects", json=project)).status_code == 201
        assert (await http2.post("/projects", json=project)).status_code == 409
        assert (await bob.expect("room_added"))["room"]["me"]["role"] == "member"
        await bob.ask("join_room", room_id="project-apollo")
        for client in (http1, http2):  # a webhook that is delivered twice
            assert (await client.post("/hooks/build/apollo", json=failed, headers=headers)).json() == 1
        assert (await bob.expect("message"))["data"]["mentions"] == ["alice"]
        await bob.nothing()
        assert (await alice.expect("notification"))["data"]["metadata"]["room_id"] == "project-apollo"
        (room,) = (await http2.get("/people/alice/rooms")).json()
        assert (room["unread"], room["mentions"]) == (1, 1)


@pytest.mark.anyio
async def test_notifications_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("notifications")
    async with (
        both(apps) as (http1, http2),
        hub_client(one, user="alice") as phone,
        hub_client(two, user="alice") as laptop,
    ):
        assert (await http1.post("/orders/7/pay", params={"customer": "alice"})).json() == 2
        assert (await http2.post("/orders/7/ship", params={"customer": "alice"})).json() == {"status": "shipped"}
        assert (await http2.post("/close")).json() == 2
        for device in (phone, laptop):
            titles = [(await device.expect("notification"))["data"]["title"] for _ in range(2)]
            assert titles == ["Paid", "Shipped"]
            assert (await device.expect("broadcast_notification"))["data"]["title"] == "Closing"


@pytest.mark.anyio
async def test_connection_limits_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("connection_limits")
    async with both(apps) as (http1, http2), hub_client(one, user="alice"), hub_client(two, user="alice"):
        await until(lambda: not any(app.state.hubbub.hub.cluster.devices.asking for app in apps))
        for app in apps:
            for session in app.state.hubbub.hub.sessions:
                session.entered -= 1.0  # of those who come at the same time, it is not known who is one too many
        async with hub_client(two) as third:
            await third.send("auth", token=two.state.hubbub.token("alice"))
            assert (await third.expect("error"))["code"] == "too_many"
            assert await third.closed() == 4429
        for client in (http1, http2):
            assert (await client.get("/limits")).json() == {"connections": 1, "of": 4}


@pytest.mark.anyio
async def test_rate_limiting_on_two_nodes(twice: Any) -> None:
    one, two = apps = twice("rate_limiting")
    async with both(apps), hub_client(one, user="alice") as phone, hub_client(two, user="alice") as laptop:
        for number in range(60):
            await (phone, laptop)[number % 2].send("ping")
        passed = 0
        for device in (phone, laptop):
            answers = [await device.receive() for _ in range(30)]
            passed += sum(answer["type"] == "pong" for answer in answers)
            assert answers[-1]["code"] == "rate_limited"
        assert 10 <= passed <= 32, "ten; and of each node one that is not counted, and ten that are to be paid for"


# -- as processes of their own ----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(tmp_path: Path, *arguments: str) -> Iterator[int]:
    """``hubbub serve`` with these arguments, until it answers; ended by SIGTERM."""
    port = free_port()
    hubbub = str(Path(sys.executable).with_name("hubbub"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
    env |= {"HUBBUB_DATA_DIR": str(tmp_path), "HUBBUB_DRAIN_SECONDS": "0.2"}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [hubbub, "serve", "--port", str(port), *arguments], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 20
        while b"listens on" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            os.sched_yield()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_as_its_head_and_the_readme_say(name: str, tmp_path: Path) -> None:
    command = f"hubbub serve --app examples.{name}:app"
    assert command in (ROOT / "examples" / f"{name}.py").read_text()
    assert command in (ROOT / "examples" / "README.md").read_text()
    with served(tmp_path, "--app", f"examples.{name}:app") as port:
        health = httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False, verify=TLS)
        assert health.json()["status"] == "healthy"
        with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as client:
            client.send('{"type": "ping"}')
            assert "authentication_required" in client.recv(5)
        if name == "connection_limits":
            with pytest.raises(InvalidStatus, match="503"):
                crowd(port)


def crowd(port: int) -> None:
    clients = []
    try:
        for _ in range(5):
            clients.append(connect(f"ws://127.0.0.1:{port}/ws", proxy=None))
            clients[-1].__enter__()
    finally:
        for client in clients:
            try:
                client.close()
            except ConnectionClosed:
                pass


@pytest.mark.slow
def test_shop_on_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs it. What is placed on one worker is watched and shipped on the other, and numbered by both."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        workers(tmp_path, 2, "--app", "examples.shop:app") as served,
        connect(served.ws("alice", 0), proxy=None) as a0,
        connect(served.ws("alice", 1), proxy=None) as a1,
    ):
        for number, client in enumerate((a0, a1), 1):
            tell(client, "order.place", what="tea")
            tell(client, "response", id=hears(client, "request")["id"], data=True)
            assert hears(client, "order.placed")["order_id"] == number
        tell(a1, "subscribe", channel="orders:1")
        assert hears(a1, "subscribed")["state"]["status"] == "placed"
        answer = httpx2.post(served.url(1) + "/orders/1/ship", trust_env=False, verify=TLS)
        assert answer.json() == {"offset": 1, "devices": 2}
        assert hears(a1, "publication")["data"] == {"status": "shipped"}
        for client in (a0, a1):
            assert hears(client, "notification")["data"]["title"] == "Shipped"


@pytest.mark.slow
def test_connection_manager_on_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        workers(tmp_path, 2, "--app", "examples.connection_manager:app") as served,
        connect(served.ws("alice", 0), proxy=None) as alice,
        connect(served.ws("bob", 1), proxy=None) as b1,
    ):
        with connect(served.ws("bob", 0), proxy=None) as b0:
            for client in (alice, b0, b1):
                hears(client, "auth_success")
            tell(alice, "whisper", to="bob", text="psst", ref="1")
            for client in (b0, b1):
                assert hears(client, "whisper")["text"] == "psst"
        tell(alice, "whisper", to="bob", text="still there?")
        assert hears(b1, "whisper")["text"] == "still there?"
        b1.close()
        assert hears(alice, "publication")["data"] == "User bob left the chat"


def tell(client: ClientConnection, kind: str, **fields: Any) -> None:
    client.send(json.dumps({"type": kind, **fields}))


def hears(client: ClientConnection, kind: str) -> Any:
    """The next message of this type."""
    while (message := json.loads(client.recv(20)))["type"] != kind:
        assert message["type"] != "error", message
    return message


@pytest.mark.slow
def test_the_guides_client_passes(tmp_path: Path) -> None:
    client = importlib.import_module("examples.guide_client")
    with served(tmp_path) as port:
        hubbub = str(Path(sys.executable).with_name("hubbub"))
        env = {**os.environ, "HUBBUB_DATA_DIR": str(tmp_path)}
        token = subprocess.run([hubbub, "token", "alice"], env=env, capture_output=True, text=True, check=True)
        asyncio.run(client.test_websocket_integration(token.stdout.strip(), f"ws://localhost:{port}/ws"))


@pytest.mark.anyio
async def test_publish_from_elsewhere(valkey_settings: dict[str, str]) -> None:
    engine = {f"HUBBUB_{name.upper()}": value for name, value in valkey_settings.items()}
    command = [sys.executable, "examples/publish_from_elsewhere.py", "alice"]

    async def script() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=os.environ | engine, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out

    async with serving(settings_for(**valkey_settings)) as server, server.client("alice") as alice:
        await until(lambda: server.hub.broker.healthy, "the engine is there")
        await alice.ask("subscribe", channel="reports:7")
        for _ in range(2):  # the second time says nothing new
            assert await script() == b"told\n"
        assert [(await alice.expect("publication"))["data"] for _ in range(2)] == [{"percent": 50}, {"percent": 100}]
        assert (await alice.expect("notification"))["data"]["metadata"] == {"report": 7}
        await alice.nothing_more()


def test_every_example_is_in_the_readme() -> None:
    listed = set(re.findall(r"^\| [^|]+ \| \[(\w+)\.py\]", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE))
    assert listed == {*EXAMPLES, *NO_APPS}
