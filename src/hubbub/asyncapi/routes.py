"""``/asyncapi.json`` and ``/asyncapi``: the document and its page, beside FastAPI's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from hubbub.asyncapi.document import describe, located
from hubbub.asyncapi.page import page

if TYPE_CHECKING:
    from hubbub.app import Hubbub

STYLE = Path(__file__).parent.parent / "static" / "asyncapi.css"


class _Documents:
    """The document of a hub, written anew when the app has declared something more."""

    def __init__(self, hubbub: Hubbub) -> None:
        self._hubbub = hubbub
        self._known: tuple[Any, dict[str, Any]] = (None, {})

    def here(self, request: Request) -> dict[str, Any]:
        """The document as it is served to this request."""
        declared, document = self._known
        now = self._declared()
        if now != declared:
            document = describe(self._hubbub)
            self._known = (now, document)
        secure = request.url.scheme in ("https", "wss")
        return located(document, request.url.netloc, secure=secure, root_path=request.scope.get("root_path", ""))

    def _declared(self) -> Any:
        """What tells whether something was added: handlers and channels cannot be taken away again."""
        hubbub, app = self._hubbub, self._hubbub.app
        hooks = tuple(len(topic.topic.hooks) for topic in hubbub.topics)
        texts = (app.title, app.version, app.summary, app.description) if app is not None else ()
        return len(hubbub.handlers), hooks, texts


def add_routes(hubbub: Hubbub, app: FastAPI, headers: Mapping[str, str]) -> None:
    """Serve the document and its page, unless the app hides its OpenAPI document.

    :param headers: those of a page.
    """
    if app.openapi_url is None:
        return
    documents = _Documents(hubbub)

    # plain functions: they run in threads, and so does what an app's own types do there

    def document(request: Request) -> Response:
        body = msgspec.json.encode(documents.here(request), enc_hook=str)
        return Response(body, headers=dict(headers), media_type="application/json")

    def shown(request: Request) -> Response:
        return HTMLResponse(page(documents.here(request), "asyncapi.css", "asyncapi.json"), headers=dict(headers))

    def style(request: Request) -> Response:
        return FileResponse(STYLE, headers=dict(headers))

    taken = {getattr(route, "path", None) for route in app.router.routes}
    for path, endpoint in (("/asyncapi.json", document), ("/asyncapi", shown), ("/asyncapi.css", style)):
        if hubbub.prefix + path not in taken:
            app.add_route(hubbub.prefix + path, endpoint, include_in_schema=False)


__all__ = ["add_routes"]
