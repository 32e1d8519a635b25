"""``hubbub serve --workers``: processes that start, die, are replaced and end, with a Valkey of their own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hubbub import Publisher
from hubbub.errors import ConfigurationError
from hubbub.listening import SPREADS, Listeners
from hubbub.workers import DEATHS, EARLY, CannotServe, Slot
from tests.engine_support import until
from tests.support import SECRET
from tests.workers_support import WITHIN, Workers, backlogs, gone, workers

HEARD = 30.0
"""Seconds for whatever is waited for on a connection."""


class Ear:
    """A client that keeps what it heard until it is asked for."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.heard: list[dict[str, Any]] = []

    def tell(self, kind: str, **fields: Any) -> None:
        self.client.send(json.dumps({"type": kind, **fields}))

    def listen(self) -> dict[str, Any]:
        """The next message."""
        message: dict[str, Any] = json.loads(self.client.recv(timeout=HEARD))
        self.heard.append(message)
        return message

    def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first message of a kind with these fields, among those heard and those to come."""
        wanted = {"type": kind, **fields}.items()
        while not (found := [message for message in self.heard if wanted <= message.items()]):
            self.listen()
        self.heard.remove(found[0])
        return found[0]

    def hear_of(self, ref: str) -> dict[str, Any]:
        """The reply to what was told with this ref."""
        while not (found := [message for message in self.heard if message.get("ref") == ref]):
            self.listen()
        return found[0]

    def until_closed(self) -> int:
        """The close code."""
        try:
            while True:
                self.listen()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006

    def caught_up(self) -> list[dict[str, Any]]:
        """All that was heard, once everything sent so far has come."""
        self.tell("ping")
        while self.listen()["type"] != "pong":
            pass
        heard, self.heard = self.heard[:-1], []
        return heard


@contextmanager
def session(server: Workers, user: str, worker: int | None = None) -> Iterator[Ear]:
    with connect(
        server.ws(user, worker), proxy=None, open_timeout=WITHIN, ping_interval=None, close_timeout=1
    ) as client:
        ear = Ear(client)
        ear.hear("auth_success")
        yield ear


def asked(port: int, path: str = "/health/live") -> socket.socket:
    """A connection on which something was asked."""
    made = socket.create_connection(("127.0.0.1", port), WITHIN)
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return made


def answered(connection: socket.socket) -> bool:
    with connection:
        return connection.recv(65_536).startswith(b"HTTP/1.1 200")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- the whole, once


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers for the tests that leave them as they are."""
    with workers(tmp_path_factory.mktemp("workers")) as made:
        yield made


def test_one_line_says_where_they_all_listen(server: Workers) -> None:
    (line,) = [line for line in server.text.splitlines() if "listens on" in line]
    said = json.loads(line)
    where = f"http://127.0.0.1:{server.port} with 2 workers (each alone on {server.base} to {server.base + 1})"
    assert (said["event"], said["workers"], said["level"]) == (f"Hubbub listens on {where}", 2, "info")
    assert all(json.loads(line) for line in server.text.splitlines()), "whoever reads logs reads JSON"
    assert {each["worker"] for each in server.records("Application startup complete.")} == {0, 1}


def test_its_log_says_how_another_program_reaches_the_engine(server: Workers) -> None:
    (said,) = server.records("the embedded Valkey answers")
    with Publisher(said["HUBBUB_VALKEY_URL"]) as hub, session(server, "alice", 1) as alice:
        hub.notify("alice", "Report", "It is ready.")
        assert alice.hear("notification")["data"]["title"] == "Report"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_as_many_may_wait_to_be_accepted_as_the_kernel_allows(server: Workers) -> None:
    most = min(16_384, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    assert backlogs(server.port) == [most] * 2
    assert [backlogs(server.base + index) for index in (0, 1)] == [[most]] * 2


def test_each_is_a_process_of_its_own_and_knows_the_others(server: Workers) -> None:
    assert [server.get("/health/live", index) for index in (0, 1)] == [{"status": "live"}] * 2
    assert server.worker(0).pid != server.worker(1).pid

    def know() -> bool:
        return all(server.get("/health", index)["nodes"] == 2 for index in (0, 1))

    until(know, "the workers do not know each other", WITHIN)


def test_two_people_on_two_workers_are_in_one_room(server: Workers) -> None:
    with session(server, "alice", 0) as alice, session(server, "bob", 1) as bob:
        for client in (alice, bob):
            client.tell("join_room", room_id="general")
            client.hear("room_joined")
        alice.hear("user_joined", user_id="bob")
        for speaker, name in ((alice, "alice"), (bob, "bob")):
            speaker.tell("chat_message", room_id="general", message="hello")
            for client in (alice, bob):
                heard = client.hear("message")["data"]
                assert (heard["user_id"], heard["message"]) == (name, "hello")
        bob.client.close()
        alice.hear("user_left", user_id="bob")


def test_connections_are_spread(server: Workers) -> None:
    with ExitStack() as clients:
        for number in range(100):
            clients.enter_context(session(server, f"user-{number}"))
        counts = [server.get("/health", index)["active_connections"] for index in (0, 1)]
    assert sum(counts) == 100
    assert min(counts) >= 20, counts  # six standard deviations


def test_a_second_one_is_refused(server: Workers, tmp_path: Path) -> None:
    """On the same port, and on the same data directory."""
    for data, port, words in (
        (tmp_path, server.port, ["cannot listen", f":{server.port}", "--port"]),
        (server.data, 0, [f"pid {server.process.pid}", "HUBBUB_DATA_DIR"]),
    ):
        result = refused(tmp_path, "--port", str(port), HUBBUB_DATA_DIR=str(data), HUBBUB_SECRET=SECRET)
        for word in words:
            assert word in result.stderr
    assert server.get("/health/live") == {"status": "live"}


def test_one_alone_beside_them_is_told_whom_to_stop(server: Workers, tmp_path: Path) -> None:
    """The supervisor: whoever stops a worker only has it replaced."""
    values = {"HUBBUB_DATA_DIR": str(server.data), "HUBBUB_SECRET": SECRET}
    result = ended(tmp_path, "--workers", "1", "--port", "0", code=3, **values)
    assert f"another process (pid {server.process.pid}) writes to" in result.stderr


def refused(directory: Path, *arguments: str, code: int = 2, **values: str) -> subprocess.CompletedProcess[str]:
    """What ``hubbub serve --workers 2`` says when it does not start: one sentence."""
    result = ended(directory, *arguments, code=code, **values)
    assert sum(line.startswith("hubbub: ") for line in result.stderr.splitlines()) == 1, result.stderr
    return result


def ended(directory: Path, *arguments: str, code: int, **values: str) -> subprocess.CompletedProcess[str]:
    """What it said, when it ends by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
    result = subprocess.run(
        [sys.executable, "-m", "hubbub.cli", "serve", "--no-dev", "--workers", "2", *arguments],
        env={**environment, "HUBBUB_DATA_DIR": str(directory / "data"), **values},
        cwd=directory, capture_output=True, text=True, timeout=WITHIN,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    assert "in memory" in refused(tmp_path, HUBBUB_SECRET=SECRET, HUBBUB_DATABASE_URL="sqlite://").stderr
    assert "HUBBUB_SECRET" in refused(tmp_path).stderr
    said = refused(tmp_path, HUBBUB_SECRET=SECRET, HUBBUB_VALKEY_URL="valkey//hubbub:s3cret@h").stderr
    assert "HUBBUB_VALKEY_URL" in said
    assert len(said.splitlines()) == 1, "no worker was started"
    assert "s3cret" not in said
    assert not (tmp_path / "data").exists()


# -- what ends


def test_they_end_in_order_and_leave_nothing(tmp_path: Path) -> None:
    with workers(tmp_path) as server, session(server, "alice", 0) as alice, session(server, "bob", 1) as bob:
        family = server.family()
        path = server.data / "valkey" / "valkey.sock"
        assert path.is_socket()
        server.signal(signal.SIGTERM)
        for client in (alice, bob):
            client.hear("reconnect")
            assert client.until_closed() == 1012
        assert server.ends() == 0
        gone(family, 5.0)
        assert not path.exists()
        assert not listens(server.port)
        assert "Traceback" not in server.text
        assert server.records("a worker died") == []


def test_a_signal_for_all_of_them_at_once_ends_them_in_the_same_order(tmp_path: Path) -> None:
    """As systemd sends it: the engine is needed until the workers have drained."""
    with workers(tmp_path) as server, session(server, "alice", 0) as alice:
        alice.tell("join_room", room_id="general")
        alice.hear("room_joined")
        family = server.family()
        assert len(family) == 4, "two workers, the engine and its guard"
        for process in [psutil.Process(server.process.pid), *family]:
            process.terminate()
        alice.hear("reconnect")
        assert alice.until_closed() == 1012
        assert server.ends() == 0
        gone(family, 5.0)
        assert "the embedded Valkey ended" not in server.text
        assert "could not be told" not in server.text
        assert "Traceback" not in server.text


def test_a_signal_before_they_serve(tmp_path: Path) -> None:
    server = Workers(tmp_path)
    try:
        server.launch()
        until(lambda: len(server.family()) == 4, "they were not started", WITHIN)
        family = server.family()
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        gone(family, 5.0)
        assert "listens on" not in server.text
        assert "Traceback" not in server.text
    finally:
        server.close()


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    with workers(tmp_path, close_timeout="300") as server, session(server, "alice", 0):
        family = server.family()
        deaf = [each for each in family if each.pid == server.worker(1).pid]
        deaf[0].suspend()
        server.signal(signal.SIGINT)
        server.until_said("Shutting down")
        server.signal(signal.SIGINT)
        assert server.ends() == 0
        gone(family, 5.0)


@pytest.mark.slow
def test_nothing_stays_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with workers(tmp_path) as server, session(server, "alice", 0) as alice:
        family = server.family()
        assert len(family) == 4  # two workers, Valkey and its guard
        server.signal(signal.SIGKILL)
        assert server.ends() == -signal.SIGKILL
        alice.hear("reconnect")
        gone(family, 10.0)
        assert not listens(server.port)
        server.start()  # nobody has to clean up
        assert server.get("/health/live", 1) == {"status": "live"}
        server.signal()
        assert server.ends() == 0


# -- what dies


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_no_connection_is_lost(tmp_path: Path) -> None:
    with workers(tmp_path) as server:
        first = server.worker(0)
        first.suspend()
        until(lambda: first.status() == psutil.STATUS_STOPPED, "it was not stopped")
        waiting = [asked(server.port) for _ in range(40)]
        other = server.get("/health/live", 1)
        assert other == {"status": "live"}
        first.kill()
        # those in the dead worker's queue are answered by whoever comes after it
        assert all(map(answered, waiting))
        until(lambda: bool(server.records("a worker serves in its place")), "it was not replaced", WITHIN)
        assert server.worker(0).pid != first.pid
        died = server.records("a worker died")
        assert [(each["worker"], each["code"]) for each in died] == [(0, -signal.SIGKILL)]
        assert [server.get("/health/live", index) for index in (0, 1)] == [{"status": "live"}] * 2


@pytest.mark.slow
def test_clients_of_a_killed_worker_miss_nothing_and_get_nothing_twice(tmp_path: Path) -> None:
    with workers(tmp_path) as server, session(server, "bob", 1) as bob:
        with session(server, "alice", 0) as alice:
            for client in (alice, bob):
                client.tell("join_room", room_id="general")
                client.tell("subscribe", channel="news")
            room = alice.hear("room_joined")["position"]["epoch"]
            news = alice.hear("subscribed")["epoch"]
            said(bob, 1)
            publication = {"epoch": news, "offset": alice.hear("publication", data=1)["offset"]}
            message = {"epoch": room, "offset": alice.hear("message")["data"]["id"]}
            server.worker(0).kill()
            assert alice.until_closed() == 1006
        said(bob, 2)
        said(bob, 3)
        for worker in (1, 0):  # on the other one, and on the replacement
            with session(server, "alice", worker) as alice:
                alice.tell("subscribe", channel="news", since=publication)
                alice.tell("join_room", room_id="general", since=message)
                missed = [alice.hear("subscribed"), alice.hear("room_joined")]
                later = [each for each in alice.caught_up() if each["type"] in ("publication", "message", "gap")]
            assert [each["recovered"] for each in missed] == [True, True]
            assert [each["data"] for each in missed[0]["messages"]] == [2, 3]
            assert [each["data"]["message"] for each in missed[1]["messages"]] == ["2", "3"]
            assert later == []


def said(speaker: Ear, number: int) -> None:
    """Say it on a channel and in a room, and wait until that is so."""
    speaker.tell("publish", channel="news", data=number)
    speaker.tell("chat_message", room_id="general", message=str(number))
    speaker.hear("publication", data=number)
    assert speaker.hear("message")["data"]["message"] == str(number)


def test_the_engine_that_dies_is_started_again_and_all_goes_on(tmp_path: Path) -> None:
    with workers(tmp_path) as server, session(server, "alice", 0) as alice, session(server, "bob", 1) as bob:
        for client in (alice, bob):
            client.tell("subscribe", channel="news")
            client.hear("subscribed")
        alice.tell("publish", channel="news", data="before", ref="1")
        bob.hear("publication", data="before")
        engine = server.engine()
        engine.kill()
        server.until_said("the embedded Valkey answers again")
        assert server.engine().pid != engine.pid
        refs = (f"after-{number}" for number in itertools.count())

        def published() -> bool:
            alice.tell("publish", channel="news", data="after", ref=(ref := next(refs)))
            return bool(alice.hear_of(ref)["type"] == "ack")

        until(published, "the workers did not come back to the engine", WITHIN)
        bob.hear("publication", data="after")
        assert {each["type"] for each in bob.heard} <= {"position"}  # nothing was lost, so there is no gap
        assert server.records("a worker died") == []


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_ends_it_all(tmp_path: Path) -> None:
    (tmp_path / "mortal.py").write_text(
        "import os, signal\n"
        "from starlette.applications import Starlette\n"
        "from starlette.responses import PlainTextResponse\n"
        "from starlette.routing import Route\n"
        "async def die(request): os.kill(os.getpid(), signal.SIGKILL)\n"
        "async def live(request): return PlainTextResponse('live')\n"
        "app = Starlette(routes=[Route('/die', die), Route('/', live)])\n"
    )
    with workers(tmp_path, 2, "--app", "mortal:app") as server:
        family = server.family()
        for death in range(1, DEATHS + 1):
            with suppress(OSError), asked(server.base + 1, "/die") as connection:
                connection.recv(1)
            if death < DEATHS:
                server.until_said("a worker serves in its place", death)
        assert server.ends() == 3
        assert f"hubbub: worker 1 died {DEATHS} times in a row" in server.text
        gone(family, 5.0)


def test_the_pauses_between_deaths_grow_until_it_is_given_up() -> None:
    slot = Slot(1, [])
    assert [slot.died(0.0) for _ in range(4)] == [0.0, 0.5, 1.0, 2.0]
    with pytest.raises(CannotServe, match="worker 1 died 5 times"):
        slot.died(EARLY - 1)
    calm = Slot(0, [])
    assert [calm.died(served) for served in (0.0, 0.0, EARLY, 0.0, 0.0, 0.0)] == [0.0, 0.5, 0.0, 0.0, 0.5, 1.0]
    assert [calm.died(EARLY) for _ in range(20)] == [0.0] * 20


@pytest.mark.slow
def test_an_app_that_is_not_there_ends_it_before_it_serves(tmp_path: Path) -> None:
    server = Workers(tmp_path, 2, "--app", "nowhere:app")
    try:
        server.launch()
        assert server.ends() != 0
        assert len([line for line in server.text.splitlines() if "nowhere" in line]) == 1, server.text
        assert "worker 0 ended before it served" in server.text
        assert "listens on" not in server.text
    finally:
        server.close()


# -- new ones for old ones


@pytest.mark.slow
def test_a_rolling_restart_is_noticed_only_by_a_reconnect(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fastapi import FastAPI\n"
        "from hubbub import Hubbub\n"
        "app = FastAPI()\n"
        "hub = Hubbub(app)\n"
        "@app.get('/version')\n"
        "async def version(): return 1\n"
    )
    with workers(tmp_path, 2, "--app", "mine:app") as server:
        old = [server.worker(index).pid for index in (0, 1)]
        source = (tmp_path / "mine.py").read_text()
        (tmp_path / "mine.py").write_text(source.replace("return 1", "return 2"))
        done = threading.Event()
        outcomes = Counter[bool]()

        def keep_asking() -> None:
            while not done.wait(0.01):
                outcomes[answered(asked(server.port))] += 1

        asking = threading.Thread(target=keep_asking)
        asking.start()
        with session(server, "alice", 0) as alice, session(server, "bob", 1) as bob:
            server.signal(signal.SIGHUP)
            for client in (alice, bob):
                client.hear("reconnect")
        server.until_said("all workers are new")
        done.set()
        asking.join()
        assert outcomes[False] == 0
        assert outcomes[True] > 0
        assert not set(old) & {server.worker(index).pid for index in (0, 1)}
        assert [server.get("/version", index) for index in (0, 1)] == [2, 2]

        (tmp_path / "mine.py").write_text("raise RuntimeError('a version that does not work')\n")
        kept = [server.worker(index).pid for index in (0, 1)]
        server.signal(signal.SIGHUP)
        server.until_said("a new worker ended before it served")
        assert [server.worker(index).pid for index in (0, 1)] == kept
        assert [server.get("/version", index) for index in (0, 1)] == [2, 2]
        server.signal()
        assert server.ends() == 0


# -- the sockets


@pytest.mark.skipif(not SPREADS, reason="the kernel spreads connections on Linux only")
def test_new_connections_keep_away_from_who_is_gone() -> None:
    listeners = Listeners("127.0.0.1", 0, 4)
    clients = []

    def arrived(worker: int) -> int:
        count = 0
        listeners.of(worker).setblocking(False)
        with suppress(BlockingIOError):
            while True:
                listeners.of(worker).accept()[0].close()
                count += 1
        return count

    try:
        for steered in ([0, 1, 2, 3], [1, 3], [2], []):
            listeners.steer(steered)
            clients += [socket.create_connection(("127.0.0.1", listeners.port)) for _ in range(200)]
            counts = [arrived(worker) for worker in range(4)]
            wanted = steered or [0, 1, 2, 3]
            assert sum(counts) == 200
            assert [worker for worker in range(4) if counts[worker]] == wanted
    finally:
        listeners.close()
        for client in clients:
            client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listeners.port))


def test_a_port_is_never_shared_by_mistake() -> None:
    listeners = Listeners("127.0.0.1", 0, 2)
    try:
        with pytest.raises(ConfigurationError, match=f"{listeners.port}.*--port"):
            Listeners("127.0.0.1", listeners.port, 2)
    finally:
        listeners.close()
    Listeners("127.0.0.1", listeners.port, 2).close()


def test_an_address_of_version_6() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        listeners = Listeners("::1", 0, 2)
    except ConfigurationError:
        pytest.skip("this machine has no IPv6 loopback")
    listeners.steer([1])
    socket.create_connection(("::1", listeners.port)).close()
    listeners.of(1).accept()[0].close()
    listeners.close()
