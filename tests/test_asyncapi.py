"""The AsyncAPI document: it is well formed, it is complete, what it says is what goes over the wire, and its page is safe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from fastapi import FastAPI
from msgspec import Meta, Struct
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, computed_field
from pydantic_core import CoreSchema, core_schema

from hubbub import Hubbub, HubRouter, Session
from hubbub.asyncapi import describe
from hubbub.asyncapi.own import CLIENT, SERVER, client_structs, server_structs
from hubbub.asyncapi.schemas import NoSample, Sampler
from hubbub.messages import Inbox
from hubbub.toolkit.shapes import own_type
from tests.support import Running, running, settings_for

pytestmark = pytest.mark.anyio


class Cancel(Struct):
    """Which order."""

    order_id: Annotated[int, Meta(ge=1, description="As on the <invoice>.")]
    reason: Annotated[str, Meta(max_length=20, examples=["late & lost"])] = ""


class Cancelled(Struct, tag_field="type", tag="order.cancelled"):
    order_id: int
    by: str


class Refused(Struct, tag_field="type", tag="order.refused"):
    reason: Literal["shipped", "unknown"]


class Bid(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: Annotated[int, Field(gt=0, multiple_of=5)]
    lot: UUID
    most: int | None = Field(default=None, alias="max")


class Price(BaseModel):
    net: int = 100

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's own documentation does
    @property
    def gross(self) -> int:
        return self.net + self.net // 5


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Move(Struct):
    x: float
    y: float


def shop(**options: Any) -> Hubbub:
    """An app with handlers and channels of all kinds."""
    app = FastAPI(title="Shop <script>alert(1)</script>", version="2.1", description="Orders & <b>more</b>.")
    hub = Hubbub(app, settings=settings_for(rate_limit=0), **options)
    router = HubRouter(prefix="order.")

    @router.on("cancel")
    async def cancel(session: Session, message: Cancel) -> Cancelled | Refused | None:
        """Cancel an order.

        Not </p><script>alert(2)</script> when it is `shipped`.
        """
        if message.order_id == 3:
            return None
        return Refused("unknown") if message.order_id > 3 else Cancelled(message.order_id, session.user_id)

    @hub.on("auction/bid")
    async def bid(message: Bid) -> Bid:
        return message

    @hub.on
    async def add(a: int, b: int = 2) -> int:
        return a + b

    @hub.on
    async def price(price: Price) -> Price:
        return price

    @hub.on
    async def tree(root: Node, until: datetime | None = None) -> list[Node]:
        return [root]

    @hub.on("counts")
    async def counts(message: dict[str, int]) -> dict[str, int]:
        return message

    @hub.on(anonymous=True)
    def anything(message: dict):  # type: ignore[no-untyped-def,type-arg]  # what it returns is not annotated
        return {"type": "whatever", "n": 1}

    @hub.on
    def nothing() -> None:
        """Do nothing."""

    @hub.channel("boards:{board}:cursors", history=5, slow="conflate")
    class Cursors:
        """Cursors of everybody on a board."""

        async def authorize(self, board: int) -> bool:
            return True

        async def on_subscribe(self, board: int) -> list[Move]:
            return [Move(1, 2)]

        async def on_publish(self, data: Move) -> Move | None:
            """Where my cursor is."""
            return None

    hub.channel("files/{path:path}", history=0, publish="server").visible(seen)
    hub.include_router(router)
    return hub


def seen(data: Move) -> bool:
    return True


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(msgspec.json.encode(describe(shop(), "example.com:8000", secure=True)))
    return made


# -- a small reader of schemas: the words that these documents use ----------------------------------------------------


def at(document: Any, reference: str) -> Any:
    """What a ``$ref`` leads to."""
    assert reference.startswith("#/"), reference
    for part in reference[2:].split("/"):
        document = document[part]
    return document


TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip
ANNOTATIONS = {"title", "description", "default", "examples", "format", "readOnly"}


def fits(value: Any, schema: Any, document: Any) -> bool:
    """Whether a value is valid against a schema of draft 07. An unknown word is an error of the test."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return fits(value, at(document, schema["$ref"]), document)
    return all(
        _holds(word, wanted, value, schema, document) for word, wanted in schema.items() if word not in ANNOTATIONS
    )


def _holds(word: str, wanted: Any, value: Any, schema: Any, document: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match word:
        case "type":
            return isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
        case "const":
            return bool(value == wanted)
        case "enum":
            return bool(value in wanted)
        case "anyOf":
            return any(fits(value, each, document) for each in wanted)
        case "allOf":
            return all(fits(value, each, document) for each in wanted)
        case "properties":
            return not isinstance(value, dict) or all(
                fits(value[name], each, document) for name, each in wanted.items() if name in value
            )
        case "required":
            return not isinstance(value, dict) or set(wanted) <= set(value)
        case "additionalProperties":
            others = set(value) - set(schema.get("properties", ()))
            return all(fits(value[name], wanted, document) for name in others)
        case "items":
            pairs = zip(value, wanted, strict=False) if isinstance(wanted, list) else ((each, wanted) for each in value)
            return all(fits(one, each, document) for one, each in pairs)
        case "minLength" | "minItems":
            return len(value) >= int(wanted)
        case "maxLength" | "maxItems":
            return len(value) <= int(wanted)
        case "pattern":
            return re.search(wanted, value) is not None
        case "minimum":
            return not number or value >= wanted
        case "maximum":
            return not number or value <= wanted
        case "exclusiveMinimum":
            return not number or value > wanted
        case "multipleOf":
            return not number or value % wanted == 0
        case "uniqueItems" | "additionalItems":
            return True
    raise AssertionError(f"the tests cannot read {word!r}")


def named(document: Any, side: str, name: str) -> list[Any]:
    """The payloads of the messages of one type."""
    messages = document["components"]["messages"].items()
    return [each["payload"] for key, each in messages if key.startswith(side + ".") and each["name"] == name]


# -- it is well formed -----------------------------------------------------------------------------------------------


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 50
    for reference in found:
        at(document, reference)


def test_the_required_parts_are_there(document: dict[str, Any]) -> None:
    """AsyncAPI 3.0.0: what the specification calls required, and no names of objects that it does not know."""
    assert document["asyncapi"] == "3.0.0"
    known = {"asyncapi", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    assert {name for name in document if not name.startswith("x-")} == known
    assert {"title", "version"} <= set(document["info"])
    for server in document["servers"].values():
        assert (server["host"], server["protocol"]) == ("example.com:8000", "wss")
    for channel in document["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel.get("parameters", {}))
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
    for message in document["components"]["messages"].values():
        assert message["payload"]["type"] == "object"
        assert "type" in message["payload"]["required"]


def test_keys_are_of_the_characters_that_are_allowed(document: dict[str, Any]) -> None:
    parts = [*document["components"].values(), document["operations"], document["channels"]]
    parts += [channel["messages"] for channel in document["channels"].values()]
    for key in [key for part in parts for key in part]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", key), key


def test_an_operation_s_messages_are_among_its_channel_s(document: dict[str, Any]) -> None:
    for operation in document["operations"].values():
        for part in (operation, operation.get("reply", operation)):
            channel = part["channel"]["$ref"]
            at(document, channel)
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{channel}/messages/")


def test_every_message_is_in_an_operation_of_its_direction(document: dict[str, Any]) -> None:
    used: dict[str, set[str]] = {"client": set(), "server": set()}
    for operation in document["operations"].values():
        assert operation["channel"]["$ref"] in ("#/channels/session", "#/channels/room")
        if operation["channel"]["$ref"] == "#/channels/session":
            sides = ("server", "client") if operation["action"] == "send" else ("client", "server")
            parts = (operation["messages"], operation.get("reply", {}).get("messages", ()))
            for side, messages in zip(sides, parts, strict=True):
                used[side] |= {each["$ref"].rpartition("/")[2] for each in messages}
    for side, keys in used.items():
        assert keys == {key for key in document["components"]["messages"] if key.startswith(side + ".")}


# -- it is complete --------------------------------------------------------------------------------------------------


def test_every_message_of_the_hub_is_in_it(document: dict[str, Any]) -> None:
    hub = shop()
    messages = document["components"]["messages"]
    of_clients = {each["name"] for key, each in messages.items() if key.startswith("client.")}
    of_server = {each["name"] for key, each in messages.items() if key.startswith("server.")}
    assert of_clients == {route.name for route in hub.hub.routes.values()}
    assert of_server >= {str(own_type(struct)) for struct in server_structs()}


def test_it_says_of_every_message_of_hubbub_what_it_is_for() -> None:
    assert set(client_structs()) == set(CLIENT)
    assert set(server_structs()) == set(SERVER)


def test_a_command_of_the_chat_is_an_operation_with_its_reply(document: dict[str, Any]) -> None:
    """From its docstring and its annotations; many messages are called `ack`, and each has its own fields."""
    for name, reply, fields in (
        ("create_room", "room_created", {"room", "created"}),
        ("list_rooms", "rooms", {"rooms", "more"}),
        ("add_reaction", "ack.done", {"room_id", "offset"}),
        ("edit_message", "ack.edit_message", {"room_id", "id", "offset", "version"}),
        ("mark_read", "ack.mark_read", {"room_id", "read", "unread", "mentions", "thread"}),
        ("report_message", "ack.report", {"report"}),
        ("chat_message", "ack.chat_message", {"id", "timestamp", "room_id", "client_id"}),
    ):
        operation = document["operations"][f"receive.{name}"]
        first, error = (each["$ref"].rpartition("/")[2] for each in operation["reply"]["messages"])
        assert (first, error) == (f"server.{reply}", "server.error")
        message = document["components"]["messages"][first]
        assert (message["name"], set(message["payload"]["properties"])) == (
            reply.partition(".")[0],
            fields | {"type", "ref"},
        )
        assert operation["summary"].endswith(".")
    assert document["operations"]["receive.add_reaction"]["summary"] == "Add the caller's reaction to a message."


def test_a_handler_is_an_operation_with_its_replies(document: dict[str, Any]) -> None:
    operations, messages = document["operations"], document["components"]["messages"]
    replies = {
        name: [each["$ref"].rpartition("/")[2] for each in operations[f"receive.{name}"]["reply"]["messages"]]
        for name in ("order.cancel", "add", "nothing", "anything", "auction_bid")
    }
    assert replies == {
        "order.cancel": ["server.ack", "server.order.cancelled", "server.order.refused", "server.error"],
        "add": ["server.add.reply", "server.error"],
        "nothing": ["server.ack", "server.error"],
        "anything": ["server.ack", "server.anything.reply", "server.error"],
        "auction_bid": ["server.auction_bid.reply", "server.error"],
    }
    assert operations["receive.anything"]["x-hubbub-anonymous"] is True
    assert "x-hubbub-anonymous" not in operations["receive.add"]
    assert operations["receive.order.cancel"]["summary"] == "Cancel an order."
    assert messages["client.order.cancel"]["description"].endswith("Which order.")
    assert messages["server.auction_bid.reply"]["name"] == "auction/bid.reply"


def test_a_message_of_the_app_has_its_type_and_ref_beside_its_fields(document: dict[str, Any]) -> None:
    (payload,) = named(document, "client", "order.cancel")
    assert payload["properties"]["type"] == {"const": "order.cancel"}
    assert list(payload["properties"]) == ["type", "ref", "order_id", "reason"]
    assert payload["required"] == ["type", "order_id"]
    assert payload["properties"]["order_id"]["minimum"] == 1
    (strict,) = named(document, "client", "auction/bid")
    assert strict["additionalProperties"] is False
    assert list(strict["properties"]) == ["type", "ref", "amount", "lot", "max"]
    (reply,) = named(document, "server", "add.reply")
    assert reply["properties"]["data"] == {"type": "integer"}
    (cancelled,) = named(document, "server", "order.cancelled")
    assert cancelled["properties"]["type"] == {"const": "order.cancelled"}


def test_pydantic_types_are_told_apart_by_direction(document: dict[str, Any]) -> None:
    (payload,) = named(document, "client", "price")
    assert list(payload["properties"]) == ["type", "ref", "net"]
    (reply,) = named(document, "server", "price.reply")
    assert reply["properties"]["gross"]["type"] == "integer"


def test_channels_are_described(document: dict[str, Any]) -> None:
    channels = document["x-hubbub-channels"]
    assert list(channels) == ["boards:{board}:cursors", "files/{path:path}"]
    cursors, files = channels.values()
    assert cursors["description"] == "Cursors of everybody on a board."
    assert cursors["parameters"] == {"board": {"type": "integer"}}
    assert cursors["hooks"] == ["authorize", "on_subscribe", "on_publish"]
    assert (cursors["options"]["history_size"], cursors["options"]["slow"]) == (5, "conflate")
    assert cursors["subscribe"]["who"] == "authorizer"
    assert fits([{"x": 1, "y": 2}], cursors["subscribe"]["state"], document)
    assert cursors["publish"]["who"] == "subscribers"
    assert at(document, cursors["publish"]["data"]["$ref"])["required"] == ["x", "y"]
    assert at(document, cursors["publish"]["message"]["$ref"])["summary"] == "Where my cursor is."
    assert files["publish"] == {"who": "server"}
    assert at(document, files["publication"]["data"]["$ref"])["required"] == ["x", "y"]
    for entry, good, bad in ((cursors, "boards:7:cursors", "boards:7:8:cursors"), (files, "files/a:b/c", "files/")):
        assert re.search(entry["namePattern"], good)
        assert not re.search(entry["namePattern"], bad)


def orders_of(kind: Any) -> Any:
    """A message type of which others have the same name, down to its parts."""

    order = msgspec.defstruct("Order", [("value", kind)])
    fields: list[Any] = [("orders", list[order]), ("by_name", dict[str, order], {})]  # type: ignore[valid-type]  # it is one
    return msgspec.defstruct("Orders", fields)


def test_two_types_of_one_name_get_two_schemas() -> None:
    hub = Hubbub(FastAPI(), settings=settings_for())
    numbers, words = orders_of(int), orders_of(str)
    for name, kind in (("numbers", numbers), ("words", words), ("again", numbers)):
        hub.on(name)(takes(kind))
    made = describe(hub)
    assert {"Order", "Order-2"} <= set(made["components"]["schemas"])
    assert "Order-3" not in made["components"]["schemas"]
    value = {"numbers": 1, "words": "one", "again": 1}
    for name, other in (("numbers", "words"), ("words", "again"), ("again", "words")):
        (payload,) = named(made, "client", name)
        assert fits({"type": name, "orders": [{"value": value[name]}]}, payload, made)
        assert not fits({"type": name, "orders": [{"value": value[other]}]}, payload, made)


def takes(kind: Any) -> Any:
    """A handler of messages of a type, or with one field of it."""

    async def take(it: Any) -> None: ...

    take.__annotations__["it"] = kind
    return take


def test_a_type_without_a_schema_costs_only_its_own_description(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.no_info_plain_validator_function(lambda value: value)

    hub = Hubbub(FastAPI(), settings=settings_for())
    hub.on("odd")(takes(Odd))
    hub.on("even")(takes(int))
    made = describe(hub)
    assert "no JSON schema" in caplog.text
    assert named(made, "client", "odd")
    assert named(made, "client", "even")[0]["properties"]["it"]["type"] == "integer"


# -- what it says is what goes over the wire -------------------------------------------------------------------------


def test_examples_are_messages(document: dict[str, Any]) -> None:
    """They fit their schemas, and the hub reads those of clients."""
    hub = shop()
    inbox = Inbox(hub.hub.routes)
    for key, message in document["components"]["messages"].items():
        examples = [each["payload"] for each in message.get("examples", ())]
        assert len(examples) == (0 if key == "server.anything.reply" else 1), key
        for example in examples:
            assert fits(example, message["payload"], document), key
            if key.startswith("client."):
                command = inbox.decode(json.dumps(example))
                handler = hub.handlers.get(message["name"])
                if handler is not None and handler.shape is not None:
                    handler.shape.decode(json.dumps(example), is_json=True)
                else:
                    assert own_type(type(command)) == message["name"]


def test_schemas_refuse_what_is_refused(document: dict[str, Any]) -> None:
    for message in (
        {"type": "order.cancel", "order_id": 0},
        {"type": "order.cancel", "order_id": "1"},
        {"type": "order.cancel", "order_id": 1, "reason": "x" * 21},
        {"type": "order.cancel"},
        {"type": "auction/bid", "amount": 7, "lot": "3f2b8c1e-5d0a-4c6e-9b7a-1f2e3d4c5b6a"},
        {"type": "auction/bid", "amount": 5, "lot": "3f2b8c1e-5d0a-4c6e-9b7a-1f2e3d4c5b6a", "other": 1},
        {"type": "add", "a": 1, "ref": "x" * 65},
        {"type": "subscribe", "channel": "c", "since": {"epoch": "e"}},
        {"type": "history", "channel": "c", "limit": 0},
    ):
        payloads = named(document, "client", str(message["type"]))
        assert payloads
        assert not any(fits(message, payload, document) for payload in payloads), message


LOT = "3f2b8c1e-5d0a-4c6e-9b7a-1f2e3d4c5b6a"
SENT: list[dict[str, Any]] = [
    {"type": "ping"},
    {"type": "heartbeat"},
    {"type": "subscribe", "channel": "boards:7:cursors", "presence": True},
    {"type": "publish", "channel": "boards:7:cursors", "data": {"x": 1.5, "y": 2}, "key": "me"},
    {"type": "publish", "channel": "boards:7:cursors", "data": {"x": "1"}},
    {"type": "history", "channel": "boards:7:cursors", "after": 0},
    {"type": "presence", "channel": "boards:7:cursors"},
    {"type": "unsubscribe", "channel": "boards:7:cursors"},
    {"type": "subscribe", "channel": "plain", "since": {"epoch": "no", "offset": 3}},
    {"type": "publish", "channel": "plain", "data": None},
    {"type": "create_room", "room_id": "lobby", "name": "The lobby"},
    {"type": "list_rooms"},
    {"type": "join_room", "room_id": "lobby"},
    {"type": "chat_message", "room_id": "lobby", "message": "hello", "client_id": "1"},
    {"type": "typing", "room_id": "lobby"},
    {"type": "edit_message", "room_id": "lobby", "id": 1, "message": "hello all"},
    {"type": "add_reaction", "room_id": "lobby", "id": 1, "emoji": "👍"},
    {"type": "remove_reaction", "room_id": "lobby", "id": 1, "emoji": "👍"},
    {"type": "pin_message", "room_id": "lobby", "id": 1},
    {"type": "list_pins", "room_id": "lobby"},
    {"type": "unpin_message", "room_id": "lobby", "id": 1},
    {"type": "get_versions", "room_id": "lobby", "id": 1},
    {"type": "chat_message", "room_id": "lobby", "message": "in a thread", "thread": 1},
    {"type": "get_messages", "room_id": "lobby", "limit": 10},
    {"type": "mark_read", "room_id": "lobby", "id": 1},
    {"type": "list_receipts", "room_id": "lobby"},
    {"type": "list_threads"},
    {"type": "list_mentions"},
    {"type": "search_messages", "query": "hello"},
    {"type": "catch_up", "room_id": "lobby", "since": {"epoch": "another", "offset": 0}},
    {"type": "list_reports", "room_id": "lobby"},
    {"type": "delete_message", "room_id": "lobby", "id": 1},
    {"type": "get_audit", "room_id": "lobby"},
    {"type": "update_room", "room_id": "lobby", "topic": "Everything"},
    {"type": "get_room", "room_id": "lobby"},
    {"type": "ban_member", "room_id": "lobby", "user_id": "mallory", "seconds": 60},
    {"type": "list_bans", "room_id": "lobby"},
    {"type": "unban_member", "room_id": "lobby", "user_id": "mallory"},
    {"type": "list_members", "room_id": "lobby"},
    {"type": "set_notify", "room_id": "lobby", "notify": "mentions"},
    {"type": "get_last_seen", "user_ids": ["alice"]},
    {"type": "open_direct", "user_ids": ["bob"]},
    {"type": "become_member", "room_id": "general"},
    {"type": "history", "channel": "room:lobby"},
    {"type": "leave_room", "room_id": "lobby"},
    {"type": "order.cancel", "order_id": 1},
    {"type": "order.cancel", "order_id": 3},
    {"type": "order.cancel", "order_id": 4, "reason": "late"},
    {"type": "auction/bid", "amount": 5, "lot": LOT, "max": 10},
    {"type": "add", "a": 1},
    {"type": "price", "net": 50},
    {"type": "tree", "root": {"name": "a", "children": [{"name": "b"}]}, "until": "2026-11-22T20:37:03Z"},
    {"type": "counts", "one": 1},
    {"type": "nothing"},
    {"type": "anything", "x": [1]},
]


async def test_what_goes_over_the_wire_fits_the_document() -> None:
    """A long conversation: every message, of either side, fits a schema of its type; and most types come up."""
    hub = shop()
    assert hub.app is not None
    async with running(app=hub.app) as server, server.client("alice") as alice:
        for number, message in enumerate(SENT):
            fields = {name: value for name, value in message.items() if name != "type"}
            await alice.send(message["type"], **fields, ref=str(number))
        await hub.notify("alice", "Shipped", "On its way", "success", {"order": 7})
        await hub.broadcast("Maintenance", "At 22:00")
        await alice.drained()
        async with server.http(None) as http:
            document = (await http.get("/asyncapi.json")).json()
    for message in SENT:
        refused = message.get("data") == {"x": "1"}
        typed = [
            each
            for each in named(document, "client", message["type"])
            if "pattern" in each["properties"].get("channel", {})
        ]
        payloads = typed if refused else named(document, "client", message["type"])
        assert any(fits(message, payload, document) for payload in payloads) is not refused, message
    for message in alice.seen:
        payloads = named(document, "server", message["type"]) or named(document, "server", "anything.reply")
        assert any(fits(message, payload, document) for payload in payloads), message
    assert len({message["type"] for message in alice.seen}) > 40
    codes = {message["code"] for message in alice.seen if message["type"] == "error"}
    assert codes == {"invalid_message", "resync_required"}
    replies = {message["ref"]: message["type"] for message in alice.seen if "ref" in message}
    for number, message in enumerate(SENT):
        assert message["type"] == "typing" or str(number) in replies, message


# -- serving ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What matters of the page: its tags, ids, links, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


async def get(server: Running, path: str, **headers: str) -> Any:
    async with server.http(None) as client:
        return await client.get(path, headers=headers)


async def test_the_page_shows_what_the_app_declares() -> None:
    hub = shop()
    assert hub.app is not None
    async with running(app=hub.app) as server:
        answer = await get(server, "/asyncapi")
        style = await get(server, "/asyncapi.css")
    page = Page(answer.text)
    assert answer.headers["content-type"].startswith("text/html")
    for text in (
        "order.cancel", "Cancel an order.", "As on the <invoice>.", "late & lost", "integer, at least 1", "at most 20 characters",
        "auction/bid", "a multiple of 5", "order.refused", '"shipped" or "unknown"', "boards:{board}:cursors",
        "Cursors of everybody on a board.", "chat_message", f"{server.ws}/ws", '{"type":"order.cancel","order_id":1',
    ):  # fmt: skip
        assert text in page.text, text
    assert style.headers["content-type"].startswith("text/css")
    assert page.text.index("order.cancel") < page.text.index("chat_message"), "the app's own come first"


async def test_the_page_is_safe() -> None:
    """Everything is escaped; it has no script or style in it, nothing from elsewhere, and a strict policy."""
    hub = shop()
    assert hub.app is not None
    async with running(app=hub.app) as server:
        answer = await get(server, "/asyncapi", host='"><script>alert(3)</script>')
    page = Page(answer.text)
    assert page.tags <= {
        "html", "head", "meta", "title", "link", "body", "nav", "main", "header", "section", "article", "h1", "h2", "h3",
        "small", "p", "a", "ul", "li", "code", "pre", "span", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert not any(name == "style" or name.startswith("on") for name in page.attributes)
    assert "Shop <script>alert(1)</script>" in page.text
    assert "</p><script>alert(2)</script>" in page.text
    outside = [link for link in page.links if not link.startswith("#")]
    assert sorted(outside) == ["asyncapi.css", "asyncapi.json", "data:,"]
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.filterwarnings("ignore:The `root_path` parameter:fastapi.exceptions.FastAPIDeprecationWarning")
async def test_it_is_served_below_the_prefix_and_says_where() -> None:
    app = FastAPI(root_path="/behind")
    Hubbub(app, settings=settings_for(), prefix="/realtime")
    async with running(app=app) as server:
        document = (await get(server, "/realtime/asyncapi.json")).json()
        page = await get(server, "/realtime/asyncapi")
        assert (await get(server, "/asyncapi.json")).status_code == 404
        assert "/realtime/asyncapi" not in (await get(server, "/openapi.json")).text
    (here,) = document["servers"].values()
    assert (here["host"], here["protocol"], here["pathname"]) == (server.ws.removeprefix("ws://"), "ws", "/behind")
    addresses = [channel["address"] for channel in document["channels"].values()]
    assert addresses == ["/realtime/ws", "/realtime/ws/chat/{room_id}"]
    assert f"{server.ws}/behind/realtime/ws" in Page(page.text).text


async def test_who_hides_the_openapi_document_hides_this_one() -> None:
    app = FastAPI(openapi_url=None)
    Hubbub(app, settings=settings_for())
    async with running(app=app) as server:
        for path in ("/asyncapi.json", "/asyncapi", "/asyncapi.css"):
            assert (await get(server, path)).status_code == 404


async def test_a_route_of_the_app_s_own_comes_first() -> None:
    app = FastAPI()

    @app.get("/asyncapi")
    async def mine() -> str:
        return "mine"

    Hubbub(app, settings=settings_for())
    async with running(app=app) as server:
        assert (await get(server, "/asyncapi")).json() == "mine"
        assert (await get(server, "/asyncapi.json")).json()["asyncapi"] == "3.0.0"


async def test_it_is_written_again_when_something_was_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def counted(hubbub: Hubbub) -> Any:
        written.append(hubbub)
        return describe(hubbub)

    monkeypatch.setattr("hubbub.asyncapi.routes.describe", counted)
    hub = shop()
    assert hub.app is not None
    async with running(app=hub.app) as server:
        for _ in range(3):
            await get(server, "/asyncapi.json")
        await get(server, "/asyncapi")
        assert len(written) == 1
        hub.on("late")(takes(int))
        assert named((await get(server, "/asyncapi.json")).json(), "client", "late")
        topic = hub.channel("late:{name}")
        assert "late:{name}" in (await get(server, "/asyncapi.json")).json()["x-hubbub-channels"]

        @topic.on_publish
        def look(data: Move) -> None:
            """Look at it."""

        assert "Look at it." in (await get(server, "/asyncapi")).text
        assert len(written) == 4


# -- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 10, "multipleOf": 5},
        {"type": "number", "maximum": -3},
        {"type": "string", "minLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
        {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "minItems": 2},
        {"anyOf": [{"type": "string", "pattern": "^x"}, {"type": "null"}]},
        {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"type": "object"}]},
        {"enum": ["b", "a"]},
        {},
    ],
)
def test_a_sample_fits(schema: dict[str, Any]) -> None:
    assert fits(Sampler({})(schema), schema, {})


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "string", "pattern": "^[A-Z]{3}$"},
        {"type": "string", "format": "of our own"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},
        {"type": "object", "minProperties": 1},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"$ref": "#/components/schemas/Endless"},
    ],
)
def test_what_cannot_be_made_up_has_no_sample(schema: Any) -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/Endless"}}, "required": ["a"]}
    with pytest.raises(NoSample):
        Sampler({"Endless": endless})(schema)
