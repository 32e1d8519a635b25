"""One worker: a fresh interpreter that serves on a socket which the supervisor gave it (``python -m hubbub.worker``).

Its standard input is the supervisor: first an :class:`Order`, then ``go``. When it ends, the supervisor is gone, and so
goes the worker, gracefully.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hubbub.errors import HubbubError
from hubbub.serving import Serving, config_of, raise_file_limit, server_of, settings_of

if TYPE_CHECKING:
    from uvicorn import Config

    from hubbub.settings import Settings

log = logging.getLogger("hubbub.workers")

SUPERVISOR: Final = 0
READY: Final = b"ready\n"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told before anything else.

    :ivar sockets: descriptors to listen on.
    :ivar ready: descriptor to write :data:`READY` to, once it serves.
    :ivar pretty: whether log lines are for a person.
    """

    worker: int
    serving: Serving
    sockets: list[int]
    ready: int
    pretty: bool


class Tag(logging.Filter):
    """Every record says which worker it is from."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self.worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self.worker
        return True


def work(order: Order) -> int:
    """Serve until a signal, or until the supervisor is gone; returns the exit code.

    :raises HubbubError: it cannot: one sentence says why.
    """
    import hubbub.transports.uvicorn  # noqa: F401  # what takes its time is done while the others do the same
    from hubbub import logs

    settings = settings_of(order.serving)
    logs.configure(settings.log_level, pretty=order.pretty)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Tag(order.worker))
    raise_file_limit()
    config = _built(order.serving, settings)
    if config is None:
        return 0
    server = server_of(config, settings, partial(_started, order))
    server.run(sockets=[socket.socket(fileno=each) for each in order.sockets])
    return 0 if server.started else 3


def _built(serving: Serving, settings: Settings) -> Config | None:
    """What is to be served, built meanwhile, but told of only once it is this worker's turn; None: the supervisor is gone.

    The first worker goes first. It prepares the store for the others, and what it cannot do is said once, not by all.

    :raises HubbubError: it cannot be served.
    """
    from uvicorn.importer import import_from_string

    failed: HubbubError | None = None
    config: Config | None = None
    try:
        config = config_of(serving, settings)
    except HubbubError as error:
        failed = error
    if serving.app is not None:
        with suppress(Exception):  # uvicorn imports it again, fails again, and says so
            import_from_string(serving.app)
    if not _line():
        return None
    if failed is not None:
        raise failed
    return config


def _started(order: Order) -> None:
    asyncio.get_running_loop().add_reader(SUPERVISOR, _heard)
    os.write(order.ready, READY)
    os.close(order.ready)


def _heard() -> None:
    """It says nothing more: this is its end."""
    asyncio.get_running_loop().remove_reader(SUPERVISOR)
    log.warning("the supervisor is gone: this worker ends, too")
    signal.raise_signal(signal.SIGTERM)


def _line() -> bytes:
    """The supervisor's next line; empty: it is gone. Nothing is read beyond."""
    read = b""
    while not read.endswith(b"\n"):
        byte = os.read(SUPERVISOR, 1)
        if not byte:
            return b""
        read += byte
    return read


def _leave(*_: Any) -> None:
    raise SystemExit(0)


def main() -> None:
    """Entry point: refusals are one sentence."""
    # before it serves there is nothing to end; and uvicorn raises the signal again once it has shut down
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    told = _line()
    if not told:
        return
    try:
        raise SystemExit(work(msgspec.json.decode(told, type=Order)))
    except HubbubError as error:
        sys.stderr.write(f"hubbub: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
