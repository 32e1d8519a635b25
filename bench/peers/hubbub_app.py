"""Hubbub in an app of one's own: typed handlers, as `docs/apps.md` has them. Served by `hubbub serve --app`."""

from collections.abc import AsyncIterator

import msgspec
from fastapi import Depends, FastAPI
from pydantic import BaseModel

from hubbub import Hubbub, Session


class Say(msgspec.Struct):
    text: str


class Said(msgspec.Struct):
    text: str
    by: str


class SayModel(BaseModel):
    text: str


class SaidModel(BaseModel):
    text: str
    by: str


class Database:
    """Nothing but something to open and close."""


async def get_db() -> AsyncIterator[Database]:
    yield Database()


async def get_database() -> Database:
    return Database()


app = FastAPI()
hub = Hubbub(app)


@hub.on("say", reply="said")
async def say(session: Session, message: Say) -> Said:
    return Said(message.text, session.user_id)


async def check(text: str) -> None:
    """Something to await, that does not wait."""


@hub.on("say-await", reply="said")
async def say_and_await(session: Session, message: Say) -> Said:
    await check(message.text)
    return Said(message.text, session.user_id)


@hub.on("say-model", reply="said")
async def say_model(session: Session, message: SayModel) -> SaidModel:
    return SaidModel(text=message.text, by=session.user_id)


@hub.on("say-plain-dep", reply="said")
async def say_with_plain(session: Session, message: Say, db: Database = Depends(get_database)) -> Said:
    return Said(message.text, session.user_id)


@hub.on("say-dep", reply="said")
async def say_with_yield(session: Session, message: Say, db: Database = Depends(get_db)) -> Said:
    return Said(message.text, session.user_id)
