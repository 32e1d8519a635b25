"""The documentation says what the code does: messages, codes, settings, links and the code in it are compared with it."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command

from hubbub.asyncapi.own import OWN
from hubbub.auth import Grants
from hubbub.cli import cli
from hubbub.commands import publication_of
from hubbub.errors import HTTP_STATUS, CloseCode, ErrorCode
from hubbub.features.chat import asks, tells
from hubbub.features.chat.access import Act, Caller, MemberRow, RoomRow, allows
from hubbub.features.chat.importing import import_room
from hubbub.features.chat.tx import COMMANDS
from hubbub.messages import ClientMessage, Inbox, ServerMessage
from hubbub.metrics import EngineStats, Metrics
from hubbub.settings import ChannelOptions, Settings
from tests.chat_support import world
from tests.databases import GIVEN
from tests.support import API_KEY, SECRET, Client, HandClock, running, settings_for

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "bench/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def section(text: str, heading: str, level: int = 2) -> str:
    """What stands under a heading, up to the next of its level or above."""
    mark = "#" * level
    found = re.search(rf"^{mark} {re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {mark} {heading}"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads; cells are stripped."""
    lines = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    heads = {index - 1 for index, row in enumerate(cells) if set("".join(row)) <= {"-"} and index}
    return [row for index, row in enumerate(cells) if index not in heads and not set("".join(row)) <= {"-"}]


def code_names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# -- the wire protocol -----------------------------------------------------------------------------------------------

Fields = dict[str, set[str]]


def structs(base: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for struct in base.__subclasses__():
        if struct.__module__ not in OWN:
            continue  # of an app, which other tests may have made
        if struct.__struct_config__.tag is not None and struct.__struct_config__.tag != struct.__name__:
            yield struct
        yield from structs(struct)


def fields_of(base: type[msgspec.Struct]) -> Fields:
    """Message type → the fields that its structs have on the wire, but for ``ref``."""
    found: Fields = {}
    for struct in structs(base):
        found.setdefault(str(struct.__struct_config__.tag), set()).update(struct.__struct_encode_fields__)
    return {kind: fields - {"ref"} for kind, fields in found.items()}


CLIENT = fields_of(ClientMessage)
SERVER = fields_of(ServerMessage)
# written by hand for speed, so no struct has them
SERVER["publication"] = set(
    json.loads(publication_of("c", b"1", ChannelOptions(), key="k", user="u").head + b"1" + b"}")
) | {"data", "user_id", "key"} - {"type"}
SERVER["publication"] -= {"type"}
SERVER["message"] = {"room_id", "data"}
PARTS: dict[str, type[msgspec.Struct]] = {
    "A room": tells.RoomInfo,
    "One's own side of a room": tells.MyRoom,
    "A message": tells.MessageInfo,
    "A file": tells.FileInfo,
    "A version": tells.VersionInfo,
    "A member": tells.MemberInfo,
    "A ban": tells.BanInfo,
    "A hit": tells.HitInfo,
    "A report": tells.ReportInfo,
    "An entry of the audit log": tells.AuditInfo,
}
"""What the section on objects describes, by heading."""
SERVER["notification"] |= {"offset"}

SIDES = [("Client → server", CLIENT), ("Server → client", SERVER)]
both_sides = pytest.mark.parametrize(("heading", "known"), SIDES, ids=["client", "server"])


def test_the_hand_written_messages_have_the_fields_that_the_docs_are_compared_with() -> None:
    publication = publication_of("c", b"1", ChannelOptions(), key="k", user="u")
    publication.offset = 7
    assert set(json.loads(publication.payload)) == SERVER["publication"] | {"type"}


@both_sides
def test_every_message_is_described_and_every_described_message_exists(heading: str, known: Fields) -> None:
    described = re.findall(r"^### `(\w+)`$", section(PROTOCOL, heading), re.MULTILINE)
    assert sorted(described) == sorted(known)


@both_sides
def test_every_field_is_described_and_every_described_field_exists(heading: str, known: Fields) -> None:
    side = section(PROTOCOL, heading)
    described = {
        kind: {name for row in rows(section(side, f"`{kind}`", 3)) for name in code_names(row[0])} for kind in known
    }
    assert described == known


@both_sides
def test_every_example_is_a_message_of_its_kind(heading: str, known: Fields) -> None:
    side = section(PROTOCOL, heading)
    client = Inbox(cast(Any, list(structs(ClientMessage))))
    for kind, fields in known.items():
        examples = blocks(section(side, f"`{kind}`", 3), "json")
        assert examples, f"{kind} has no example"
        for example in examples:
            message = json.loads(example)
            assert message["type"] == kind
            assert set(message) - {"type", "ref"} <= fields, example
            if known is CLIENT:
                client.decode(example)


@pytest.mark.parametrize("heading", PARTS)
def test_every_field_of_an_object_is_described(heading: str) -> None:
    table = rows(section(section(PROTOCOL, "Objects"), heading, 3))
    assert {name for row in table for name in code_names(row[0])} == set(PARTS[heading].__struct_encode_fields__)


def test_every_message_of_clients_is_in_the_table_of_them() -> None:
    table = section(PROTOCOL, "Client → server").partition("\n### ")[0]
    assert sorted(re.findall(r"\[`(\w+)`\]\(#\1\)", table)) == sorted(CLIENT)


def test_server_examples_fit_the_structs() -> None:
    side = section(PROTOCOL, "Server → client")
    for struct in structs(ServerMessage):
        kind = str(struct.__struct_config__.tag)
        if kind != "ack":
            for example in blocks(section(side, f"`{kind}`", 3), "json"):
                msgspec.json.decode(example, type=struct)
    for example in blocks(section(side, "`ack`", 3), "json"):
        fitting = [
            each for each in structs(ServerMessage) if each.__struct_config__.tag == "ack" and fits(example, each)
        ]
        assert fitting, example


def fits(example: str, struct: type[msgspec.Struct]) -> bool:
    """Whether a message has all fields of a struct that must be there, and no others."""
    given = set(json.loads(example)) - {"type"}
    required = {field.encode_name for field in msgspec.structs.fields(struct) if field.required}
    return required <= given <= set(struct.__struct_encode_fields__)


def test_client_defaults_and_bounds_are_described() -> None:
    """Required fields are called so, and no others."""
    side = section(PROTOCOL, "Client → server")
    for struct in structs(ClientMessage):
        required = {field.encode_name for field in msgspec.structs.fields(struct) if field.required}
        table = rows(section(side, f"`{struct.__struct_config__.tag}`", 3))
        assert {code_names(row[0])[0] for row in table if row[2] == "required"} == required


def test_every_error_code_is_described_with_its_http_status() -> None:
    described = {code_names(row[0])[0]: int(row[2]) for row in rows(section(PROTOCOL, "Errors"))}
    assert described == {str(code): HTTP_STATUS[code] for code in ErrorCode}


def test_who_may_do_what_is_as_the_table_says() -> None:
    for what, *said in rows(section(section(PROTOCOL, "Rooms and members"), "Roles", 3)):
        acts, options = ROLE_ROWS[what]
        for act in acts:
            allowed = [may(act, role, **options) for role in (None, "member", "moderator", "owner")]
            assert [{"yes": True, "no": False}[cell] for cell in said] == allowed, (what, act)


def test_every_act_is_in_the_table_of_roles() -> None:
    table = rows(section(section(PROTOCOL, "Rooms and members"), "Roles", 3))
    assert [row[0] for row in table] == list(ROLE_ROWS)
    assert {act for acts, _ in ROLE_ROWS.values() for act in acts} == set(Act)


ROLE_ROWS: dict[str, tuple[list[Act], dict[str, Any]]] = {
    "see that it is there (`get_room`, `list_rooms`)": ([Act.SEE], {}),
    "join": ([Act.JOIN], {}),
    "hear it, `list_members`, `catch_up`": ([Act.READ], {}),
    "read what is kept: `get_messages`, `get_versions`, `list_pins`, `list_receipts`, `mark_read`, `search_messages`, "
    "files; `report_message`": ([Act.BROWSE], {}),
    "`chat_message`, upload": ([Act.WRITE], {}),
    "`chat_message` in a `broadcast` room": ([Act.WRITE], {"kind": "broadcast"}),
    "`add_reaction`, `remove_reaction`": ([Act.REACT], {}),
    "`edit_message`: one's own": ([Act.EDIT], {}),
    "`delete_message`: one's own": ([Act.DELETE], {}),
    "`delete_message`: of others": ([Act.MODERATE], {}),
    "`pin_message`, `unpin_message`": ([Act.PIN], {}),
    "`pin_message`, `unpin_message` in a private `group`": ([Act.PIN], {"visibility": "private"}),
    "`@room` in a `group` with receipts": ([Act.CALL_ALL], {}),
    "`@room` elsewhere": ([Act.CALL_ALL], {"kind": "large"}),
    "`invite_members`": ([Act.INVITE], {}),
    "`kick_member`, `ban_member`, `unban_member`, `mute_member`, `unmute_member`": ([Act.REMOVE], {}),
    "`list_bans`, `list_reports`, `close_report`, `get_audit`": ([Act.REVIEW], {}),
    "`update_room`: name, topic, history, slow mode": ([Act.CONFIGURE], {}),
    "`update_room`: kind, visibility, retention; `set_role`": ([Act.ROLES], {}),
    "`update_room`: archive, open again": ([Act.ARCHIVE], {}),
    "export": ([Act.EXPORT], {}),
}
"""What each row of the table of roles is about; a public `group`, unless it says otherwise."""


def may(act: Act, role: Any, *, kind: Any = "group", visibility: Any = "public") -> bool:
    """Whether somebody with a role (None: no member) may do something in a room."""
    room = RoomRow()
    room.id, room.kind, room.visibility, room.archived_at, room.member_count = "r", kind, visibility, None, 3
    member = MemberRow("alice", role, 0, 0, "all", 0, 0, 0, 0, 0) if role is not None else None
    return allows(room, member, Caller("alice", Grants()), act, 0, group_limit=100)


def test_every_close_code_is_described_with_whether_to_come_back() -> None:
    described = {int(row[0]): row[2].startswith("yes") for row in rows(section(PROTOCOL, "Close codes"))}
    assert described == {int(code): code.comes_back for code in CloseCode}


# -- the exchange, and the HTTP API -----------------------------------------------------------------------------------

EXCHANGE = [line.split(maxsplit=2) for line in blocks(section(PROTOCOL, "An exchange"), "text")[0].splitlines()]


@pytest.mark.anyio
async def test_the_exchange_goes_as_it_is_written() -> None:
    """Each line is sent, or comes, in its place; of what changes from one time to the next only the form is compared."""
    async with running(settings_for(), clock=HandClock()) as server, AsyncExitStack() as stack:
        people: dict[str, Client] = {}
        epoch = ""
        for index, (name, sign, text) in enumerate(EXCHANGE):
            if name not in people and sign != "✕":
                people[name] = await stack.enter_async_context(server.client(name))
            if sign == "✕":
                await people.pop(name).connection.close()
            if sign != "→":
                continue
            message = json.loads(text)
            if message.get("since"):
                message["since"]["epoch"] = epoch
            came = await step(people, name, message)
            epoch = next((each["position"]["epoch"] for each in came[name] if "position" in each), epoch)
            for other, heard in came.items():
                assert [plain(each) for each in heard] == [plain(each) for each in written(index, other)], text


async def step(people: dict[str, Client], name: str, message: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What each hears after one has sent something."""
    fields = {**message}
    await people[name].send(fields.pop("type"), **fields)
    came: dict[str, list[dict[str, Any]]] = {each: [] for each in people}
    while not came[name] or came[name][-1].get("ref") != message["ref"]:
        came[name].append(await people[name].receive())
    for other, client in people.items():
        came[other] += await client.drained()
    return came


def written(index: int, name: str) -> Iterator[dict[str, Any]]:
    """What the page says that somebody hears after a line."""
    for other, sign, text in EXCHANGE[index + 1 :]:
        if sign == "→":
            return
        if other == name and sign == "←":
            yield json.loads(text)


def plain(message: dict[str, Any]) -> str:
    """A message without what is another one each time."""
    text = json.dumps(message, sort_keys=True)
    text = re.sub(r'"\d{4}-\d\d-\d\dT[\d:.]+Z"', '"a time"', text)
    text = re.sub(r'"epoch": "\w+"', '"epoch": "…"', text)
    return re.sub(r'"id": "[\w-]+"', '"id": "…"', text)


@pytest.mark.anyio
async def test_the_tables_of_the_http_api_are_those_of_the_server() -> None:
    api = section(PROTOCOL, "The HTTP API")
    described = {name for row in rows(api) for name in code_names(row[0])[:1]}
    async with running(settings_for()) as server, server.http() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    offered = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described == {each.replace(":path}", "}") for each in offered if " /api/" in each}


def test_the_calls_of_the_chat_are_those_of_its_commands() -> None:
    table = rows(section(section(PROTOCOL, "The HTTP API"), "The chat", 3))
    described = {code_names(row[0])[0]: code_names(row[1])[0] for row in table if code_names(row[1])}
    known = {each.http: str(each.message.__struct_config__.tag) for each in COMMANDS.values() if each.http}
    known["POST /api/rooms/{room_id}/messages"] = str(asks.ChatMessage.__struct_config__.tag)
    assert {call: kind for call, kind in described.items() if call in known} == known


ASKED: dict[str, Any] = {
    "id": 1, "user_id": "bob", "user_ids": ["bob"], "emoji": "👍", "message": "x", "role": "member", "notify": "all",
    "seconds": 60, "reason": "x", "since": {"epoch": "x", "offset": 0}, "query": "x", "name": "x",
}  # fmt: skip
MAKES = {asks.CreateRoom}
"""What makes the room that it names."""


@pytest.mark.anyio
async def test_what_is_hidden_looks_like_what_is_not_there() -> None:
    settings = settings_for(rate_limit=0, user_rate_limit=0, abuse_limit=0)
    kinds = [
        struct for struct in structs(ClientMessage) if "room_id" in struct.__struct_fields__ and struct not in MAKES
    ]
    assert len(kinds) > 30
    async with running(settings) as server, server.client("alice") as alice, server.client("eve") as eve:
        await alice.ask("create_room", room_id="hidden", visibility="private", members=["bob"])
        await alice.ask("join_room", room_id="hidden")
        await alice.ask("chat_message", room_id="hidden", message="a secret")
        for struct in kinds:
            required = {field.encode_name for field in msgspec.structs.fields(struct) if field.required}
            fields = {name: ASKED[name] for name in required - {"room_id"}}
            answers = [await said_of(eve, struct, {**fields, "room_id": room}) for room in ("hidden", "nothing")]
            assert answers[0] == answers[1]
            assert answers[0]["code"] in ("not_found", "not_joined"), answers


async def said_of(client: Client, struct: type[msgspec.Struct], fields: dict[str, Any]) -> dict[str, Any]:
    """The answer, without what names the room."""
    answer = await client.ask(str(struct.__struct_config__.tag), **fields)
    text = json.dumps({key: answer[key] for key in answer if key != "ref"})
    return cast("dict[str, Any]", json.loads(text.replace(fields["room_id"], "…")))


# -- settings --------------------------------------------------------------------------------------------------------


def test_the_settings_tables_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings-table"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@named
def test_every_named_setting_exists(page: Path) -> None:
    known = {f"HUBBUB_{name.upper()}" for name in Settings.model_fields} | {"HUBBUB_CHROMIUM", "HUBBUB_WORKERS", GIVEN}
    for name, more in re.findall(r"\b(HUBBUB_[A-Z_]+[A-Z])(…?)", page.read_text()):
        found = any(one.startswith(name) for one in known) if more else name in known
        assert found, f"{page.name} names {name}"


def number(text: str) -> float:
    """``1,024``, ``64 KiB``, ``10 s``, ``20/s`` as a number."""
    digits, unit = re.match(r"([\d,.]*\d)\s*(KiB|MiB)?", text).groups()  # type: ignore[union-attr]  # matched before
    return float(digits.replace(",", "")) * {"KiB": 1 << 10, "MiB": 1 << 20, None: 1}[unit]


def default_of(setting: str) -> float:
    return float(Settings.model_fields[setting.removeprefix("HUBBUB_").lower()].default)


@named
def test_named_defaults_are_the_defaults(page: Path) -> None:
    """``10 s (`HUBBUB_AUTH_TIMEOUT`)`` is true."""
    pattern = r"(\d[\d,.]*)(?: (KiB|MiB|\w+)|/s)?(?: \w+){0,2}\s\(`(HUBBUB_\w+)`\)"
    for digits, unit, setting in re.findall(pattern, page.read_text()):
        said = number(f"{digits} {unit}" if unit in ("KiB", "MiB") else digits)
        assert said == default_of(setting), f"{page.name}: {setting} is {default_of(setting)}, not {digits} {unit}"


def test_the_limits_in_the_protocol_are_the_defaults() -> None:
    for what, settings, values, _ in rows(section(PROTOCOL, "Limits")):
        said = [number(value) for value in values.split(", ")]
        assert said == [default_of(name) for name in code_names(settings)], what


# -- links, commands, modules, metrics -------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@named
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: there is no such heading"


@named
def test_the_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in re.findall(r"`make ([a-z]+)[^`]*`", page.read_text()):
        assert command in targets, f"{page.name} names `make {command}`"
    for script in re.findall(r"\b(scripts/[\w-]+)", page.read_text()):
        assert (ROOT / script).exists(), f"{page.name} names {script}"


@named
def test_the_named_tests_exist(page: Path) -> None:
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / file).exists(), f"{page.name} names {file}"
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{page.name} names {file}::{test}"


@pytest.mark.anyio
async def test_the_lines_of_an_export_and_of_another_program_are_imported(sqlite_url: str) -> None:
    exported, said = blocks((ROOT / "docs" / "chat.md").read_text(), "json")
    async with world(sqlite_url) as it:
        done = await import_room(it.store, exported.encode().splitlines(), now=it.now)
        assert (done.room_id, done.messages, done.members) == ("plans", 2, 1)
        done = await import_room(it.store, said.encode().splitlines(), now=it.now, room_id="archive")
        page = await it.asks("alice", asks.GetMessages(room_id="archive"), admin=True)
        assert [each.timestamp[:19] for each in page.messages] == ["2026-11-24T19:37:00", "2026-11-24T19:37:00"]


@named
def test_the_commands_of_hubbub_exist(page: Path) -> None:
    app = get_command(cli)
    assert isinstance(app, Group)
    for command, options in re.findall(r"(?:^|`|bin/)hubbub ([a-z]+)\b([^`\n]*)", page.read_text(), re.MULTILINE):
        found = app.commands.get(command)
        assert found is not None, f"{page.name} names hubbub {command}"
        known = {option for param in found.params for option in (*param.opts, *param.secondary_opts)}
        if isinstance(found, Group):
            known |= {option for inner in found.commands.values() for param in inner.params for option in param.opts}
        for option in re.findall(r" (--[a-z][a-z-]+)", options):
            assert option in known, f"{page.name} names hubbub {command} {option}"


def test_every_module_is_described() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    house = ROOT / "src" / "hubbub"
    modules = {str(path.relative_to(house)) for path in house.rglob("*.py") if path.stem != "__init__"}
    described = set(
        re.findall(r"`((?!tests/)(?:[a-z]+/(?:chat/|versions/|valkey/)?)?\w+\.py)`", section(text, "The floors"))
    )
    assert described == modules


def test_every_metric_is_described() -> None:
    table = section((ROOT / "docs" / "operations.md").read_text(), "Metrics")
    described = {name.removesuffix("_total") for row in rows(table) for name in code_names(row[0])}
    metrics = Metrics()
    families = metrics.families(
        active=0, users=0, channels=0, behind=0, running=0, received={}, deliveries=0, batches=0, publications=0,
        history_bytes=0, below={}, store=metrics.store.families(0, True),
        engine=EngineStats().families(True, "", "", 1, {}, {}),
    )  # fmt: skip
    assert described == {family.name for family in families}


@named
def test_nothing_names_the_machine_it_was_written_on(page: Path) -> None:
    assert not re.search(r"/(work|root|home|tmp)/", page.read_text())


# -- the code in it --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a block of code as a module of its own; returns its names."""
    monkeypatch.setenv("HUBBUB_DATA_DIR", str(tmp_path))

    def run(code: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "block"}
        exec(compile(code, "<block>", "exec", dont_inherit=True), namespace)
        return namespace

    return run


@pytest.mark.anyio
async def test_the_readme_example_works(run: Any) -> None:
    app_code, _ = blocks((ROOT / "README.md").read_text(), "python")
    async with running(app=run(app_code)["app"]) as server, server.client("alice") as alice:
        assert await alice.refused("subscribe", channel="orders:bob") == "forbidden"
        assert (await alice.ask("order", what="coffee"))["code"] == "sold_out"
        assert (await alice.ask("order", what="tea", count=2)) == {"type": "order.reply", "ref": "ask-3", "total": 6}
        assert (await alice.ask("order"))["message"] == "Field required - at `$.what`"
        async with server.http() as backend:
            assert (await backend.post("/orders/alice/ship")).json() == 1
            assert "order.reply" in (await backend.get("/asyncapi.json")).text
        assert (await alice.expect("notification"))["data"]["title"] == "Shipped"


def test_the_readme_s_test_passes(run: Any) -> None:
    run("\n".join(blocks((ROOT / "README.md").read_text(), "python")))


GUIDE = [
    code
    for page in ("guide.md", "testing.md", "apps.md")
    for code in blocks((ROOT / "docs" / page).read_text(), "python")
]


@pytest.mark.parametrize("code", GUIDE, ids=lambda code: str(GUIDE.index(code)))
def test_the_guide_s_code_runs(run: Any, code: str) -> None:
    names = run(code)
    assert "FastAPI" in names
    for name, value in names.items():
        if name.startswith("test_"):
            made = value()
            if inspect.iscoroutine(made):
                asyncio.run(made)


@pytest.mark.anyio
async def test_the_guide_s_requests_work_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guide's own client and backend send: query parameters, and a chat message without a room."""
    async with running() as server, server.client("alice") as alice:
        await alice.send("chat_message", message="Hello World")
        assert (await alice.receive())["type"] == "message"
        async with server.http(API_KEY) as backend:
            params = {"user_id": "alice", "title": "Shipped", "message": "On its way"}
            sent = await backend.post("/api/notifications/send", params=params)
            assert sent.json()["status"] == "sent"
            everybody = await backend.post("/api/notifications/broadcast", params={"title": "T", "message": "M"})
            assert everybody.json()["status"] == "broadcasted"
        assert (await alice.expect("notification"))["data"]["notification_type"] == "info"
        await alice.expect("broadcast_notification")


def test_the_settings_page_s_command_line_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    (channels,) = re.findall(r"HUBBUB_CHANNELS='(.+)'", text)
    monkeypatch.setenv("HUBBUB_CHANNELS", channels)
    monkeypatch.setenv("HUBBUB_SECRET", SECRET)
    assert Settings().channels["ticks:*"].slow == "conflate"
