"""What is kept of rooms and of people, as a whole: exported, and erased."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse

from hubbub.auth import valid_user_id
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.access import Act
from hubbub.features.chat.chat import Chat
from hubbub.features.chat.erasing import Erased, erase_user
from hubbub.features.chat.exporting import export_room, export_user
from hubbub.features.chat.tx import Tx
from hubbub.features.chat.uploads import Uploads
from hubbub.messages import JSON
from hubbub.rest.commands import ERRORS
from hubbub.rest.schemas import twin
from hubbub.rest.shared import Callers

JSON_LINES = "application/jsonl"
LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "JSON Lines.", "content": {JSON_LINES: {"schema": {"type": "string"}}}}
}


def add_people(router: APIRouter, chat: Chat, uploads: Uploads, callers: Callers) -> None:
    """Add the routes that export and erase."""
    caller = Depends(callers.caller)

    def now() -> int:
        return int(chat.hub.clock.time() * 1000)

    @router.get("/api/rooms/{room_id}/export", tags=["rooms"], response_class=Response, responses=ERRORS | LINES)
    async def export_a_room(room_id: str, caller: Annotated[Any, caller]) -> Response:
        """All of a room as JSON Lines: its people and messages, but not the bytes of files. For its owners."""
        await uploads.write(caller, lambda tx: _allow_export(tx, room_id))
        return _lines(export_room(chat.store.read, room_id, now=now()), f"room-{room_id}")

    @router.get("/api/users/{user_id:path}/export", tags=["users"], response_class=Response, responses=ERRORS | LINES)
    async def export_a_user(user_id: str, caller: Annotated[Any, caller]) -> Response:
        """All that the chat keeps of a user as JSON Lines: for the user, or an admin."""
        if not caller.admin and caller.user_id != user_id:
            raise ClientError(ErrorCode.FORBIDDEN, "this takes the user's own token, or the admin grant")
        return _lines(export_user(chat.store.read, user_id, now=now()), f"user-{user_id}")

    @router.delete("/api/users/{user_id:path}", tags=["users"], response_model=twin(Erased), responses=ERRORS)
    async def erase_a_user(user_id: str, caller: Annotated[Any, caller]) -> Response:
        """Erase a user: all that they said, uploaded and did is blanked, and their sessions and tokens end. For admins.

        Called again, it erases what was left, should it have been interrupted. It answers how much was erased.
        """
        if not caller.admin:
            raise ClientError(ErrorCode.FORBIDDEN, "this takes an API key, or a token with the admin grant")
        if not valid_user_id(user_id):
            raise ClientError(ErrorCode.NOT_FOUND, "nobody can have such an id")
        await chat.hub.cluster.everywhere.revoke(user_id=user_id)  # else they would go on writing meanwhile
        settings = chat.hub.settings
        erased = await erase_user(chat.store, user_id, now=now(), settings=settings, caller=caller, tell=chat._tell)
        return Response(JSON.encode(erased), media_type="application/json")


def _allow_export(tx: Tx, room_id: str) -> None:
    room, _ = tx.enter(room_id, Act.EXPORT)
    tx.audit("export_room", room)


def _lines(pages: AsyncIterator[bytes], name: str) -> Response:
    shown = quote(f"{name}.jsonl", safe="")
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{shown}",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    return StreamingResponse(pages, media_type=JSON_LINES, headers=headers)


__all__ = ["add_people"]
