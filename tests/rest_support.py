"""A server on a real database, and people who talk to it over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2

from hubbub import schema
from hubbub.engines import engine_for
from tests.support import HandClock, Running, running, settings_for


async def migrated(database_url: str) -> None:
    """Do what an operator does before the first start on PostgreSQL."""
    if database_url.startswith("postgres"):
        engine = engine_for(database_url, readers=1, full_sync=True)
        await engine.start()
        try:
            await schema.migrate(engine)
        finally:
            await engine.stop()


@asynccontextmanager
async def served(
    database_url: str = "sqlite://", *, clock: HandClock | None = None, **settings: Any
) -> AsyncIterator[Running]:
    await migrated(database_url)
    async with running(settings_for(database_url=database_url, **settings), clock=clock) as server:
        yield server


@asynccontextmanager
async def people(server: Running, *names: str) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """An HTTP client of each, with a token."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(server.http(server.token(name))) for name in names]


def good(answer: httpx2.Response, status: int = 200) -> Any:
    """What a request was answered with, which was not an error."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    return answer.json() if answer.content else None


def refused(answer: httpx2.Response) -> tuple[int, str]:
    """Why a request was refused."""
    error = answer.json()["error"]
    assert error["message"]
    return answer.status_code, str(error["code"])
