"""A table of what was felt, after the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hostile.support import OPENED, REPORTS, Server, served


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers that live as long as the module's tests; a server with the same settings is started once."""
    with ExitStack() as stack:
        running: dict[tuple[tuple[str, str], ...], Server] = {}

        def start(**settings: str) -> Server:
            key = tuple(sorted(settings.items()))
            if key not in running:
                directory: Path = tmp_path_factory.mktemp("hostile")
                running[key] = stack.enter_context(served(directory, **settings))
            return running[key]

        yield start


@pytest.fixture(autouse=True)
def _closes() -> Iterator[None]:
    """Close what a test opened."""
    yield
    for sock in OPENED:
        sock.close()
    OPENED.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not REPORTS:
        return
    terminalreporter.section("hostile peers: what a well-behaved client felt (p50/p99, ms)")
    for report in REPORTS:
        memory = " → ".join(f"{size / 1e6:.0f}" for size in (report.before, report.peak, report.after))
        codes = ", ".join(f"{code}×{count}" for code, count in report.codes.most_common(4))
        terminalreporter.write_line(
            f"{report.name:28} {report.felt}  RSS {memory} MB  sent {report.sent / 1e6:.1f} MB  closed {codes}"
        )
