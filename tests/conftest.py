"""Every async test runs on uvloop, as `hubbub serve` does. Real databases, started when a test asks for one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.databases import GIVEN, PostgresServer, fresh_database, roomy_memory
from tests.engine_support import Engine, close_launcher


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of the one PostgreSQL that the tests share."""
    if given := os.environ.get(GIVEN):
        yield given
        return
    with PostgresServer(roomy_memory()) as server:
        yield server.url()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL, on a real disk, that this test may stop, restart and pause."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh, empty database in PostgreSQL."""
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database in SQLite, whose file is not there yet."""
    return f"sqlite:///{tmp_path / 'hubbub.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, empty database; the test runs once on each kind."""
    url = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(url, str)
    return url


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of the one Valkey that the tests share."""
    with Engine() as engine:
        yield engine.url


@pytest.fixture
def valkey_prefix() -> str:
    """What this test's keys begin with."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def valkey_settings(valkey_url: str, valkey_prefix: str) -> dict[str, str]:
    """What a node of this test needs to use the shared Valkey."""
    return {"valkey_url": valkey_url, "valkey_prefix": valkey_prefix}


@pytest.fixture
def own_valkey() -> Iterator[Engine]:
    """A running Valkey that this test may stop, restart, pause and fill."""
    with Engine() as engine:
        yield engine


ALONE: Final = frozenset(
    {
        "test_embedded",
        "test_engine_faults",
        "test_engine_faults_nodes",
        "test_engine_faults_random",
        "test_engine_operations",
        "test_rooms_nodes_faults",
        "test_store_shared",
        "test_valkey_broker",
        "test_valkey_peers",
        "test_valkey_topologies",
        "test_workers",
    }
)
"""Modules of several processes that must notice things in time: nothing else may run beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE or item.path.parent.name == "hostile":
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session", autouse=True)
def _no_node_stays() -> Iterator[None]:
    yield
    close_launcher()
