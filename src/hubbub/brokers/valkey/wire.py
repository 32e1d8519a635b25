"""One connection to a Valkey or Redis server: RESP3, pipelined, with pushes; parsed by hiredis.

redis-py hands each push to a task (about 20 µs, 43,000 a second at most); here a chunk of the stream is parsed at once and
handed over in the same turn of the loop, and a batch of publications is packed by hiredis with one call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias, cast

import hiredis

from hubbub.brokers.valkey.address import Address
from hubbub.errors import HubbubError

log = logging.getLogger("hubbub")

Answered: TypeAlias = Callable[[Any, "WireError | None"], None]
"""Called once for each command: its reply, or why there is none."""
CLOSED: Final = "the connection to the engine is lost"


class WireError(HubbubError):
    """A command was not answered, or with an error.

    :ivar code: the first word of the engine's error (``NOSCRIPT``, ``MOVED``, …); ``""`` where the connection was lost.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class _Confirm:
    """A (un)subscription on its way: pushes confirm it, one for each channel; only a refusal comes as a reply.

    :ivar left: the channels that are not confirmed yet.
    """

    __slots__ = ("answered", "left", "verb")

    def __init__(self, verb: str, channels: list[str], answered: Answered) -> None:
        self.verb = verb.lower().encode()
        self.left = {channel.encode() for channel in channels}
        self.answered = answered


_CONFIRMATIONS: Final = frozenset({b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe"})


class Wire(asyncio.Protocol):
    """A connection. Replies come in the order of the commands; every command is answered, at the latest by its loss.

    :param pushed: called with each push, in the loop's thread.
    :param lost: called once, when the connection is gone.

    :ivar heard: monotonic seconds (the loop's) when anything came in last.
    """

    def __init__(
        self, pushed: Callable[[list[Any]], None] | None = None, lost: Callable[[Wire], None] | None = None
    ) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[Answered | _Confirm] = deque()
        self._transport: asyncio.Transport | None = None
        self._pushed = pushed
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self.closed = False
        self.heard = self._loop.time()

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        name: str,
        timeout: float,
        pushed: Callable[[list[Any]], None] | None = None,
        lost: Callable[[Wire], None] | None = None,
    ) -> Wire:
        """Connect and say hello.

        :raises WireError: it refuses us. ``code`` is ``NOAUTH``, ``WRONGPASS``, ``NOPROTO`` or ``NODB`` (it has no such
            database) where trying again is no use.
        :raises OSError: it cannot be reached; ``TimeoutError``: not in time.
        """
        wire = cls(pushed, lost)
        async with asyncio.timeout(timeout):
            try:
                await wire._open(address)
                hello: list[Any] = ["HELLO", "3"]
                if address.password is not None:
                    hello += ["AUTH", address.username or "default", address.password]
                hello += ["SETNAME", name]
                await wire.call(*hello)
                if address.db:
                    await wire._select(address.db)
            except BaseException:
                wire.abort()
                raise
        return wire

    async def _select(self, db: int) -> None:
        try:
            await self.call("SELECT", str(db))
        except WireError as error:
            raise WireError(str(error), "NODB" if "range" in str(error) else error.code) from None

    async def _open(self, address: Address) -> None:
        if address.path is not None:
            await self._loop.create_unix_connection(lambda: self, address.path)
        else:
            tls = address.tls
            host = address.host if tls is not None else None
            await self._loop.create_connection(lambda: self, address.host, address.port, ssl=tls, server_hostname=host)

    # -- commands

    @property
    def open(self) -> bool:
        """Whether what is sent now goes out."""
        return not self.closed and self._transport is not None and not self._transport.is_closing()

    def send(self, args: tuple[Any, ...], answered: Answered) -> None:
        """Send a command; ``answered`` is told its reply."""
        if self.closed or self._transport is None or self._transport.is_closing():
            answered(None, WireError(CLOSED))
            return
        self._waiting.append(answered)
        self._transport.write(hiredis.pack_command(args))

    def subscribe(self, verb: str, channels: list[str], answered: Answered) -> None:
        """Send a SUBSCRIBE (or SSUBSCRIBE, UNSUBSCRIBE, …) of some channels; ``answered`` once all are confirmed."""
        if self.closed or self._transport is None or self._transport.is_closing():
            answered(None, WireError(CLOSED))
            return
        self._waiting.append(_Confirm(verb, channels, answered))
        self._transport.write(hiredis.pack_command(cast(Any, (verb, *channels))))

    async def call(self, *args: Any) -> Any:
        """Send a command and wait for its reply.

        :raises WireError: the engine answers with an error, or the connection is lost.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        self.send(args, partial(settle, future))
        return await future

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        reader = self._reader
        reader.feed(data)
        try:
            while True:
                reply = reader.gets()
                if reply is False:
                    return
                if type(reply) is hiredis.PushNotification:
                    if reply[0] in _CONFIRMATIONS:
                        self._confirmed(reply)
                    elif self._pushed is not None:
                        self._pushed(reply)
                elif not self._waiting:
                    self._end(WireError("the engine answers what was not asked"))
                    return
                elif isinstance(reply, hiredis.ReplyError):
                    text = str(reply)
                    self._answer(None, WireError(text, text.partition(" ")[0]))
                else:
                    self._answer(reply, None)
        except hiredis.ProtocolError as error:
            self._end(WireError(f"the engine does not speak RESP3: {error}"))

    def _answer(self, reply: Any, error: WireError | None) -> None:
        answered = self._waiting.popleft()
        if isinstance(answered, _Confirm):
            answered = answered.answered
        try:
            answered(reply, error)
        except Exception:  # or the connection would end, and with it what everybody else waits for
            log.exception("what was done with an answer of the engine failed")

    def _confirmed(self, push: list[Any]) -> None:
        # all replies to what was sent before it are in, so it is about the oldest command; or it is about none: the
        # engine takes the subscriptions of a slot away that moves to another shard
        oldest = self._waiting[0] if self._waiting else None
        if isinstance(oldest, _Confirm) and push[0] == oldest.verb and push[1] in oldest.left:
            oldest.left.discard(push[1])
            if not oldest.left:
                self._answer(None, None)
        elif self._pushed is not None:
            self._pushed(push)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(WireError(CLOSED if exc is None else f"{CLOSED}: {exc}"))

    def abort(self) -> None:
        """End it now."""
        self._end(WireError(CLOSED))

    def _end(self, error: WireError) -> None:
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for answered in waiting:
            (answered.answered if isinstance(answered, _Confirm) else answered)(None, error)
        if self._lost is not None:
            self._lost(self)


def settle(future: asyncio.Future[Any], reply: Any, error: WireError | None) -> None:
    """Let a future have what a command was answered."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(reply)
