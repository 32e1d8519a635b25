"""The chat's commands as routes: the same functions that the socket calls, made from the table of commands."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple, get_type_hints
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from msgspec import Struct

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import asks, tells
from hubbub.features.chat.access import Caller
from hubbub.features.chat.chat import Chat
from hubbub.features.chat.tx import COMMANDS, Command
from hubbub.messages import JSON, ClientMessage, Reply
from hubbub.rest import schemas
from hubbub.rest.reader import Reader
from hubbub.rest.shared import CALLER_ERRORS, Callers, errors

SAY: Final = "POST /api/rooms/{room_id}/messages"
TAGS: Final = {
    "rooms": "rooms",
    "membership": "members",
    "members": "members",
    "search": "search",
    "moderation": "moderation",
}
"""By the module that a command is in; what is in another one is about messages."""
ERRORS: Final = CALLER_ERRORS | errors(
    _403="the caller may not do this in the room, or has to join it first",
    _404="no such room or message, or none that the caller may know of",
    _422="a field is missing, unknown, of the wrong type or out of bounds",
    _429="too often, or too many",
    _503="the store does not keep up, or does not answer",
)
TOO_LARGE: Final = errors(_413="the request is too large")
OTHERS: Final[Mapping[type[ClientMessage], dict[int | str, Any]]] = {
    asks.CreateRoom: errors(_409="there is a room of this id already"),
    asks.OpenDirect: {200: {"model": schemas.twin(tells.RoomInfo), "description": "It was there already."}},
    asks.CatchUp: errors(_410="that cannot be had whole any more: load the room anew"),
}
"""What else some commands may answer."""
TEXTS: Final[Mapping[type[ClientMessage], str]] = {
    asks.LeaveRoom: "Leave a room for good, or decline an invitation to it.",
}


def add_commands(router: APIRouter, chat: Chat, callers: Callers) -> None:
    """Add a route for each command that has a place over HTTP, and one for saying something."""
    for command in sorted(COMMANDS.values(), key=lambda each: (each.http or "").count("{")):  # `me` before `{user_id}`
        if command.http is not None:
            _add(router, callers, _Offer.of(command, chat.run))

    async def say(caller: Caller, message: asks.ChatMessage) -> tells.ChatAck:
        if not caller.user_id:
            raise ClientError(
                ErrorCode.INVALID_MESSAGE, "an API key says nothing itself: add `?as_user=` and who speaks"
            )
        return await chat.say(caller, message.room_id or "", message)

    _add(router, callers, _Offer(asks.ChatMessage, SAY, tells.ChatAck, say, "Say something in a room.", "messages"))


class _Offer(NamedTuple):
    """A command as it is offered over HTTP."""

    struct: type[ClientMessage]
    http: str
    reply: type[Reply]
    work: Callable[[Caller, Any], Awaitable[Any]]
    text: str
    tag: str

    @classmethod
    def of(cls, command: Command[Any, Any], run: Callable[[Caller, Any], Awaitable[Any]]) -> "_Offer":
        tag = TAGS.get(command.work.__module__.rpartition(".")[2], "messages")
        text = TEXTS.get(command.message) or summary_of(command)
        return cls(command.message, command.http or "", reply_of(command), run, text, tag)


def summary_of(command: Command[Any, Any]) -> str:
    """What a command is for, in a sentence: the first one of its docstring."""
    line = " ".join(schemas.docstring(command.work).partition("\n\n")[0].split())
    end = re.search(r"\.(?= [A-Z`])|\.$", line)
    return (line[: end.end()] if end is not None else line).replace("``", "`")


def reply_of(command: Command[Any, Any]) -> type[Reply]:
    """What a command answers, as it is annotated."""
    reply: type[Reply] = get_type_hints(command.work)["return"]
    return reply


def _add(router: APIRouter, callers: Callers, offer: _Offer) -> None:
    reader = Reader(offer.struct, offer.http)
    status = 201 if offer.reply in (tells.RoomCreated, tells.ChatAck) else 200

    async def route(request: Request, caller: Annotated[Any, Depends(callers.caller)]) -> Response:
        message = await reader.read(request)
        return answer(request, await offer.work(caller, message), status)

    router.add_api_route(
        reader.route,
        route,
        methods=[reader.method],
        name=str(offer.struct.__struct_config__.tag),
        tags=[offer.tag],
        summary=offer.text.removesuffix("."),
        description=schemas.docstring(offer.struct),
        status_code=status,
        response_model=_shown(offer.reply),
        responses=ERRORS | (TOO_LARGE if reader.has_body else {}) | OTHERS.get(offer.struct, {}),
        openapi_extra=reader.describe(),
    )


def _shown(reply: type[Reply]) -> Any:
    """What an answer looks like over HTTP."""
    if reply is tells.Rooms:
        return list[schemas.twin(tells.RoomInfo)]  # type: ignore[misc]  # mypy takes the call for a type
    return schemas.twin(tells.RoomInfo if reply in (tells.RoomCreated, tells.RoomReply) else reply)


def answer(request: Request, reply: Reply, status: int) -> Response:
    """A reply as a response: its fields without ``type`` and ``ref``; of a reply that only has a room, the room itself."""
    headers = {}
    if isinstance(reply, tells.RoomCreated | tells.RoomReply):
        body = JSON.encode(reply.room)
        if isinstance(reply, tells.RoomCreated) and not reply.created:
            status = 200
    elif isinstance(reply, tells.Rooms):
        body = JSON.encode(reply.rooms)
        if reply.more:
            headers["link"] = f'<{_next(request, reply.rooms[-1].room_id)}>; rel="next"'  # RFC 8288
    else:
        body = without_type(reply)
    return Response(body, status, headers, media_type="application/json")


def without_type(message: Struct) -> bytes:
    """A message as JSON text, without its type."""
    encoded = JSON.encode(message)
    head = b'{"type":%b' % JSON.encode(message.__struct_config__.tag)
    assert encoded.startswith(head)
    return b"{" + encoded[len(head) :].removeprefix(b",")


def _next(request: Request, after: str) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return "?" + urlencode([*kept, ("after", after)])


__all__ = ["ERRORS", "add_commands", "reply_of", "summary_of"]
