"""The load generator (load.c), as the cases use it: what it is told, where it runs, what it answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.servers import CACHE, Dialogue, Failed, Running, Server, compile_c, placed

Result = dict[str, Any]
"""One measurement: `value`, and what else the load generator said."""

PORTS_PER_ADDRESS = 20_000


@dataclass(frozen=True)
class Settings:
    seconds: float
    warmup: float
    repeat: int
    idle: int
    idle_seconds: float
    idle_room: int
    handshakes: int
    window: int
    wake: int
    text_bytes: int
    server_cpu: int | None
    generator_cpu: int | None
    nice: int
    per_cpu: bool


class Talk:
    """A conversation with a running generator: a line, and the JSON object that answers it.

    :ivar first: what it said once all had joined.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first: Result = {}

    def ask(self, line: str) -> Result:
        self.say(line)
        return self.answer()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def answer(self) -> Result:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.process.stderr.read().strip() or "the load generator ended")
        result: Result = json.loads(line)
        return result

    def end(self) -> Result:
        """What it says when nothing more is asked."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.answer()


@dataclass
class Bench:
    settings: Settings
    tokens: dict[tuple[str, int], Path] = field(default_factory=dict)

    def token_file(self, server: Server, count: int) -> Path | None:
        """One token per connection, made before the clock runs."""
        if server.token is None:
            return None
        if (server.name, count) not in self.tokens:
            path = CACHE / f"tokens-{server.name}-{count}"
            path.write_text("".join(f"{server.token(f'u{i}')}\n" for i in range(count)))
            self.tokens[server.name, count] = path
        return self.tokens[server.name, count]

    def spec(self, target: Running, dialogue: Dialogue, mode: str, connections: int, **options: Any) -> str:
        server = target.server
        text_bytes = max(self.settings.text_bytes, server.text_bytes)
        lines = [f"mode {mode}", f"path {dialogue.path}", f"port {target.port}", f"pid {target.pid}"]
        lines += [f"header {header}" for header in server.headers]
        lines += [f"{verb} {text}" for verb, text in dialogue.script]
        lines += [f"publish {dialogue.publish}", f"deliver {dialogue.deliver}", f"connections {connections}"]
        lines += [f"pid {pid}" for pid in options.pop("pids", ())]
        lines += [f"text_bytes {text_bytes}", f"sources {-(-connections // PORTS_PER_ADDRESS)}"]
        if server.ping:
            lines += [f"ping {server.ping[0]}", f"pong {server.ping[1]}"]
        outside = int(options.get("publishers", 0)) if "outside_steps" in options else 0
        if tokens := self.token_file(server, connections + outside):
            lines += [f"tokens {tokens}"]
        lines += [f"{key} {value}" for key, value in options.items()]
        return "\n".join(lines) + "\n\n"

    def start_generator(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(compile_c("load.c"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: placed(self.settings.generator_cpu, self.settings.nice),
        )

    def load(self, target: Running, dialogue: Dialogue, mode: str, connections: int, **options: object) -> Result:
        generator = self.start_generator()
        try:
            spec = self.spec(target, dialogue, mode, connections, **options)
            out, err = generator.communicate(spec, timeout=120)
        except subprocess.TimeoutExpired:
            raise Failed("the load generator did not finish within 120 s") from None
        finally:
            if generator.poll() is None:
                generator.kill()
                generator.wait()
        if generator.returncode != 0:
            raise Failed(err.strip() or f"the load generator ended with {generator.returncode}")
        result: Result = json.loads(out)
        return result

    def closed_loop(
        self, target: Running, dialogue: Dialogue, connections: int, publishers: int, room: int, **more: object
    ) -> Result:
        settings = self.settings
        options: dict[str, object] = {
            "publishers": publishers,
            "room_size": room,
            "warmup": settings.warmup,
            "wake": settings.wake,
        }
        options |= {"seconds": settings.seconds, "window": settings.window, **more}
        result = self.load(target, dialogue, "run", connections, **options)
        return {"value": result["deliveries_per_s"], **result}

    @contextmanager
    def talking(
        self, target: Running, dialogue: Dialogue, mode: str, connections: int, **options: object
    ) -> Iterator[Talk]:
        """A generator that has connected, and then does what each line says that it is sent; until the block is left."""
        generator = self.start_generator()
        try:
            talk = Talk(generator)
            talk.first = talk.ask(self.spec(target, dialogue, mode, connections, **options))
            yield talk
        finally:
            generator.kill()
            generator.wait()

    @contextmanager
    def holding(self, target: Running, connections: int) -> Iterator[Result]:
        """Keeps so many joined connections open for as long as the block lasts."""
        options = {"room_size": self.settings.idle_room, "seconds": 600}
        with self.talking(target, target.server.room, "hold", connections, **options) as talk:
            yield talk.first
            talk.first.update(talk.end())
