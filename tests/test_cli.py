"""The command as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from hubbub import cli
from tests.support import SECRET
from tests.workers_support import backlogs

HUBBUB = [sys.executable, "-m", "hubbub.cli"]
DEADLINE = 20.0


def environment(tmp_path: Path, **values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
    return {**kept, "HUBBUB_DATA_DIR": str(tmp_path / "data"), "NO_COLOR": "1", **values}


def run(tmp_path: Path, *arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HUBBUB, *arguments], env=environment(tmp_path, **values), cwd=tmp_path, capture_output=True, text=True,
        timeout=DEADLINE,
    )  # fmt: skip


class Served:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.said = ""

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, self.said = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, time.monotonic() - began


@contextmanager
def served(tmp_path: Path, *arguments: str, **values: str) -> Iterator[Served]:
    """Run ``hubbub serve`` on a free port until it answers."""
    values = {"HUBBUB_DRAIN_SECONDS": "0.5", "HUBBUB_CLOSE_TIMEOUT": "0.5", **values}
    process = subprocess.Popen(
        [*HUBBUB, "serve", "--port", "0", *arguments],
        env=environment(tmp_path, **values), cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+:(\d+)", line)
        assert found, line + process.stderr.read()
        server = Served(process, int(found[1]))
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                server.get("/health/live")
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()[1]
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def one_sentence(stderr: str, *words: str) -> None:
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    for word in words:
        assert word in stderr


def test_a_public_address_needs_a_secret(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0")
    assert (result.returncode, result.stdout) == (2, "")
    one_sentence(result.stderr, "HUBBUB_SECRET", "32 bytes")
    assert not (tmp_path / "data").exists()


Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Run the command in this process, which is quicker: its exit code and what it wrote."""

    def called(*arguments: str, **values: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("HUBBUB_")]:
                patch.delenv(name)
            for name, value in {"HUBBUB_DATA_DIR": str(tmp_path / "data"), **values}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["hubbub", *arguments])
            root = logging.getLogger()
            patch.setattr(root, "handlers", list(root.handlers))
            patch.setattr(root, "level", root.level)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return called


@pytest.mark.parametrize(
    ("arguments", "values", "words"),
    [
        (["--host", "0.0.0.0", "--dev"], {}, ["--dev", "loopback"]),
        (["--host", "0.0.0.0"], {"HUBBUB_SECRET": "short"}, ["HUBBUB_SECRET", "32 bytes"]),
        (["--host", "::"], {}, ["HUBBUB_SECRET"]),
        (["--no-dev"], {}, ["HUBBUB_SECRET"]),
        ([], {"HUBBUB_RATE_LIMIT": "fast"}, ["HUBBUB_RATE_LIMIT"]),
        ([], {"HUBBUB_CHANNELS": "{"}, ["HUBBUB_CHANNELS"]),
        ([], {"HUBBUB_ORIGINS": "app.example"}, ["HUBBUB_ORIGINS"]),
        ([], {"HUBBUB_HEARTBEAT_TIMEOUT": "0"}, ["HUBBUB_HEARTBEAT_TIMEOUT"]),
        ([], {"HUBBUB_DATA_DIR": "/proc/nowhere"}, ["HUBBUB_DATA_DIR"]),
        (["--no-dev"], {"HUBBUB_PUBLIC_KEY": "nonsense"}, ["HUBBUB_PUBLIC_KEY"]),
        (["--worker-ports", "9000"], {}, ["--workers 2"]),
        ([], {"HUBBUB_WORKERS": "2", "HUBBUB_DATABASE_URL": "sqlite://"}, ["workers", "in memory"]),
        ([], {"HUBBUB_WORKERS": "2", "HUBBUB_DATABASE_URL": "mysql://h/d"}, ["HUBBUB_DATABASE_URL", "postgresql://"]),
        ([], {"HUBBUB_WORKERS": "2", "HUBBUB_VALKEY_URL": "hubbub:pw@h"}, ["HUBBUB_VALKEY_URL", "begin with a scheme"]),
    ],
)
def test_settings_that_make_no_sense(
    call: Called, arguments: list[str], values: dict[str, str], words: list[str]
) -> None:
    code, out, err = call("serve", "--port", "0", *arguments, **values)
    assert (code, out) == (2, "")
    one_sentence(err, *words)


@pytest.mark.parametrize(("port", "first"), [(9101, 9101), (9102, 9101)])
def test_the_ports_of_the_workers_are_others_than_the_one_they_share(call: Called, port: int, first: int) -> None:
    code, out, err = call("serve", "--port", str(port), "--workers", "2", "--worker-ports", str(first))
    assert (code, out) == (2, "")
    one_sentence(err, f"{first} to {first + 1}", f"{port} among them is that of --port")


def test_tokens(call: Called) -> None:
    code, _, err = call("token", "alice")
    assert code == 2
    one_sentence(err, "HUBBUB_SECRET")
    code, out, err = call("token", "alice", "--subscribe", "news:*", "--ttl", "60", HUBBUB_SECRET=SECRET)
    assert (code, err) == (0, "")
    assert out.count(".") == 2


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 129])
def test_tokens_for_nobody(call: Called, user: str) -> None:
    code, out, err = call("token", user, HUBBUB_SECRET=SECRET)
    assert (code, out) == (2, "")
    assert "user" in err


def test_development_mode_and_its_token(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        login = server.post("/api/dev/login", {"name": "alice"})
        assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600
        made = run(tmp_path, "token", "bob", "--admin").stdout.strip()
        for token, user in ((login["token"], "alice"), (made, "bob")):
            with connect(f"ws://127.0.0.1:{server.port}/ws?token={token}", proxy=None) as client:
                assert json.loads(client.recv(timeout=5))["user_id"] == user
        with connect(f"ws://127.0.0.1:{server.port}/ws/echo", proxy=None) as client:
            client.send("hello")
            assert client.recv(timeout=5) == "hello"
        code, _ = server.stop()
        assert code == 0
        assert login["token"] not in server.said
        assert "Traceback" not in server.said


def test_production_mode_has_no_login_by_name(tmp_path: Path) -> None:
    with served(tmp_path, "--no-dev", HUBBUB_SECRET=SECRET) as server:
        with pytest.raises(urllib.error.HTTPError) as missing:
            server.post("/api/dev/login", {"name": "alice"})
        assert missing.value.code == 404
        missing.value.close()
        assert (tmp_path / "data" / "hubbub.db").exists()
        assert not (tmp_path / "data" / "secret").exists()
        if sys.platform == "linux":
            assert backlogs(server.port) == [min(16_384, int(Path("/proc/sys/net/core/somaxconn").read_text()))]
        assert server.stop()[0] == 0


def test_sigterm_ends_within_its_bound(tmp_path: Path) -> None:
    """With clients that listen, one that never reads, one that never finished its handshake."""
    with served(tmp_path, HUBBUB_OUTBOX_BYTES="1000000", HUBBUB_HEARTBEAT_INTERVAL="0") as server:
        token = server.post("/api/dev/login", {"name": "alice"})["token"]
        url = f"ws://127.0.0.1:{server.port}/ws?token={token}"
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\n")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall(
            f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        command = json.dumps({"type": "subscribe", "channel": "news"}).encode()
        deaf.sendall(b"\x81" + bytes([0x80 | len(command)]) + b"\0\0\0\0" + command)
        with connect(url, proxy=None) as client:
            assert json.loads(client.recv(timeout=5))["type"] == "auth_success"
            for _ in range(30):
                client.send(json.dumps({"type": "publish", "channel": "news", "data": "x" * 50_000}))
                assert json.loads(client.recv(timeout=5))["type"] == "ack"
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert json.loads(client.recv(timeout=5))["type"] == "reconnect"
            with pytest.raises(Exception, match="1012"):
                client.recv(timeout=5)
        _, said = server.process.communicate(timeout=DEADLINE)
        assert server.process.returncode == 0, said
        assert time.monotonic() - began < 0.5 + 0.5 + 4
        assert "Traceback" not in said
        half.close()
        deaf.close()


def test_an_app_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fastapi import FastAPI, WebSocket\n"
        "from hubbub import Hubbub\n"
        "app = FastAPI()\n"
        "hub = Hubbub(app)\n"
        "@app.get('/mine')\n"
        "async def mine(): return {'live': await hub.broadcast('t', 'm')}\n"
        "@app.websocket('/plain')\n"
        "async def plain(websocket: WebSocket):\n"
        "    await websocket.accept()\n"
        "    await websocket.send_text('plain')\n"
        "    await websocket.close()\n"
    )
    with served(tmp_path, "--app", "mine:app") as server:
        token = server.post("/api/dev/login", {"name": "alice"})["token"]
        with connect(f"ws://127.0.0.1:{server.port}/ws?token={token}", proxy=None) as client:
            client.recv(timeout=5)
            assert server.get("/mine") == {"live": 1}
            assert json.loads(client.recv(timeout=5))["type"] == "broadcast_notification"
        with connect(f"ws://127.0.0.1:{server.port}/plain", proxy=None) as client:
            assert client.recv(timeout=5) == "plain"
        assert server.stop()[0] == 0


def test_an_app_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--port", "0", "--app", "nowhere:app")
    assert result.returncode != 0
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(tmp_path, "serve", "--port", str(taken.getsockname()[1]))
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


def test_a_database_that_another_process_has_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    with served(tmp_path, "--no-dev", HUBBUB_SECRET=SECRET):
        second = run(tmp_path, "serve", "--no-dev", "--port", "0", HUBBUB_SECRET=SECRET)
        assert second.returncode == 3
        assert "Traceback" not in second.stderr
        said = next(line for line in second.stderr.splitlines() if "writes to" in line)
        assert "another process (pid " in said
        assert "or PostgreSQL (HUBBUB_DATABASE_URL)" in said
    data = tmp_path / "data"
    assert (data.stat().st_mode & 0o777, (data / "hubbub.db").stat().st_mode & 0o777) == (0o700, 0o600)
