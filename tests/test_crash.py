"""kill -9 at any moment, under load, again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import ServerProcess, crowd, survive
from tests.rest_support import migrated
from tests.talkers import verdict

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
SEED = 20_261_124


async def outlived(server: ServerProcess, kills: int) -> None:
    people = crowd(server)
    rooms = await survive(server, people, kills, SEED)
    assert verdict(people, rooms) == []
    assert sum(there.count for there in rooms.values()) >= 10 * kills  # they talked
    assert all(person.returns >= kills // 2 for person in people)  # they were there when it happened
    assert any("version" in message for there in rooms.values() for message in there.messages.values())
    assert any("reactions" in message for there in rooms.values() for message in there.messages.values())


async def test_a_hundred_kills_on_sqlite(tmp_path: Path, sqlite_url: str) -> None:
    await outlived(ServerProcess(tmp_path, sqlite_url), 100)


async def test_kills_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    await migrated(postgres_url)
    await outlived(ServerProcess(tmp_path, postgres_url, fresh=True), 20)
