"""Attachments over HTTP: taken in as they come, shown to who may read the room and to nobody else, served so that they do
no harm, and gone when they should be."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from hubbub import ClientError, logs
from hubbub.features.chat import tables
from hubbub.rest.links import LIFETIME, Links
from tests.rest_support import good, people, refused, served
from tests.support import DEADLINE, HandClock, Running, settings_for, until
from tests.test_auth import RSA, pem

pytestmark = pytest.mark.anyio
ROOM = "/api/rooms/tea"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20
DAY = 86_400


async def upload(http: Any, data: bytes = PNG, name: str = "cat.png", kind: str = "image/png", room: str = ROOM) -> Any:
    answer = await http.post(f"{room}/files", params={"name": name}, content=data, headers={"content-type": kind})
    return good(answer, 201)


async def send(http: Any, *files: Any, room: str = ROOM, **fields: Any) -> int:
    body = {"message": "", "files": [file["id"] for file in files], **fields}
    number: int = good(await http.post(f"{room}/messages", json=body), 201)["id"]
    return number


async def make_room(http: Any, *members: str, **fields: Any) -> None:
    body = {"room_id": "tea", "members": list(members), **fields}
    good(await http.post("/api/rooms", json=body), 201)


async def rows(server: Running) -> list[Any]:
    t = tables.attachments.c
    query = select(t.id, t.owner, t.message)
    found = await server.hubbub.store.read(lambda connection: connection.execute(query).all())
    return [tuple(row) for row in found]


def stored(directory: Path) -> list[str]:
    """The ids of the files whose bytes are there, and what is on its way."""
    places = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(f"{path.parent.name}{path.name}" for path in places)


# -- in and out --------------------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_sent_and_fetched(database_url: str, tmp_path: Path) -> None:
    async with (
        served(database_url, files=str(tmp_path / "f")) as server,
        people(server, "alice", "bob", "carol") as (alice, bob, carol),
    ):
        await make_room(alice, "bob", visibility="private")
        info = await upload(alice)
        assert {name: info[name] for name in ("name", "media_type", "size")} == {
            "name": "cat.png",
            "media_type": "image/png",
            "size": len(PNG),
        }
        assert info["url"] == f"/api/files/{info['id']}"
        for nobody_else in (bob, carol):
            assert refused(await nobody_else.get(info["url"])) == (404, "not_found")
        assert (await alice.get(info["url"])).content == PNG
        number = await send(alice, info)
        (message,) = good(await bob.get(f"{ROOM}/messages"))["messages"]
        assert (message["id"], message["files"]) == (number, [info])
        answer = await bob.get(info["url"])
        assert (answer.status_code, answer.content) == (200, PNG)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["etag"] == f'"{hashlib.sha256(PNG).hexdigest()}"'
        assert refused(await carol.get(info["url"])) == (404, "not_found")
        assert refused(await carol.get("/api/files/" + "0" * 32)) == (404, "not_found")
        assert refused(await alice.delete(info["url"])) == (409, "conflict")
        good(await alice.delete(f"{ROOM}/messages/{number}"))
        for http in (alice, bob):
            assert refused(await http.get(info["url"])) == (404, "not_found")


async def test_they_may_be_kept_in_a_bucket() -> None:
    async with served(files="memory://") as server, people(server, "alice") as (alice,):
        await make_room(alice)
        data = bytes(range(256)) * 8192
        info = await upload(alice, data, "large.bin", "")
        await send(alice, info)
        assert (await alice.get(info["url"])).content == data
        part = await alice.get(info["url"], headers={"range": "bytes=1048570-1048579"})
        assert (part.status_code, part.content) == (206, data[1048570:1048580])


async def test_parts_of_a_file(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        url = (await upload(alice))["url"]
        size = len(PNG)
        for wanted, part in (
            ("bytes=0-0", (0, 1)),
            ("bytes=2-5", (2, 6)),
            (f"bytes={size - 1}-", (size - 1, size)),
            ("bytes=100-1000000", (100, size)),
            ("bytes=-7", (size - 7, size)),
        ):
            answer = await alice.get(url, headers={"range": wanted})
            assert (answer.status_code, answer.content) == (206, PNG[slice(*part)]), wanted
            assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/{size}"
            assert answer.headers["content-length"] == str(part[1] - part[0])
        for header in ({"range": "bytes=5-2"}, {"range": "lines=1-2"}, {"range": "bytes=0-1,3-4"}, {}):
            answer = await alice.get(url, headers=header)
            assert (answer.status_code, answer.content) == (200, PNG), header
            assert answer.headers["accept-ranges"] == "bytes"
        answer = await alice.get(url, headers={"range": f"bytes={size}-"})
        assert refused(answer) == (416, "invalid_message")
        assert answer.headers["content-range"] == f"bytes */{size}"


async def test_browsers_may_ask_whether_it_is_the_same(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice", "bob") as (alice, bob):
        await make_room(alice, visibility="private")
        url = (await upload(alice))["url"]
        etag = (await alice.get(url)).headers["etag"]
        for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            answer = await alice.get(url, headers={"if-none-match": tags})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag), tags
            assert refused(await bob.get(url, headers={"if-none-match": tags})) == (404, "not_found")
        assert (await alice.get(url, headers={"if-none-match": '"other"'})).status_code == 200
        for known, status in ((etag, 206), ('"other"', 200), ("Wed, 21 Oct 2026 07:28:00 GMT", 200)):
            answer = await alice.get(url, headers={"range": "bytes=0-1", "if-range": known})
            assert answer.status_code == status, known
        head = await alice.head(url, headers={"range": "bytes=0-1"})
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(PNG))
        assert (await bob.head(url)).status_code == 404


async def test_nothing_that_a_browser_would_run(tmp_path: Path) -> None:
    page = b"<html><script>alert(1)</script>"
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        for name, kind, data in (
            ("evil.html", "text/html", page),
            ("cat.png", "image/png", page),
            ("cat.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
            ("code.js", "text/javascript", b"alert(1)"),
        ):
            info = await upload(alice, data, name, kind)
            answer = await alice.get(info["url"])
            assert info["media_type"] == answer.headers["content-type"] == "application/octet-stream", name
            assert answer.headers["content-disposition"].startswith("attachment"), name
            assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert answer.content == data


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("Ünïcode 🍵.png", "Ünïcode 🍵.png"),
        ('a";\r\nSet-Cookie: x=1', "a;Set-Cookie x=1"),
        ("", "file"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)
async def test_names_are_only_names(tmp_path: Path, given: str, kept: str) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        info = await upload(alice, name=given)
        assert info["name"] == kept
        answer = await alice.get(info["url"])
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        await send(alice, info)
        assert good(await alice.get(f"{ROOM}/messages"))["messages"][0]["files"][0]["name"] == kept


# -- who may --------------------------------------------------------------------------------------------------------------


async def test_who_may_upload(tmp_path: Path) -> None:
    async with (
        served(files=str(tmp_path), default_rooms=()) as server,
        people(server, "alice", "bob", "carol") as (alice, bob, carol),
        server.http() as key,
        server.http(None) as nobody,
    ):
        await make_room(alice, "bob", kind="broadcast", visibility="private")
        good(await alice.post("/api/rooms", json={"room_id": "live", "kind": "live"}), 201)
        where = f"{ROOM}/files"
        assert refused(await nobody.post(where, content=PNG)) == (401, "authentication_required")
        assert refused(await bob.post(where, content=PNG)) == (403, "forbidden")
        assert refused(await carol.post(where, content=PNG)) == (404, "not_found")
        assert refused(await alice.post("/api/rooms/live/files", content=PNG)) == (403, "forbidden")
        assert refused(await key.post(where, content=PNG)) == (422, "invalid_message")
        info = good(await key.post(f"{where}?as_user=bot", content=PNG), 201)
        assert refused(await alice.get(info["url"])) == (404, "not_found"), "it is not sent yet"
        good(await key.post(f"{ROOM}/messages?as_user=bot", json={"message": "see", "files": [info["id"]]}), 201)
        assert (await bob.get(info["url"])).content == PNG
        assert (await key.get(info["url"])).content == PNG
        mine = await upload(alice)
        theirs = await bob.post(f"{ROOM}/messages", json={"message": "mine!", "files": [mine["id"]]})
        assert theirs.status_code in (403, 404)
        assert len(stored(tmp_path)) == 2, "nothing is left of what was refused"


async def test_who_may_fetch_it_when_people_come_and_go(tmp_path: Path) -> None:
    async with (
        served(files=str(tmp_path)) as server,
        people(server, "alice", "bob", "carol") as (alice, bob, carol),
        server.http(server.token("root", admin=True)) as root,
    ):
        await make_room(alice, "bob", visibility="private", history="joined")
        before = await upload(alice)
        await send(alice, before)
        good(await alice.post(f"{ROOM}/invitations", json={"user_ids": ["carol"]}))
        assert refused(await carol.get(before["url"])) == (404, "not_found"), "invited is not in it"
        good(await carol.post(f"{ROOM}/members/me"))
        assert refused(await carol.get(before["url"])) == (404, "not_found"), "it was sent before she came"
        after = await upload(alice)
        await send(alice, after)
        for http in (alice, bob, carol, root):
            assert (await http.get(after["url"])).status_code == 200
        good(await alice.post(f"{ROOM}/kick", json={"user_id": "carol"}))
        assert refused(await carol.get(after["url"])) == (404, "not_found")
        async with server.http(server.token("bob", rooms=("other",))) as narrow:
            assert refused(await narrow.get(after["url"])) == (404, "not_found")


async def test_a_token_may_come_in_a_header_a_cookie_or_the_query(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,), server.http(None) as plain:
        await make_room(alice)
        url, token = (await upload(alice))["url"], server.token("alice")
        assert (await plain.get(url, params={"token": token})).content == PNG
        assert (await plain.get(url, headers={"cookie": f"hubbub_token={token}"})).content == PNG
        policies = [
            (await alice.get(url)).headers["cross-origin-resource-policy"],
            (await plain.get(url, headers={"cookie": f"hubbub_token={token}"})).headers["cross-origin-resource-policy"],
            (await plain.get(url, params={"token": token})).headers["cross-origin-resource-policy"],
            (await plain.get(good(await alice.post(f"{url}/link"))["url"])).headers["cross-origin-resource-policy"],
        ]
        assert policies == ["same-origin", "same-origin", "cross-origin", "cross-origin"]
        assert refused(await plain.get(url)) == (401, "authentication_required")
        assert refused(await plain.get(url, params={"token": token[:-3] + "AAA"})) == (401, "authentication_failed")
        assert refused(await plain.get(url, params={"token": server.token("bob")})) == (404, "not_found")
        for path in ("/api/rooms", f"{url}/link"):
            method = "POST" if path.endswith("link") else "GET"
            assert (await plain.request(method, path, params={"token": token})).status_code == 401, path


async def test_no_token_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    logs.configure("info", pretty=False)
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,), server.http(None) as plain:
        await make_room(alice)
        url, token = (await upload(alice))["url"], server.token("alice")
        for method in ("GET", "HEAD"):
            assert (await plain.request(method, url, params={"token": token})).status_code == 200
    out, err = capsys.readouterr()
    assert f"{url}?token=[redacted]" in err, "the log was looked at"
    assert token.split(".")[2] not in out + err


# -- links -----------------------------------------------------------------------------------------------------------------


async def test_a_link_needs_no_token_for_an_hour(tmp_path: Path) -> None:
    clock = HandClock()
    async with (
        served(files=str(tmp_path), clock=clock) as server,
        people(server, "alice", "bob") as (alice, bob),
        server.http(None) as plain,
    ):
        await make_room(alice, visibility="private")
        one, other = await upload(alice), await upload(alice, b"another")
        assert refused(await bob.post(f"{one['url']}/link")) == (404, "not_found")
        link = good(await alice.post(f"{one['url']}/link"))
        assert link["expires_at"] == "2027-01-15T09:00:00.000Z"
        assert link["url"].startswith(one["url"] + "?")
        assert (await plain.get(link["url"])).content == PNG
        assert (await plain.get(link["url"], headers={"range": "bytes=1-3"})).content == PNG[1:4]
        assert (await plain.head(link["url"])).status_code == 200
        query = link["url"].partition("?")[2]
        for wrong in (
            f"{other['url']}?{query}",
            link["url"][:-1] + ("A" if link["url"][-1] != "A" else "B"),
            link["url"].replace("expires=1", "expires=2"),
            link["url"].replace("expires=", "expires=-"),
            f"{one['url']}?signature=",
            f"{one['url']}?signature=%ff&expires=%00",
        ):
            assert refused(await plain.get(wrong)) == (403, "forbidden"), wrong
            assert refused(await alice.get(wrong)) == (403, "forbidden"), "a bad link is not saved by a token"
        clock.advance(LIFETIME - 1)
        assert (await plain.get(link["url"])).status_code == 200
        clock.advance(1)
        assert refused(await plain.get(link["url"])) == (403, "forbidden")


async def test_a_link_ends_with_its_file(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,), server.http(None) as plain:
        await make_room(alice)
        info = await upload(alice)
        link = good(await alice.post(f"{info['url']}/link"))["url"]
        number = await send(alice, info)
        assert (await plain.get(link)).status_code == 200
        good(await alice.delete(f"{ROOM}/messages/{number}"))
        assert refused(await plain.get(link)) == (404, "not_found")


async def test_a_server_without_a_secret_has_no_links(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"secret": None, "public_key": pem(RSA), "files": str(tmp_path)}
    async with served(**settings) as server, server.http() as key:
        good(await key.post("/api/rooms", json={"room_id": "tea"}), 201)
        info = good(await key.post(f"{ROOM}/files?as_user=bot", content=PNG), 201)
        assert refused(await key.post(f"{info['url']}/link?as_user=bot")) == (503, "unavailable")
        assert refused(await key.get(f"{info['url']}?expires=9999999999&signature=x")) == (503, "unavailable")
        assert (await key.get(info["url"])).content == PNG


@given(st.text(max_size=40), st.text(max_size=60), st.integers(0, 2**33))
def test_only_what_was_signed_is_a_link(expires: str, signature: str, now: int) -> None:
    links = Links(settings_for())
    with pytest.raises(ClientError, match="forbidden"):
        links.check("ab" * 16, expires, signature, now)
    query = parse_qs(urlsplit("?" + links.sign("ab" * 16, now)[0]).query)
    links.check("ab" * 16, query["expires"][0], query["signature"][0], now)
    with pytest.raises(ClientError):
        links.check("cd" * 16, query["expires"][0], query["signature"][0], now)
    other = Links(settings_for(secret="another secret of the tests, forty bytes"))
    with pytest.raises(ClientError):
        other.check("ab" * 16, query["expires"][0], query["signature"][0], now)


# -- how much --------------------------------------------------------------------------------------------------------------


async def test_large_files_are_refused_before_and_while_they_come(tmp_path: Path) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(64 * 1024)

    async with served(files=str(tmp_path), max_file_size=3 << 20) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        where = f"{ROOM}/files"
        assert good(await alice.post(where, content=pieces(48)), 201)["size"] == 3 << 20, (
            "more than other bodies may have"
        )
        assert refused(await alice.post(where, content=pieces(49))) == (413, "too_large")
        assert refused(await alice.post(where, content=bytes((3 << 20) + 1))) == (413, "too_large")
        assert refused(await alice.post(where, content=b"")) == (422, "invalid_message")
        for form in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            answer = await alice.post(where, content=b"--x", headers={"content-type": form})
            assert refused(answer) == (422, "invalid_message")
            assert "not a form" in answer.text
        server.hubbub.uploads.sweep(1e9)
        await until(lambda: len(stored(tmp_path)) == 1, "what was refused is gone")
    async with served(files=str(tmp_path), max_file_size=0) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        answer = await alice.post(f"{ROOM}/files", content=PNG)
        assert refused(answer) == (403, "forbidden")
        assert "HUBBUB_MAX_FILE_SIZE" in answer.text


async def test_a_user_has_so_many_bytes_in_all(database_url: str, tmp_path: Path) -> None:
    async with (
        served(database_url, files=str(tmp_path / "f"), user_file_bytes=3 * len(PNG)) as server,
        people(server, "alice", "bob") as (alice, bob),
    ):
        await make_room(alice, "bob")
        first, _, third = [await upload(alice) for _ in range(3)]
        answer = await alice.post(f"{ROOM}/files", content=b"x")
        assert refused(answer) == (429, "too_many")
        await upload(bob)
        number = await send(alice, first)
        good(await alice.delete(f"{ROOM}/messages/{number}"))
        await upload(alice)
        assert refused(await alice.post(f"{ROOM}/files", content=b"x")) == (429, "too_many")
        good(await alice.delete(third["url"]), 204)
        await upload(alice)


async def test_a_body_is_not_read_where_it_is_refused(tmp_path: Path) -> None:
    """Only the head of the request is sent, and the answer comes."""
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice, visibility="private")
        for user, length, status in (("bob", 1000, b"404"), ("alice", 1 << 40, b"413")):
            answer = await asyncio.wait_for(half(server, user, length, b""), DEADLINE)
            assert answer.startswith(b"HTTP/1.1 " + status), answer


async def half(server: Running, user: str, length: int, body: bytes, *, cut: bool = False) -> bytes:
    """Begin an upload; returns the beginning of the answer, or (cut) goes away without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {ROOM}/files?name=x HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {server.token(user)}\r\n"
    writer.write(f"{head}content-length: {length}\r\n\r\n".encode() + body)
    await writer.drain()
    try:
        return b"" if cut else await reader.readline()
    finally:
        if cut:
            await until(lambda: any(path.stat().st_size for path in _incoming(server)), "it is being written")
        writer.transport.abort()


def _incoming(server: Running) -> list[Path]:
    directory = Path(server.hubbub.settings.files) / "incoming"
    return list(directory.glob("*")) if directory.is_dir() else []


async def test_it_is_written_while_it_comes(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)

        async def pieces() -> AsyncIterator[bytes]:
            yield bytes(1 << 20)
            await until(lambda: any(path.stat().st_size >= 1 << 19 for path in _incoming(server)), "half is on disk")
            yield b"the rest"

        answer = await alice.post(f"{ROOM}/files", content=pieces())
        assert good(answer, 201)["size"] == (1 << 20) + 8


async def test_an_upload_that_stands_still_is_given_up(tmp_path: Path) -> None:
    async with served(files=str(tmp_path), message_timeout=0.05) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        answer = await asyncio.wait_for(half(server, "alice", 5 << 20, bytes(1 << 20)), DEADLINE)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        await until(lambda: not stored(tmp_path), "its bytes are gone")


async def test_nothing_is_left_of_an_upload_that_was_cut_off(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        await half(server, "alice", 5 << 20, bytes(1 << 20), cut=True)
        await until(lambda: not stored(tmp_path), "its bytes are gone")
        async with asyncio.timeout(DEADLINE):
            while [row for row in await rows(server) if row[2] is None]:
                await asyncio.sleep(0)
        server.hubbub.uploads.sweep(1e9)
        async with asyncio.timeout(DEADLINE):
            while await rows(server):
                await asyncio.sleep(0)


# -- until when ------------------------------------------------------------------------------------------------------------


async def test_what_nobody_can_see_any_more_is_removed(database_url: str, tmp_path: Path) -> None:
    clock = HandClock()
    async with served(database_url, files=str(tmp_path / "files"), clock=clock) as server:
        async with people(server, "alice") as (alice,):
            await make_room(alice)
            sent, unsent, back = await upload(alice), await upload(alice), await upload(alice)
            await send(alice, sent)
            good(await alice.delete(back["url"]), 204)
            assert refused(await alice.get(back["url"])) == (404, "not_found")
            assert refused(await alice.delete(back["url"])) == (404, "not_found")
        server.advance(60)
        await until(
            lambda: stored(tmp_path / "files") == sorted([sent["id"], unsent["id"]]), "what was taken back is gone"
        )
        server.advance(DAY - 61)
        async with people(server, "alice") as (alice,):
            assert (await alice.get(unsent["url"])).status_code == 200
        server.advance(61)
        await until(lambda: stored(tmp_path / "files") == [sent["id"]], "what was never sent is gone")
        async with people(server, "alice") as (alice,):
            assert (await alice.get(sent["url"])).content == PNG
            assert refused(await alice.get(unsent["url"])) == (404, "not_found")
        async with asyncio.timeout(DEADLINE):
            while [row[0] for row in await rows(server)] != [sent["id"]]:
                await asyncio.sleep(0)


async def test_what_cannot_be_removed_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    async with served(files=str(tmp_path), clock=clock) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        info = await upload(alice)
        place = tmp_path / info["id"][:2] / info["id"][2:]
        good(await alice.delete(info["url"]), 204)
        place.unlink()
        place.mkdir()  # as good as a disk that does not let go of it
        server.advance(60)
        await until(lambda: "could not remove an attachment" in caplog.text)
        assert [row[0] for row in await rows(server)] == [info["id"]]
        place.rmdir()
        server.advance(60)
        async with asyncio.timeout(DEADLINE):
            while await rows(server):
                await asyncio.sleep(0)


async def test_bytes_that_are_lost_are_not_found(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        info = await upload(alice)
        (tmp_path / info["id"][:2] / info["id"][2:]).unlink()
        assert refused(await alice.get(info["url"])) == (404, "not_found")
        assert (await alice.head(info["url"])).status_code == 404


async def test_a_file_is_sent_once(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        info = await upload(alice)
        body = {"message": "look", "files": [info["id"]]}
        answers = await asyncio.gather(*(alice.post(f"{ROOM}/messages", json=body) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 404, 404, 404, 404]


async def test_a_file_is_in_one_message_of_a_turn(tmp_path: Path) -> None:
    async with (
        served(files=str(tmp_path)) as server,
        people(server, "alice") as (alice,),
        server.client("alice") as socket,
    ):
        await make_room(alice)
        await socket.ask("join_room", room_id="tea")
        info = await upload(alice)
        for ref in "abc":
            await socket.send("chat_message", room_id="tea", message="x", files=[info["id"]], ref=ref)
        assert (await socket.expect("error", ref="b"))["code"] == "not_found"
        await socket.expect("error", ref="c")


async def test_the_bytes_of_a_deleted_message_go(tmp_path: Path) -> None:
    async with served(files=str(tmp_path)) as server, people(server, "alice") as (alice,):
        await make_room(alice)
        number = await send(alice, await upload(alice))
        good(await alice.delete(f"{ROOM}/messages/{number}"))
        server.hubbub.uploads.sweep(1e9)
        await until(lambda: not stored(tmp_path), "its bytes are gone")
