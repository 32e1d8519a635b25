"""What all connections of one server share: settings, clock, counters, the heartbeat wheel."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from hubbub.heartbeat import Wheel
from hubbub.limits import Rate
from hubbub.ports import Clock, Direct, Gate
from hubbub.settings import Settings

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from hubbub.transports.uvicorn import WebSocketProtocol


FEWEST: Final = 8
"""Frames that a connection may have parsed in a turn, however many others want the same (or HUBBUB_TURN_FRAMES)."""


class Counters:
    """What happened below the sessions, for the metrics."""

    __slots__ = ("control_floods", "drops", "heartbeats_lost", "refused", "stalled", "violations")

    def __init__(self) -> None:
        self.control_floods = 0
        self.drops: Counter[str] = Counter()
        self.heartbeats_lost = 0
        self.refused: dict[str, int] = {}
        self.stalled = 0
        self.violations: dict[int, int] = {}


class Shared:
    """What all connections of one server share: settings, clock, heartbeat wheel."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.loop = asyncio.get_running_loop()
        self.settings: Settings = app_state.get("hubbub_settings") or Settings()
        self.gate: Gate | None = app_state.get("hubbub_gate")
        self.counters: Counters = app_state.get("hubbub_counters") or Counters()
        self.control_rate = Rate.per_second(self.settings.control_rate_limit, self.settings.control_rate_burst)
        self.open = 0
        self.wheel: Wheel[WebSocketProtocol] = Wheel(self.settings.heartbeat_interval, self.settings.heartbeat_timeout)
        clock: Clock | None = app_state.get("hubbub_clock")
        self.time = clock.monotonic if clock is not None else self.loop.time
        self.now = self.time()
        self.direct: Direct | None = app_state.get("hubbub_direct")
        self._inherits: bool | None = None
        self.turn_bytes = self.settings.turn_bytes
        self.turn_frames = self.settings.turn_frames
        self._sharing = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def set_user_timeout(self, sock: socket.socket) -> None:
        """Set TCP_USER_TIMEOUT, unless the listening socket has it: then every connection inherits it."""
        if self._inherits is None:
            milliseconds = int(self.settings.tcp_user_timeout * 1000)
            tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT")
            known = tcp and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds
            self._inherits = known or not milliseconds or not tcp
        if not self._inherits:
            milliseconds = int(self.settings.tcp_user_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return self.server_state.default_headers

    def watch(self, protocol: WebSocketProtocol) -> None:
        self.wheel.add(protocol)
        if self._timer is None:
            self.now = self.time()
            self._schedule()

    def _schedule(self) -> None:
        self._due = self.loop.time() + self.wheel.step
        self._timer = self.loop.call_at(self._due, self.turn)

    def turn(self) -> None:
        """Visit the wheel's next bucket."""
        self.now = now = self.time()
        wheel = self.wheel
        if self._timer is not None:
            self._timer.cancel()
        late = self.loop.time() - self._due
        if late > wheel.period / 4:
            # The loop stood still (a blocking handler, a stopped process): nobody could be heard for so long, so nobody
            # was silent or slow in that time. What they said meanwhile is read after this.
            for protocol in wheel.peers():
                protocol.excuse(late)
        quiet_since = now - wheel.quiet
        for protocol in wheel.turn():
            if protocol.seen < quiet_since or protocol.partial_since:
                protocol.visit(now)
        # no connections, no timer: an idle server sleeps
        self._timer = None
        if len(wheel):
            self._schedule()

    def share(self, change: int) -> None:
        """More or fewer connections have more to say than a turn takes: they divide one connection's frames, so that
        a turn stays short however many they are."""
        self._sharing += change
        most = self.settings.turn_frames
        self.turn_frames = max(min(FEWEST, most), most // max(1, self._sharing))

    def refused(self, reason: str) -> None:
        """Count an opening request that was turned away."""
        self.counters.refused[reason] = self.counters.refused.get(reason, 0) + 1


def shared_of(config: Config, server_state: ServerState, app_state: dict[str, Any]) -> Shared:
    found: Shared | None = getattr(server_state, "hubbub_shared", None)
    if found is None:
        found = Shared(config, server_state, app_state)
        server_state.hubbub_shared = found  # type: ignore[attr-defined]  # lives exactly as long as the server
    return found
