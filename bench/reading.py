"""A database with much in it, and how long it takes to read from it: pages of a room with a million messages, and the
list of a thousand rooms with their unread counts. Measured by a client over the socket, from asking to having it all."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert
from websockets.asyncio.client import connect

MESSAGES = 1_000_000
ROOMS = 1_000
ASKED = 300
READER = "u0"


def fill(path: Path) -> None:
    """Make the database, unless it is there: one room with a million messages, a thousand with a few."""
    if path.exists():
        return
    from hubbub import schema
    from hubbub.engines import engine_for
    from hubbub.features.chat import tables
    from hubbub.tables import metadata

    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)

    async def make() -> None:
        engine = engine_for(f"sqlite:///{unfinished}", readers=1, full_sync=False)
        await engine.start()
        await schema.prepare(engine, metadata, migrate=True)
        await engine.write(rooms)
        for start in range(0, MESSAGES, 20_000):
            await engine.write(lambda connection, start=start: messages(connection, start))
        await engine.stop()

    def rooms(connection: Connection) -> None:
        now = int(time.time() * 1000)
        common = {"visibility": "public", "kind": "group", "epoch": "bench", "created_at": now, "last_at": now}
        counts = [MESSAGES, *(10 for _ in range(ROOMS))]
        connection.execute(
            insert(tables.rooms),
            [
                {"no": no, "id": f"m{no}", "name": f"Room {no}", **common}
                | {"event_seq": count, "message_count": count, "indexed_seq": count, "member_count": 1}
                for no, count in enumerate(counts, 1)
            ],
        )
        connection.execute(
            insert(tables.members),
            [
                {"room_no": no, "user_id": READER, "role": "member", "joined_at": now, "read_count": no % 10}
                for no in range(1, ROOMS + 2)
            ],
        )

    def messages(connection: Connection, start: int) -> None:
        connection.execute(
            insert(tables.messages),
            [
                {"key": tables.key_of(1, seq), "room_no": 1, "number": seq, "author": f"u{seq % 97}"}
                | {"at": 1_700_000_000_000 + seq * 1000, "body": f"message {seq}: the quick brown fox jumps over it"}
                for seq in range(start + 1, start + 20_001)
            ],
        )

    asyncio.run(make())
    unfinished.rename(path)
    Path(f"{unfinished}.lock").unlink(missing_ok=True)


async def _timed(port: int, token: str, asks: list[dict[str, Any]]) -> list[float]:
    """Milliseconds from each question to its answer, one after the other."""
    times = []
    url = f"ws://127.0.0.1:{port}/ws?token={token}"
    async with connect(url, proxy=None, max_size=None, compression=None, ping_interval=None) as client:
        await client.recv()
        for ask in asks:
            began = time.perf_counter()
            await client.send(json.dumps({**ask, "ref": "r"}))
            answer = await client.recv()
            times.append((time.perf_counter() - began) * 1000)
            assert '"ref":"r"' in str(answer)[:400] or '"ref":"r"' in str(answer)[-400:], str(answer)[:200]
            assert '"type":"error"' not in str(answer)[:40], str(answer)[:200]
    return times


def _result(times: list[float]) -> dict[str, Any]:
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"value": p99, "p99_ms": p99, "p50_ms": statistics.median(ordered), "max_ms": ordered[-1]}


def pages(port: int, token: str) -> dict[str, Any]:
    """The p99 of pages of 50 at random places in a room with a million messages."""
    dice = random.Random(7)
    asks = [
        {"type": "get_messages", "room_id": "m1", "before": dice.randrange(100, MESSAGES), "limit": 50}
        for _ in range(ASKED)
    ]
    return _result(asyncio.run(_timed(port, token, asks)))


def room_list(port: int, token: str) -> dict[str, Any]:
    """The p50 of the list of a thousand rooms with unread counts (its p99 is beside it)."""
    times = asyncio.run(_timed(port, token, [{"type": "list_rooms", "mine": True, "limit": 1000}] * 60))
    result = _result(times)
    return {**result, "value": result["p50_ms"]}
