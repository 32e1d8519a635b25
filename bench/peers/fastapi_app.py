"""What a FastAPI app does without a toolkit, on stock uvicorn: an endpoint that receives, validates and answers.

A dependency per message cannot be had from `Depends` (it would live as long as the socket), so it is opened by hand.
Left out, in its favour: the token, the `type`, limits, errors.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel


class Say(BaseModel):
    text: str


class Said(BaseModel):
    text: str
    by: str


class Database:
    """Nothing but something to open and close."""


@asynccontextmanager
async def get_db() -> AsyncIterator[Database]:
    yield Database()


app = FastAPI()


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


@app.websocket("/typed")
async def typed(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        message = Say.model_validate_json(text)
        await websocket.send_text(Said(text=message.text, by="alice").model_dump_json())


@app.websocket("/typed-dep")
async def typed_with_dependency(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        message = Say.model_validate_json(text)
        async with get_db():
            said = Said(text=message.text, by="alice")
        await websocket.send_text(said.model_dump_json())
