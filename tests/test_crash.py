"""kill -9 at any moment, under load, again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import ROOMS, Person, ServerProcess, survive, verdict

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
SEED = 20_261_124


async def outlived(directory: Path, database_url: str, kills: int) -> None:
    server = ServerProcess(directory, database_url)
    people = [Person(server, f"p{index}", ROOMS[index % len(ROOMS)]) for index in range(24)]
    rooms = await survive(server, people, kills, SEED)
    assert verdict(people, rooms) == []
    assert sum(map(len, rooms.values())) >= sum(len(person.acked) for person in people) >= kills
    assert all(person.returns >= kills // 2 for person in people)  # they were there when it happened


async def test_a_hundred_kills_on_sqlite(tmp_path: Path) -> None:
    await outlived(tmp_path, f"sqlite:///{tmp_path / 'hubbub.db'}", 100)


async def test_kills_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    await outlived(tmp_path, postgres_url, 20)
