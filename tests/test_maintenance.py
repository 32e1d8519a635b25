"""The commands that work on the store without a server, as an operator runs them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, insert, select, text
from websockets.sync.client import connect

from hubbub import cli
from hubbub.engines import engine_for
from hubbub.features.chat import tables
from hubbub.features.chat.importing import MARK
from hubbub.schema import HEAD, REVISIONS
from tests.test_cli import DEADLINE, HUBBUB, environment, one_sentence, run, served

Called = Callable[..., tuple[int, str, str]]
SECRET = "rhinoceros"
FILE = "0123456789abcdef0123456789abcdef"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """HUBBUB_DATABASE_URL: nothing, which is SQLite in the data directory; or an empty PostgreSQL."""
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Run the command in this process, which is quicker: its exit code and what it wrote."""

    def called(*arguments: str, **values: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("HUBBUB_")]:
                patch.delenv(name)
            for name, value in {"HUBBUB_DATA_DIR": str(tmp_path / "data"), **values}.items():
                if value:
                    patch.setenv(name, value)
            patch.setattr(sys, "argv", ["hubbub", *arguments])
            patch.setattr(logging.getLogger("hubbub"), "handlers", [])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return called


def ask(tmp_path: Path, url: str, work: Callable[[Connection], Any]) -> Any:
    """Do something with a database that nobody has open."""

    async def ask() -> Any:
        engine = engine_for(url or f"sqlite:///{tmp_path / 'data' / 'hubbub.db'}", readers=1, full_sync=False)
        await engine.start()
        try:
            return await engine.write(work)
        finally:
            await engine.stop()

    return asyncio.run(ask())


def written(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def said(user_id: str, message: str, **more: Any) -> dict[str, Any]:
    return {"user_id": user_id, "message": message, "timestamp": "2027-01-15T08:00:00.123Z", **more}


def without_time(lines: str) -> list[dict[str, Any]]:
    decoded = [json.loads(line) for line in lines.splitlines()]
    assert decoded[0].pop("exported_at")
    return decoded


# -- migrate


def test_migrating(call: Called, url: str, tmp_path: Path) -> None:
    code, out, err = call("migrate", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert f"went to revision {', '.join(REVISIONS)}" in out
    code, out, err = call("migrate", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert f"is at revision {HEAD} already" in out
    password = urlsplit(url).password
    assert password is None or password not in out


def test_a_restored_database_gets_new_epochs(call: Called, url: str, tmp_path: Path) -> None:
    call("migrate", HUBBUB_DATABASE_URL=url)
    file = written(tmp_path / "lines", said("ann", "hello"))
    for room in ("one", "two", "half"):
        assert call("import", file, "--room", room, HUBBUB_DATABASE_URL=url)[0] == 0
    t = tables.rooms.c
    half = text("UPDATE rooms SET epoch = :epoch WHERE id = 'half'").bindparams(epoch=f"{MARK}xyz")
    ask(tmp_path, url, lambda c: c.execute(half))
    query = select(t.id, t.epoch).order_by(t.id)
    before = dict(ask(tmp_path, url, lambda c: c.execute(query).all()))
    code, out, err = call("migrate", "--restored", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert "2 rooms have a new epoch" in out
    after = dict(ask(tmp_path, url, lambda c: c.execute(query).all()))
    assert after["one"] != before["one"]
    assert after["two"] != before["two"]
    assert after["half"] == before["half"], "an import that is not done goes on"
    assert not any(each.startswith(MARK) for each in (after["one"], after["two"]))


def test_a_postgres_is_changed_only_by_migrate(call: Called, postgres_url: str, tmp_path: Path) -> None:
    file = written(tmp_path / "lines", said("ann", "hello"))
    for arguments in (("import", file, "--room", "one"), ("export", "one"), ("users", "erase", "ann", "--yes")):
        code, out, err = call(*arguments, HUBBUB_DATABASE_URL=postgres_url)
        assert (code, out) == (2, "")
        one_sentence(err, "hubbub migrate")


@pytest.mark.parametrize(
    "arguments", [("migrate",), ("export", "one"), ("import", "file"), ("users", "erase", "ann", "--yes")]
)
def test_a_database_in_memory_is_another_one_each_time(call: Called, arguments: tuple[str, ...]) -> None:
    code, out, err = call(*arguments, HUBBUB_DATABASE_URL="sqlite://")
    assert (code, out) == (2, "")
    one_sentence(err, "HUBBUB_DATABASE_URL", "memory")


# -- export and import


def test_out_and_in_again(call: Called, url: str, tmp_path: Path) -> None:
    call("migrate", HUBBUB_DATABASE_URL=url)
    file = written(
        tmp_path / "lines", *(said(("ann", "bob")[n % 2], f"number {n}", client_id=f"c{n}") for n in range(9))
    )
    code, out, err = call("import", file, "--room", "plans", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert "plans has 9 messages" in out
    code, out, err = call("export", "plans", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 11
    copy = tmp_path / "copy.jsonl"
    code, nothing, err = call("export", "plans", "--out", str(copy), HUBBUB_DATABASE_URL=url)
    assert (code, nothing, err) == (0, "", "")
    assert without_time(copy.read_text()) == without_time(out)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))
    assert call("import", str(copy), "--room", "copy", HUBBUB_DATABASE_URL=url)[0] == 0
    again = without_time(call("export", "copy", HUBBUB_DATABASE_URL=url)[1])
    assert again == [without_time(out)[0] | {"room_id": "copy"}, *without_time(out)[1:]]
    code, out, err = call("import", str(copy), HUBBUB_DATABASE_URL=url)
    assert (code, out) == (1, "")
    one_sentence(err, "plans", "already", "--room")


def test_what_was_imported_is_searchable_at_once(call: Called, tmp_path: Path) -> None:
    file = written(tmp_path / "lines", *(said("ann", f"number {n} {SECRET}") for n in range(50)))
    assert call("import", file, "--room", "plans")[0] == 0
    with sqlite3.connect(tmp_path / "data" / "hubbub.db") as database:
        query = "SELECT count(*) FROM message_search WHERE message_search MATCH ?"
        assert database.execute(query, (SECRET,)).fetchone() == (50,)
    database.close()


def test_all_about_a_person(call: Called, url: str, tmp_path: Path) -> None:
    call("migrate", HUBBUB_DATABASE_URL=url)
    file = written(tmp_path / "lines", said("ann", "mine"), said("bob", "not mine"))
    call("import", file, "--room", "plans", HUBBUB_DATABASE_URL=url)
    code, out, err = call("export", "--user", "ann", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["type"], line.get("message")) for line in lines] == [("user", None), ("message", "mine")]


def test_messages_by_standard_input(tmp_path: Path) -> None:
    lines = "".join(json.dumps(said("ann", f"number {n}")) + "\n" for n in range(3))
    done = subprocess.run(
        [*HUBBUB, "import", "-", "--room", "plans"], env=environment(tmp_path), cwd=tmp_path, input=lines,
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 messages" in done.stdout
    reader = subprocess.run(
        f"{' '.join(HUBBUB)} export plans | head -c 7", shell=True, env=environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert (reader.stdout, reader.stderr) == ('{"type"', "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export",), 2, ["ROOM", "--user"]),
        (("export", "one", "--user", "ann"), 2, ["ROOM", "--user"]),
        (("export", "one"), 2, ["no database"]),
        (("import", "nowhere.jsonl"), 2, ["nowhere.jsonl", "No such file"]),
        (("users", "erase", "ann", "--yes"), 2, ["no database"]),
        (("users", "erase", "a\nb", "--yes"), 2, ["128"]),
        (("users", "erase", "ann"), 2, ["--yes"]),
    ],
)
def test_what_cannot_be(call: Called, arguments: tuple[str, ...], code: int, words: list[str], tmp_path: Path) -> None:
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    one_sentence(err, *words)
    assert not (tmp_path / "data" / "hubbub.db").exists()


def test_a_wrong_line_is_named(call: Called, url: str, tmp_path: Path) -> None:
    call("migrate", HUBBUB_DATABASE_URL=url)
    file = written(tmp_path / "lines", said("ann", "hello"), {"user_id": "bob", "message": 7})
    code, out, err = call("import", file, "--room", "plans", HUBBUB_DATABASE_URL=url)
    assert (code, out) == (1, "")
    one_sentence(err, "line 2", "$.message")
    code, out, err = call("export", "nowhere", HUBBUB_DATABASE_URL=url)
    assert (code, out) == (1, "")
    one_sentence(err, "nowhere")
    written(tmp_path / "lines", said("ann", "hello"), said("bob", "seven"))
    code, out, err = call("import", file, "--room", "plans", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert "2 messages" in out


def test_an_export_that_fails_leaves_nothing_behind(call: Called, tmp_path: Path) -> None:
    call("migrate")
    out = tmp_path / "room.jsonl"
    out.write_text("what was there")
    code, _, err = call("export", "nowhere", "--out", str(out))
    assert code == 1
    one_sentence(err, "nowhere")
    assert out.read_text() == "what was there"
    assert not list(tmp_path.glob("*.part"))
    code, _, err = call("export", "nowhere", "--out", str(tmp_path / "no" / "where"))
    assert code == 1
    one_sentence(err, "No such file")


def test_a_line_without_an_end(call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubbub.maintenance.LONGEST_LINE", 1000)
    file = written(tmp_path / "lines", said("ann", "hello"), said("ann", "x" * 1000))
    code, _, err = call("import", file, "--room", "plans")
    assert code == 1
    one_sentence(err, "line 2")


# -- beside a server


def test_beside_a_running_server(tmp_path: Path) -> None:
    """With SQLite, an export reads what is there; what writes is refused, and says by whom the database is held."""
    file = written(tmp_path / "lines", said("ann", "hello"))
    with served(tmp_path) as server:
        token = server.post("/api/dev/login", {"name": "alice"})["token"]
        with connect(f"ws://127.0.0.1:{server.port}/ws/chat/general?token={token}", proxy=None) as client:
            client.send(json.dumps({"type": "chat_message", "message": f"I am a {SECRET}", "ref": "1"}))
            while json.loads(client.recv(timeout=5)).get("ref") != "1":
                pass
        done = run(tmp_path, "export", "general")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line["message"] for line in map(json.loads, done.stdout.splitlines()) if line["type"] == "message"] == [
            f"I am a {SECRET}"
        ]
        for arguments in (("import", file, "--room", "plans"), ("users", "erase", "alice", "--yes"), ("migrate",)):
            done = run(tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (2, "")
            one_sentence(done.stderr, "another process", str(server.process.pid), "Stop it")
        server.stop()
    done = run(tmp_path, "users", "erase", "alice", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 messages" in done.stdout
    for each in (tmp_path / "data").glob("hubbub.db*"):
        assert SECRET.encode() not in each.read_bytes()


# -- erasing


def test_erasing_a_person(call: Called, url: str, tmp_path: Path) -> None:
    call("migrate", HUBBUB_DATABASE_URL=url)
    lines = [said(("ann", "bob")[n % 2], f"{SECRET if n % 2 else 'innocent'} {n}") for n in range(2000)]
    call("import", written(tmp_path / "lines", *lines), "--room", "plans", HUBBUB_DATABASE_URL=url)
    row = {"id": FILE, "room_no": 1, "owner": "bob", "name": f"{SECRET}.txt", "media_type": "text/plain", "size": 3}
    row |= {"sha256": "ab" * 32, "at": 1, "message": None}
    ask(tmp_path, url, lambda c: c.execute(insert(tables.attachments), row))
    stored = tmp_path / "data" / "files" / FILE[:2] / FILE[2:]
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"abc")
    code, out, err = call("users", "erase", "bob", "--yes", HUBBUB_DATABASE_URL=url)
    assert (code, err) == (0, "")
    assert "1 rooms: 1,000 messages, 1 files" in out
    assert not stored.exists()
    assert ask(tmp_path, url, lambda c: c.execute(select(tables.attachments)).all()) == []
    exported = call("export", "plans", HUBBUB_DATABASE_URL=url)[1]
    assert SECRET not in exported
    assert exported.count("innocent") == 1000
    if not url:
        assert SECRET.encode() not in (tmp_path / "data" / "hubbub.db").read_bytes()
    code, out, _ = call("users", "erase", "bob", "--yes", "--no-rewrite", HUBBUB_DATABASE_URL=url)
    assert (code, "0 rooms: 0 messages" in out) == (0, True)


# -- interrupted


def test_an_import_that_is_interrupted_goes_on(tmp_path: Path, call: Called) -> None:
    total = 60_000
    file = written(tmp_path / "lines", *(said("ann", f"number {n}", client_id=f"c{n}") for n in range(total)))
    database = tmp_path / "data" / "hubbub.db"
    process = subprocess.Popen(
        [*HUBBUB, "import", file, "--room", "plans"], env=environment(tmp_path), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until(lambda: count(database) > 0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out) == (1, "")
    one_sentence(err, "interrupted", "again")
    before = count(database)
    assert 0 < before < total
    code, out, err = call("import", file, "--room", "plans")
    assert (code, err) == (0, "")
    assert f"{total:,} messages ({before:,} of them before)" in out
    lines = without_time(call("export", "plans")[1])
    assert [line["message"] for line in lines if line["type"] == "message"] == [f"number {n}" for n in range(total)]


def count(database: Path) -> int:
    """Messages in a file that another process may be writing."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        return int(connection.execute("SELECT count(*) FROM messages").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0
    finally:
        connection.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    file = written(tmp_path / "lines", *(said("ann", f"number {n}") for n in range(5000)))
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [*HUBBUB, "import", file, "--room", "plans"], env=environment(tmp_path, TERM="xterm"), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        out, _ = process.communicate(timeout=DEADLINE)
    os.close(ours)
    assert (process.returncode, "5,000 messages" in out) == (0, True)
    assert b"importing" in shown
    assert b"5,000 messages" in shown
    assert b"making it searchable" in shown
