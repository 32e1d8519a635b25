"""The sockets that workers listen on: made by the supervisor, which keeps them open whatever becomes of a worker."""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

from hubbub.errors import ConfigurationError

log = logging.getLogger("hubbub.workers")

BACKLOG: Final = 16_384
"""Connections that may wait to be accepted: the kernel allows its net.core.somaxconn at most."""
SPREADS: Final = sys.platform == "linux"
"""Whether the kernel spreads connections over several sockets of one port. (Elsewhere the last one gets all.)"""
SO_ATTACH_REUSEPORT_CBPF: Final = 51
LOAD_RANDOM: Final = (0x20, 0, 0, 0xFFFFF000 + 56)
"""``BPF_LD | BPF_W | BPF_ABS`` of ``SKF_AD_OFF + SKF_AD_RANDOM`` (linux/filter.h): a random number."""
MODULO: Final = 0x94
JUMP_UNLESS_EQUAL: Final = 0x15
RETURN: Final = 0x06


class Listeners:
    """A listening socket for each worker, all on one port.

    On Linux each worker has a socket of its own (SO_REUSEPORT), and the kernel draws one for every connection: that is
    even, where workers that accept from one shared socket are not. Such a socket would take the connections in its
    queue with it when its worker dies; but the supervisor holds it too, so they wait for the replacement, and
    :meth:`steer` keeps new ones away until that is ready. Elsewhere all share one socket.

    :param port: 0: any free one; :attr:`port` is which.
    :raises ConfigurationError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, host: str, port: int, workers: int) -> None:
        # the first one shares its port only once it has it: two servers never share one by mistake
        self._sockets = [bound(host, port)]
        self.port: int = self._sockets[0].getsockname()[1]
        if SPREADS:
            self._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._sockets += [bound(host, self.port, shared=True) for _ in range(workers - 1)]
        for each in self._sockets:  # the kernel numbers them in this order
            each.listen(BACKLOG)
        self._steers = SPREADS and workers > 1

    def of(self, worker: int) -> socket.socket:
        """The socket of one worker."""
        return self._sockets[worker % len(self._sockets)]

    def steer(self, workers: Sequence[int]) -> None:
        """Give new connections to these workers only. With none they wait, each for one of all."""
        if not self._steers or self._sockets[0].fileno() < 0:
            return
        program = _program(workers or range(len(self._sockets)))
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        try:
            self._sockets[0].setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program), ctypes.addressof(code))
            )
        except OSError as error:
            self._steers = False  # then the kernel goes by addresses and ports, over all workers
            log.warning("connections cannot be kept away from a worker that is gone", extra={"error": str(error)})

    def close(self) -> None:
        """Let go of them. Who connects is refused, as soon as the workers have closed theirs, too."""
        for each in self._sockets:
            each.close()


def bound(host: str, port: int, *, shared: bool = False, option: str = "--port") -> socket.socket:
    """A socket bound to an address, that does not listen yet.

    :param shared: others of this user may have the port, too.
    :param option: what chose the port.
    :raises ConfigurationError: it cannot be had.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError):
        made.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: taken, or not allowed; use another {option}"
        ) from None
    return made


def _program(workers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A classic BPF program that returns the number of a socket, each of ``workers`` as likely."""
    program = [LOAD_RANDOM, (MODULO, 0, 0, len(workers))]
    for drawn, worker in enumerate(workers[:-1]):
        program += [(JUMP_UNLESS_EQUAL, 0, 1, drawn), (RETURN, 0, 0, worker)]
    return [*program, (RETURN, 0, 0, workers[-1])]
