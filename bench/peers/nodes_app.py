"""An app whose own code publishes, as fast as it is let: what a node has to carry to the other one. `hubbub serve --app`."""

import asyncio
import time

from fastapi import FastAPI
from pydantic import BaseModel

from hubbub import Hubbub

FILLER = " the quick brown fox jumps over the lazy dog"
app = FastAPI()
hub = Hubbub(app)


class Flood(BaseModel):
    channels: int
    tasks: int
    """Publications of each channel that may be under way."""
    seconds: float
    text_bytes: int = 50


class Flooded(BaseModel):
    published: int
    seconds: float


@app.post("/flood")
async def flood(wanted: Flood) -> Flooded:
    """Publish on r0, r1, … what the load generator takes for texts of its own (load.c, make_text)."""
    start = time.monotonic()
    end, said = start + wanted.seconds, [0] * wanted.channels

    async def publish(channel: int) -> None:
        name = f"r{channel}"
        while time.monotonic() < end:
            text = f"~P{channel:05}S{said[channel]:09}T{time.monotonic_ns():016x}{FILLER}"[: wanted.text_bytes]
            said[channel] += 1
            await hub.publish(name, text)

    async with asyncio.TaskGroup() as group:
        for _ in range(wanted.tasks):
            for channel in range(wanted.channels):
                group.create_task(publish(channel))
    return Flooded(published=sum(said), seconds=time.monotonic() - start)
