"""`hubbub serve --workers N`: a supervisor without a hub, which starts workers, watches them, and ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterable
from time import monotonic
from typing import Any, Final

import msgspec

from hubbub import logs
from hubbub.brokers.embedded import EmbeddedValkey
from hubbub.brokers.valkey.address import target_of
from hubbub.errors import ConfigurationError
from hubbub.listening import BACKLOG, Listeners, bound
from hubbub.serving import Serving, drain_bound, limit_silence, raise_file_limit
from hubbub.settings import Settings, load_settings
from hubbub.worker import Order

log = logging.getLogger("hubbub.workers")

DEATHS: Final = 5
"""So many early deaths of one worker in a row are a crash loop."""
EARLY: Final = 60.0
"""Seconds of serving after which a death is none."""
BACKOFF: Final = (0.5, 8.0)
"""Seconds until the replacement after the second early death in a row (the first comes at once), and at most."""
PATIENCE: Final = 30.0
"""Seconds after which it is said that a worker is not ready yet."""
SPARE: Final = 5.0
"""Seconds that a worker has beyond what its drain may take; then it is killed."""
FORCED: Final = 1.0
"""The same at the second signal."""
ENGINE_MEMORY: Final = 2
"""By how much the embedded engine's memory is more than the bytes of history that a process would keep: for all else
that it keeps of a publication, and for what waits to be read."""


class CannotServe(Exception):
    """The workers cannot go on; ``code`` is the exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class Worker:
    """One process.

    :ivar ended: its exit code, once it has ended (below 0: the signal that killed it).
    :ivar ready: whether it came to serve; done at its end at the latest.
    :ivar retired: it was asked to end, because another one has its place.
    """

    def __init__(self, index: int, process: asyncio.subprocess.Process, ready: int) -> None:
        self.index = index
        self.process = process
        self.retired = False
        self.ready_at = 0.0
        self.ended = asyncio.ensure_future(process.wait())
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pipe = ready
        asyncio.get_running_loop().add_reader(ready, self._heard)

    def _heard(self) -> None:
        said = os.read(self._pipe, 64)
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)
        self.ready_at = monotonic()
        self.ready.set_result(bool(said))

    def served(self, now: float) -> float:
        """For how many seconds it has served."""
        return now - self.ready_at if self.ready.done() and self.ready.result() else 0.0

    def go(self) -> None:
        """Let it open its store and serve."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is somebody to get it."""
        if self.process.returncode is None:
            self.process.send_signal(number)


class Slot:
    """A worker's place: its sockets, and the process that is there now."""

    def __init__(self, index: int, sockets: list[Any]) -> None:
        self.index = index
        self.sockets = sockets
        self.worker: Worker | None = None
        self.deaths = 0
        self.changing = asyncio.Lock()

    @property
    def serves(self) -> bool:
        worker = self.worker
        return worker is not None and worker.ready.done() and worker.ready.result() and not worker.ended.done()

    def died(self, served: float) -> float:
        """Count a death, after so many seconds of serving; returns the seconds to wait before the next start.

        :raises CannotServe: it dies again and again.
        """
        self.deaths = self.deaths + 1 if served < EARLY else 0
        if self.deaths == DEATHS:
            raise CannotServe(
                f"worker {self.index} died {DEATHS} times in a row, each time within {EARLY:.0f} seconds, so Hubbub stops: "
                "the log above says why it died",
                3,
            )
        return 0.0 if self.deaths < 2 else min(BACKOFF[0] * 2 ** (self.deaths - 2), BACKOFF[1])


class Supervisor:
    """The workers of one `hubbub serve`, and the engine that they share.

    :param environment: of the workers.
    :param engine: one of their own, started before and stopped after them; None: it is somewhere else.
    """

    def __init__(
        self,
        serving: Serving,
        settings: Settings,
        count: int,
        *,
        ports: int | None,
        environment: dict[str, str],
        engine: EmbeddedValkey | None,
    ) -> None:
        self.serving = serving
        self.settings = settings
        self.engine = engine
        self._environment = environment
        self._pretty = serving.pretty
        self._ports = ports
        self._listeners = Listeners(serving.host, serving.port, count)
        self._own = [
            bound(serving.host, port, option="--worker-ports")
            for port in (range(ports, ports + count) if ports else ())
        ]
        for each in self._own:
            each.listen(BACKLOG)
        shared = [self._listeners.of(index) for index in range(count)]
        for each in shared:
            limit_silence(each, settings)
        self.slots = [Slot(index, [shared[index], *self._own[index : index + 1]]) for index in range(count)]
        self._all: set[Worker] = set()
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._roll = asyncio.Event()

    # -- the whole life

    async def run(self) -> int:
        """Serve until a signal; returns the exit code.

        :raises ConfigurationError: the engine does not start.
        """
        self._listen_to_signals()
        code = 0
        try:
            if self.engine is not None:
                await self.engine.start()
                self._environment["HUBBUB_VALKEY_URL"] = self.engine.url
                # for programs that publish from beside the server (there is no password in it)
                log.info("the embedded Valkey answers", extra={"HUBBUB_VALKEY_URL": self.engine.url})
            await self._unless_stopped(self._serve())
        except CannotServe as error:
            sys.stderr.write(f"hubbub: {error}\n")
            code = error.code
        finally:
            code = await self._end() or code
            if self.engine is not None:
                await self.engine.stop()
        return code

    async def _serve(self) -> None:
        await self._open()
        self.serving.announce(self._listeners.port, workers=len(self.slots), alone=self._ports)
        async with asyncio.TaskGroup() as tasks:
            for slot in self.slots:
                tasks.create_task(self._keep(slot))
            tasks.create_task(self._roll_on())

    async def _open(self) -> None:
        """Start all; the first one prepares the store for the others.

        :raises CannotServe: one ended before it served.
        """
        for slot in self.slots:
            try:
                slot.worker = await self._spawn(slot)
            except OSError as error:
                raise CannotServe(f"worker {slot.index} cannot be started: {error}", 3) from None
        first = self.slots[0].worker
        assert first is not None
        first.go()
        for slot in self.slots:
            worker = slot.worker
            assert worker is not None
            if not await self._serves(worker):
                code = await asyncio.shield(worker.ended)
                raise CannotServe(f"worker {slot.index} ended before it served: see above", code if code > 0 else 3)
            if worker is first:
                for other in self.slots[1:]:
                    assert other.worker is not None
                    other.worker.go()
        self._steer()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, but leave off at the first signal.

        :raises CannotServe: what it raised, out of its group.
        """
        doing = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        doing.cancel()
        try:
            await doing
        except asyncio.CancelledError:
            pass
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _end(self) -> int:
        """End all workers; 1 when one had to be killed although there was no second signal."""
        self._listeners.close()
        for each in self._own:
            each.close()
        for worker in self._all:
            worker.signal(signal.SIGTERM)
        hurry = asyncio.ensure_future(self._now.wait())
        await _all_done((worker.ended for worker in self._all), hurry, drain_bound(self.settings) + SPARE)
        late = [worker for worker in self._all if not worker.ended.done()]
        if late and hurry.done():
            for worker in late:
                worker.signal(signal.SIGINT)
            await _all_done((worker.ended for worker in late), None, FORCED)
        for worker in late:
            if not worker.ended.done():
                log.error("a worker did not end, and is killed", extra={"worker": worker.index})
                worker.signal(signal.SIGKILL)
                await worker.ended
        forced = hurry.done()
        hurry.cancel()
        return 1 if late and not forced else 0

    # -- signals

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it is none
            loop.add_signal_handler(signal.SIGHUP, self._asked_to_roll, _has_terminal())

    def _asked_to_end(self) -> None:
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    def _asked_to_roll(self, had_terminal: bool) -> None:
        if had_terminal and not _has_terminal():  # this is how one hears that the window was closed
            self._asked_to_end()
        else:
            self._roll.set()

    # -- one worker

    async def _spawn(self, slot: Slot) -> Worker:
        """:raises OSError: there is no room for another process."""
        ours, theirs = os.pipe()
        sockets = [each.fileno() for each in slot.sockets]
        order = Order(worker=slot.index, serving=self.serving, sockets=sockets, ready=theirs, pretty=self._pretty)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "hubbub.worker", str(slot.index),
                stdin=asyncio.subprocess.PIPE, pass_fds=(*sockets, theirs), start_new_session=True,
                env={**self._environment, "HUBBUB_WORKER": str(slot.index)},
            )  # fmt: skip
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        worker = Worker(slot.index, process, ours)
        self._all.add(worker)
        worker.ended.add_done_callback(lambda _: self._all.discard(worker))
        return worker

    async def _serves(self, worker: Worker) -> bool:
        """Wait until it is ready: True; or has ended: False."""
        while True:
            done, _ = await asyncio.wait({worker.ready}, timeout=PATIENCE)
            if done:
                return worker.ready.result()
            log.warning("a worker is still not ready", extra={"worker": worker.index})

    def _steer(self) -> None:
        self._listeners.steer([slot.index for slot in self.slots if slot.serves])

    async def _keep(self, slot: Slot) -> None:
        """Replace the slot's worker whenever it has died.

        :raises CannotServe: it dies again and again.
        """
        while True:
            worker = slot.worker
            assert worker is not None
            code = await asyncio.shield(worker.ended)
            if worker.retired:
                continue
            self._steer()
            pause = slot.died(worker.served(monotonic()))
            log.error("a worker died", extra={"worker": slot.index, "code": code, "seconds_to_wait": pause})
            await asyncio.sleep(pause)
            async with slot.changing:
                if slot.worker is worker:
                    await self._replace(slot)

    async def _replace(self, slot: Slot) -> None:
        """A new worker in place of a dead one. If there can be none now, the old one is found dead once more."""
        try:
            slot.worker = await self._spawn(slot)
        except OSError as error:
            log.error("a worker cannot be started", extra={"worker": slot.index, "error": str(error)})
            return
        slot.worker.go()
        if await self._serves(slot.worker):
            log.info("a worker serves in its place", extra={"worker": slot.index})
        self._steer()

    # -- a rolling restart

    async def _roll_on(self) -> None:
        while True:
            await self._roll.wait()
            self._roll.clear()
            log.info("restarting the workers, one after the other")
            for slot in self.slots:
                async with slot.changing:
                    if not await self._renew(slot):
                        break
            else:
                log.info("all workers are new")

    async def _renew(self, slot: Slot) -> bool:
        """A new worker in place of one that serves; False: the new one does not come to serve, so the old one stays."""
        old = slot.worker
        try:
            new = await self._spawn(slot)
        except OSError as error:
            log.error("a worker cannot be started", extra={"worker": slot.index, "error": str(error)})
            return False
        new.go()
        if not await self._serves(new):
            log.error("a new worker ended before it served: the others stay as they are", extra={"worker": slot.index})
            return False
        slot.worker = new
        self._steer()
        if old is not None and not old.ended.done():
            old.retired = True
            old.signal(signal.SIGTERM)
            await _all_done((old.ended,), None, drain_bound(self.settings) + SPARE)
            if not old.ended.done():
                log.error("a worker did not end, and is killed", extra={"worker": slot.index})
                old.signal(signal.SIGKILL)
        log.info("a worker was renewed", extra={"worker": slot.index})
        return True


async def _all_done(futures: Iterable[asyncio.Future[int]], hurry: asyncio.Future[Any] | None, timeout: float) -> None:
    """Wait until all are done, or there is a hurry, or the time is up."""
    left = {future for future in futures if not future.done()}
    until = monotonic() + timeout
    while left and monotonic() < until and not (hurry is not None and hurry.done()):
        waited = left if hurry is None else {*left, hurry}
        await asyncio.wait(waited, timeout=until - monotonic(), return_when=asyncio.FIRST_COMPLETED)
        left = {future for future in left if not future.done()}


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def serve_workers(serving: Serving, count: int, *, ports: int | None = None) -> int:
    """Serve with ``count`` workers until a signal; returns the exit code.

    :param ports: worker n listens on this port plus n, too.
    :raises ConfigurationError: a setting makes no sense, a port cannot be had, or there is no engine to be had.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "--workers needs Linux or macOS: on Windows run several of `hubbub serve` behind a proxy, with one "
            "HUBBUB_VALKEY_URL and one HUBBUB_DATABASE_URL (PostgreSQL)"
        )
    settings = load_settings(dev=serving.dev)
    # what makes no sense is said before anything is started
    store = _store(settings)
    if settings.valkey_url:
        target_of(settings.valkey_url)
    _make_secret(settings)
    environment = {**os.environ, **store}
    engine = None
    if not settings.valkey_url:
        engine = EmbeddedValkey(settings.data_dir, max_memory=ENGINE_MEMORY * settings.history_total_bytes)
    logs.configure(settings.log_level, pretty=serving.pretty)
    raise_file_limit()
    supervisor = Supervisor(serving, settings, count, ports=ports, environment=environment, engine=engine)
    return asyncio.run(supervisor.run())


def _store(settings: Settings) -> dict[str, str]:
    """What workers need in their environment to have one store together.

    :raises ConfigurationError: they cannot.
    """
    kind = settings.database.partition(":")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise ConfigurationError(
            "HUBBUB_DATABASE_URL: it begins with none of sqlite:///path and postgresql://…: use one of them"
        )
    if kind != "sqlite":
        return {}
    if settings.database.removeprefix("sqlite://").partition("?")[0].strip("/") in ("", ":memory:"):
        raise ConfigurationError(
            "workers cannot share a database in memory: leave HUBBUB_DATABASE_URL away (a file in HUBBUB_DATA_DIR), or name a "
            "file or a PostgreSQL"
        )
    return {"HUBBUB_STORE_SHARED": "1"}


def _make_secret(settings: Settings) -> None:
    """In development, make the secret that the workers share, if there is none yet.

    :raises ConfigurationError: there is no secret, and this is not development.
    """
    if settings.secret is None and settings.public_key is None:
        if settings.dev and (settings.data_dir / "secret").exists():
            return  # the workers read it; what checks it imports what only they need
        from hubbub.app import ensure_secret

        ensure_secret(settings)
