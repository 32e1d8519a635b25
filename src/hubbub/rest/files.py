"""Attachments over HTTP: sent in as the body of a request, and fetched whole or in part."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from hubbub.admission import Token, find_token
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.tells import FileInfo
from hubbub.features.chat.uploads import Attachment, Uploads, find, find_for_all, no_such_file, take_back
from hubbub.files import FileMissing, RangeNotSatisfiable, parse_range, serving_headers
from hubbub.hub import Hub
from hubbub.messages import JSON, rfc3339
from hubbub.rest.commands import ERRORS
from hubbub.rest.links import Links
from hubbub.rest.schemas import Schema, twin
from hubbub.rest.shared import CALLER_ERRORS, Callers, Credentials, caller_of, errors

BINARY: Schema = {"type": "string", "format": "binary"}
UPLOAD: Schema = {
    "requestBody": {
        "required": True,
        "description": "The file's bytes as they are, with their `Content-Type`; no form.",
        "content": {"application/octet-stream": {"schema": BINARY}},
    }
}
NOT_FOUND = errors(_404="no such file, or none that the caller may know of")
PART_HEADERS = ("content-type", "content-disposition", "content-length")
"""What a 304 has no use for."""


class LinkOut(BaseModel):
    url: str = Field(description="Below the server's address, like the `url` of a file.")
    expires_at: str = Field(description="Until when it is good: for an hour.")


def add_files(router: APIRouter, hub: Hub, uploads: Uploads, callers: Callers) -> None:
    """Add the routes of attachments."""
    _Files(hub, uploads, callers).add(router)


class _Files:
    def __init__(self, hub: Hub, uploads: Uploads, callers: Callers) -> None:
        self._hub = hub
        self._uploads = uploads
        self._callers = callers
        self._links = Links(hub.settings)

    def add(self, router: APIRouter) -> None:
        self._add_upload(router)
        self._add_fetch(router)
        self._add_rest(router)

    # -- in

    def _add_upload(self, router: APIRouter) -> None:
        caller = Depends(self._callers.caller)

        async def upload(
            room_id: str,
            request: Request,
            caller: Annotated[Any, caller],
            name: Annotated[str, Query(description="What it is called.", examples=["photo.png"])] = "",
        ) -> Response:
            """Upload a file, to be sent in this room: its id goes into `files` of a message within a day."""
            if not caller.user_id:
                text = "an API key uploads nothing for itself: add `?as_user=` and who will send the file"
                raise ClientError(ErrorCode.INVALID_MESSAGE, text)
            claimed, size = _check_upload(request)
            patience = self._hub.settings.message_timeout
            try:
                chunks = _flowing(request.stream(), patience)
                info = await self._uploads.take(caller, room_id, name, claimed, chunks, size)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it
            except TimeoutError:
                return _error(408, f"nothing of the file came for {patience:g} s: upload it again")
            return Response(JSON.encode(info), 201, media_type="application/json")

        router.add_api_route(
            "/api/rooms/{room_id}/files",
            upload,
            methods=["POST"],
            tags=["files"],
            status_code=201,
            response_model=twin(FileInfo),
            responses=ERRORS | errors(_408="nothing came for a while", _413="the file is too large"),
            openapi_extra=UPLOAD,
            route_class_override=APIRoute,  # its body is larger than what others read, and never in memory as a whole
        )

    # -- out

    def _add_fetch(self, router: APIRouter) -> None:
        async def file(
            file_id: str,
            request: Request,
            credentials: Credentials,
            token: Annotated[str | None, Query(description="A token, where no header can be set.")] = None,
            expires: Annotated[str, Query(description="Of a signed link.")] = "",
            signature: Annotated[str | None, Query(description="Of a signed link.")] = None,
        ) -> Response:
            """Fetch an attachment, whole or in part. It takes a token in a header, cookie or `?token=`, or a signed link."""
            if signature is not None:
                self._links.check(file_id, expires, signature, self._hub.clock.time())
                found = await self._uploads.read(caller_of(None), lambda tx: find_for_all(tx, file_id))
                return await self._serve(request, found, shared=True)
            given = self._token(request)
            caller = caller_of(self._callers.identity_of(given.value))
            found = await self._uploads.read(caller, lambda tx: find(tx, file_id))
            return await self._serve(request, found, shared=given.source == "query")

        path, options = "/api/files/{file_id}", dict[str, Any](tags=["files"], response_class=Response)
        responses: dict[int | str, dict[str, Any]] = {
            200: {"description": "The file.", "content": {"*/*": {"schema": BINARY}}},
            206: {"description": "The part of it that `Range` asks for.", "content": {"*/*": {"schema": BINARY}}},
            304: {"description": "It is the one with the `ETag` in `If-None-Match`."},
            416: {"description": "It has no such part."},
        }
        refusals = (
            CALLER_ERRORS | errors(_403="the link is not good any more") | NOT_FOUND | errors(_422="a wrong query")
        )
        router.add_api_route(path, file, methods=["GET"], responses=responses | refusals, **options)
        router.add_api_route(path, file, methods=["HEAD"], include_in_schema=False, **options)

    def _token(self, request: Request) -> Token:
        """:raises ClientError: there is none."""
        scope = request.scope
        token = find_token(scope["headers"], scope["query_string"], (), self._hub.settings.cookie_name)
        if token is None:
            raise ClientError(
                ErrorCode.AUTHENTICATION_REQUIRED,
                "send Authorization: Bearer with a token, or ?token=, or ask for a link (POST …/link)",
            )
        return token

    async def _serve(self, request: Request, file: Attachment, *, shared: bool) -> Response:
        """:param shared: the address alone opens it, so pages of any origin that know it may show it."""
        whole = serving_headers(file.media_type, file.name, file.size, file.sha256)
        headers = {name.lower(): value for name, value in whole.items()}
        if shared:
            headers["cross-origin-resource-policy"] = "cross-origin"
        etag = headers["etag"]
        if _names(request.headers.get("if-none-match"), etag):
            return Response(None, 304, {name: each for name, each in headers.items() if name not in PART_HEADERS})
        is_head = request.method == "HEAD"
        wanted = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
        try:
            part = None if is_head else parse_range(wanted, file.size)  # RFC 9110, 14.2: a range is of a GET
        except RangeNotSatisfiable as error:
            return _error(416, str(error), {"content-range": f"bytes */{file.size}"})
        start, end = part or (0, file.size)
        if part is not None:
            headers |= {"content-range": f"bytes {start}-{end - 1}/{file.size}", "content-length": str(end - start)}
        try:
            pieces = await self._uploads.files.open(file.key, start, end)
        except FileMissing:
            raise no_such_file() from None
        if is_head:
            return Response(None, 200, headers)
        return StreamingResponse(pieces, 200 if part is None else 206, headers)

    # -- links, and taking back

    def _add_rest(self, router: APIRouter) -> None:
        caller = Depends(self._callers.caller)

        async def link(file_id: str, caller: Annotated[Any, caller]) -> LinkOut:
            """Make a link to an attachment that needs no token, for an hour: for images in a page, say."""
            query, expires = self._links.sign(file_id, self._hub.clock.time())
            await self._uploads.read(caller, lambda tx: find(tx, file_id))
            return LinkOut(url=f"/api/files/{file_id}?{query}", expires_at=rfc3339(expires))

        async def remove(file_id: str, caller: Annotated[Any, caller]) -> Response:
            """Remove a file that was uploaded and not sent."""
            await self._uploads.write(caller, lambda tx: take_back(tx, file_id))
            return Response(status_code=204)

        router.add_api_route(
            "/api/files/{file_id}/link",
            link,
            methods=["POST"],
            name="link_file",
            tags=["files"],
            responses=ERRORS | NOT_FOUND | errors(_503="the server has no secret to sign with, or the store is away"),
        )
        router.add_api_route(
            "/api/files/{file_id}",
            remove,
            methods=["DELETE"],
            name="remove_file",
            tags=["files"],
            status_code=204,
            responses=ERRORS | NOT_FOUND | errors(_409="the file belongs to a message"),
        )


def _check_upload(request: Request) -> tuple[str, int]:
    """What a file is said to be, and how large (0: not said).

    :raises ClientError: it is a form.
    """
    claimed = request.headers.get("content-type", "")
    if claimed.partition(";")[0].strip().lower() in ("multipart/form-data", "application/x-www-form-urlencoded"):
        text = "send the file's bytes as the body, with their Content-Type and ?name=; not a form"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    length = request.headers.get("content-length", "")
    return claimed, int(length) if length.isascii() and length.isdigit() else 0


async def _flowing(chunks: AsyncIterator[bytes], patience: float) -> AsyncIterator[bytes]:
    """The same chunks.

    :param patience: seconds until the next one has to come; 0: any time.
    :raises TimeoutError: it did not come.
    """
    while True:
        try:
            async with asyncio.timeout(patience or None):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal with a status that no error code stands for."""
    return JSONResponse({"error": {"code": ErrorCode.INVALID_MESSAGE, "message": text}}, status, headers)


def _names(header: str | None, etag: str) -> bool:
    """Whether a list of entity tags has this one (RFC 9110, 13.1.2: compared weakly)."""
    tags = [each.strip().removeprefix("W/") for each in (header or "").split(",")]
    return etag in tags or tags == ["*"]


__all__ = ["add_files"]
