"""The cases of two nodes: what is started, what is done to it, and what is read off (bench/README.md, "Two nodes")."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil

from bench.engine import Engine, alone, engine
from bench.generator import Bench, Result, Settings, Talk
from bench.returning import Publisher
from bench.servers import (
    HUBBUB,
    HUBBUB_CHANNEL,
    PEERS,
    Failed,
    Running,
    Server,
    running,
)

API_KEY = "a-key-of-the-benchmark"
CHANNELS = 100


@dataclass(frozen=True)
class Options:
    """How much of it: the sizes that `--quick` makes smaller."""

    repeat: int
    window: int
    tasks: int
    rate: float
    clients: int
    missed: int
    idle: tuple[int, ...]
    idle_seconds: float
    joins: int


@dataclass
class Nodes:
    """One or two nodes on one engine (None: one node with the memory broker)."""

    a: Running
    b: Running
    engine: Engine | None

    def pids(self) -> list[int]:
        """Of the processes beside `b`."""
        return [self.a.pid, *([self.engine.pid] if self.engine else [])]


class NodeBench:
    """The load generator and the servers, wherever the system puts them: two nodes, an engine and a generator share two cores."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self.bench = Bench(replace(settings, generator_cpu=None))
        self.settings = settings
        self.options = options

    @contextmanager
    def nodes(
        self, count: int = 2, *, shared: bool = True, app: bool = False, rooms: int = 1, **env: str
    ) -> Iterator[Nodes]:
        with ExitStack() as stack:
            held = stack.enter_context(engine(nice=self.settings.nice)) if shared else None
            # the rooms are live, so there is nothing to store: and two nodes may not have two databases
            url = {"HUBBUB_VALKEY_URL": held.url, "HUBBUB_DATABASE_URL": "sqlite://"} if held else {}
            started = [
                stack.enter_context(running(node(name, app, {**url, **env}), None, rooms, self.settings.nice))
                for name in ("node-a", "node-b")[:count]
            ]
            if count == 2:
                meet(started)
            yield Nodes(started[0], started[-1], held)


def node(name: str, app: bool, env: dict[str, str]) -> Server:
    """A server of a cluster: channels, and an app that publishes by itself where asked for."""
    more = {**env, "HUBBUB_API_KEYS": API_KEY, "HUBBUB_METRICS": "open", "PYTHONPATH": str(PEERS)}
    served = ["--app", "nodes_app:app"] if app else []
    return replace(
        HUBBUB_CHANNEL,
        name=name,
        command=lambda port: [*HUBBUB.command(port), *served],
        env=lambda rooms, scratch: {**HUBBUB.env(rooms, scratch), **more},
    )


def ask(target: Running, path: str, body: object | None = None) -> Any:
    """A request to a node's HTTP API."""
    return json.loads(ask_text(target, path, body))


def ask_text(target: Running, path: str, body: object | None = None) -> str:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{target.port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=60.0) as response:
        text: bytes = response.read()
        return text.decode()


def meet(nodes: Sequence[Running]) -> None:
    """Waits until what is published on one node is published at all: the engine is there for both."""
    for target in nodes:
        deadline = time.monotonic() + 20
        while True:
            try:
                ask(target, "/api/publish", {"channel": "meeting", "data": 1})
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"{target.server.name} does not publish: {error} {target.tail()[-500:]}") from None
                time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def costs(rate: float, **percents: float) -> Result:
    """Microseconds of each process per message."""
    return {f"{name}_us": percent * 1e4 / max(rate, 1e-9) for name, percent in percents.items()}


# ---- the cases ----


def engine_alone(bench: NodeBench) -> Result:
    """The engine alone, with the broker's script: batches of 64 and of 200 messages over 100 channels, one subscriber."""
    seconds = bench.settings.seconds
    with engine(nice=bench.settings.nice) as held:
        by_batch = {
            f"batch_{batch}": alone(held, batch=batch, channels=CHANNELS, seconds=seconds) for batch in (64, 100, 200)
        }
    return {"value": by_batch["batch_100"]["value"], **by_batch}


def through(
    subscribers: int, *, publishers: int = CHANNELS, window: int | None = None, count: int = 2, shared: bool = True
) -> Callable[[NodeBench], Result]:
    """Clients of node A publish on 100 channels; so many clients of node B (alone: of A) are subscribed to each."""

    def measure(bench: NodeBench) -> Result:
        with bench.nodes(count, shared=shared) as nodes:
            under_way = bench.options.window if window is None else window
            result = carried(bench, nodes, CHANNELS, subscribers, publishers, window=under_way)
        return {**result, "value": result["messages_per_s"]}

    return measure


def carried(bench: NodeBench, nodes: Nodes, channels: int, subscribers: int, publishers: int, **more: object) -> Result:
    """Messages from clients of A to clients of B, each sent when an earlier one of its publisher has come."""
    result = bench.bench.closed_loop(
        nodes.b,
        nodes.b.server.room,
        channels * subscribers,
        publishers,
        subscribers,
        **{"other_port": nodes.a.port, "outside_steps": 1, "pids": nodes.pids(), "wake": 0, **more},
    )
    cpus = [*result["cpus"], 0.0]
    percents = {"b": cpus[0], "a": cpus[1], "engine": cpus[2], "generator": result["generator_cpu"]}
    named = {f"{name}_cpu": percent for name, percent in percents.items()}
    return {**result, **named, **costs(result["messages_per_s"], **percents)}


def from_app(subscribers: int) -> Callable[[NodeBench], Result]:
    """The app's own code publishes on node A, on 100 channels, as fast as it is let."""

    def measure(bench: NodeBench) -> Result:
        with bench.nodes(app=True) as nodes, watching(bench, nodes, subscribers) as talk:
            return flooded(bench, nodes, talk, subscribers)

    return measure


@contextmanager
def watching(bench: NodeBench, nodes: Nodes, subscribers: int) -> Iterator[Talk]:
    options = {"publishers": CHANNELS, "room_size": subscribers, "seconds": 600}
    target = nodes.b
    with bench.bench.talking(target, target.server.room, "watch", CHANNELS * subscribers, **options) as talk:
        yield talk


def flooded(bench: NodeBench, nodes: Nodes, talk: Talk, subscribers: int) -> Result:
    seconds, warmup = bench.settings.seconds, bench.settings.warmup
    answer: list[Any] = []
    wanted = {"channels": CHANNELS, "tasks": bench.options.tasks, "seconds": seconds + warmup + 0.2}
    asking = threading.Thread(target=lambda: answer.append(ask(nodes.a, "/flood", wanted)))
    asking.start()
    time.sleep(warmup / 2)
    talk.say("wake\n")
    time.sleep(warmup / 2)
    first = talk.ask("mark\n")
    names = {"a": nodes.a.pid, "b": nodes.b.pid, **({"engine": nodes.engine.pid} if nodes.engine else {})}
    before, start = {name: cpu_seconds(pid) for name, pid in names.items()}, time.monotonic()
    time.sleep(seconds)
    result = talk.ask("mark\n")
    took = time.monotonic() - start
    percents = {name: 100 * (cpu_seconds(pid) - before[name]) / took for name, pid in names.items()}
    percents["generator"] = result["generator_cpu"]
    asking.join()
    if not answer:
        raise Failed("the app did not publish")
    counted = first["deliveries"] + result["deliveries"] + came_to_rest(talk)
    lost = answer[0]["published"] * subscribers - counted
    rate = result["deliveries"] / subscribers / result["seconds"]
    named = {f"{name}_cpu": percent for name, percent in percents.items()}
    return {"value": rate, "lost": max(lost, 0), "extra": max(-lost, 0), **result, **named, **costs(rate, **percents)}


def came_to_rest(talk: Talk) -> int:
    """Counts deliveries until none comes any more."""
    total = 0
    while True:
        time.sleep(0.3)
        more = int(talk.ask("mark\n")["deliveries"])
        if not more:
            return total
        total += more


def latency(count: int, shared: bool) -> Callable[[NodeBench], Result]:
    """From a client's sending, on a schedule, to another client's having it."""

    def measure(bench: NodeBench) -> Result:
        with bench.nodes(count, shared=shared) as nodes:
            result = carried(bench, nodes, CHANNELS, 1, CHANNELS, rate=bench.options.rate)
        return {**result, "value": result["p50_ms"]}

    return measure


def fan_out(room: int, publishers: int, shared: bool) -> Callable[[NodeBench], Result]:
    """A room's members on one node, of whom some publish: as in the single server's cases, with the broker that is named.

    Each publisher has four messages under way: with one, the node would wait for the engine's answer and not be measured.
    """

    def measure(bench: NodeBench) -> Result:
        with bench.nodes(1, shared=shared) as nodes:
            result = bench.bench.closed_loop(
                nodes.b, HUBBUB.room, room, publishers, room, window=4, pids=nodes.pids()[1:], wake=0
            )
            together = published_together(nodes.b)
        return {**result, **per_write(result["deliveries_per_s"], result["server_cpu"], together)}

    return measure


def fan_out_across(room: int, publishers: int) -> Callable[[NodeBench], Result]:
    """All members are clients of node B, who publishes is a client of node A."""

    def measure(bench: NodeBench) -> Result:
        with bench.nodes() as nodes:
            result = carried(bench, nodes, 1, room, publishers, window=4)
            together = published_together(nodes.b)
        deliveries = result["deliveries_per_s"]
        return {**result, "value": deliveries, **per_write(deliveries, result["b_cpu"], together)}

    return measure


def published_together(target: Running) -> float:
    """Publications that left with one write per connection, on average since the node was started."""
    lines = ask_text(target, "/metrics").splitlines()
    counters = dict(line.rsplit(" ", 1) for line in lines if line.startswith("hubbub_batche"))
    return float(counters["hubbub_batched_publications_total"]) / max(1.0, float(counters["hubbub_batches_total"]))


def per_write(deliveries: float, cpu: float, together: float) -> Result:
    """What the node's CPU did, whatever share of a core it had: deliveries per CPU second, and microseconds per write to a
    connection: how many publications share a write depends on who waits for whom, not on the broker's cost."""
    busy = max(cpu, 1e-9) / 100
    return {
        "per_cpu_s": deliveries / busy,
        "together": together,
        "write_us": busy * 1e6 * together / max(deliveries, 1e-9),
    }


def come_back(shared: bool) -> Callable[[NodeBench], Result]:
    """All clients lose their node, miss 100 messages each, and come at once to the other node (alone: to the same one)."""

    def measure(bench: NodeBench) -> Result:
        options = bench.options
        size = options.clients // CHANNELS
        with (
            bench.nodes(2 if shared else 1, shared=shared, HUBBUB_MAX_CHANNELS="0") as nodes,
            Publisher(nodes.b) as publisher,
        ):
            more = {
                "room_size": size,
                "other_port": nodes.b.port,
                "missed": options.missed,
                "seconds": 60,
                "concurrency": 256,
                "pids": [nodes.b.pid],
            }
            with bench.bench.talking(nodes.a, nodes.a.server.room, "return", size * CHANNELS, **more) as talk:
                if shared:
                    nodes.a.process.kill()
                    nodes.a.process.wait()
                else:
                    talk.ask("cut\n")
                publisher.publish(CHANNELS, options.missed)
                talk.say(f"go {options.clients}\n")
                extra = publisher.publish_slowly(CHANNELS, 10)
                result = talk.answer()
                result |= {
                    f"after_{key}": value for key, value in talk.ask(f"check {options.missed + extra}\n").items()
                }
        return {**result, "value": result["seconds"], "clients": size * CHANNELS}

    return measure


def idle(bench: NodeBench) -> Result:
    """What the engine does while clients of both nodes are in rooms and nothing happens; what they cost in memory."""
    settings, found = bench.settings, dict[str, Result]()
    for count in bench.options.idle:
        with bench.nodes(rooms=max(1, count // settings.idle_room)) as nodes, ExitStack() as stack:
            assert nodes.engine is not None
            memory = {"node": psutil.Process(nodes.b.pid).memory_info().rss, "engine": nodes.engine.memory()}
            for target in (nodes.a, nodes.b) if count else ():
                stack.enter_context(bench.bench.holding(replace_dialogue(target), count // 2))
            time.sleep(4)
            found[str(count)] = watched(bench, nodes, memory, count)
    ops = [found[str(count)]["ops_per_s"] for count in bench.options.idle]
    return {"value": ops[-1], "ratio": ops[-1] / max(ops[0], 1e-9), "by_count": found}


def replace_dialogue(target: Running) -> Running:
    """The same server, asked for its rooms."""
    return replace_server(target, replace(target.server, room=HUBBUB.room))


def replace_server(target: Running, server: Server) -> Running:
    return Running(server, target.port, target.process, target.log)


def watched(bench: NodeBench, nodes: Nodes, memory: dict[str, int], count: int) -> Result:
    assert nodes.engine is not None
    grown = {
        "node": psutil.Process(nodes.b.pid).memory_info().rss - memory["node"],
        "engine": nodes.engine.memory() - memory["engine"],
    }
    before, cpu, start = nodes.engine.commands(), cpu_seconds(nodes.engine.pid), time.monotonic()
    time.sleep(bench.options.idle_seconds)
    after, took = nodes.engine.commands(), time.monotonic() - start
    happened = {name: times - before.get(name, 0) for name, times in after.items() if times > before.get(name, 0)}
    happened["info"] = max(0, happened.get("info", 0) - 1)  # the benchmark's own
    return {
        "ops_per_s": sum(happened.values()) / took,
        "commands": {name: round(times / took, 2) for name, times in sorted(happened.items()) if times},
        "engine_cpu": 100 * (cpu_seconds(nodes.engine.pid) - cpu) / took,
        "node_kb": grown["node"] / 1024 / max(count // 2, 1),
        "engine_bytes": grown["engine"] / max(count, 1),
        "subscriptions": nodes.engine.subscriptions(),
    }


def presence(bench: NodeBench) -> Result:
    """So many people come into one room over two nodes; then one node is killed, and its people are to be gone."""
    half = bench.options.joins // 2
    with bench.nodes() as nodes, ExitStack() as stack:
        joined: list[Result] = []
        start = time.monotonic()
        holders = [
            threading.Thread(target=lambda target=target, tag=tag: joined.append(hold(bench, stack, target, half, tag)))
            for tag, target in (("a", nodes.a), ("b", nodes.b))
        ]
        for holder in holders:
            holder.start()
        for holder in holders:
            holder.join()
        if len(joined) < 2:
            raise Failed("not all could join")
        took = time.monotonic() - start
        agreed = until_count(nodes, 2 * half, 30)
        nodes.a.process.kill()
        nodes.a.process.wait()
        gone = until_count(Nodes(nodes.b, nodes.b, nodes.engine), half, 60)
    return {"value": gone, "joins_per_s": 2 * half / took, "agreed_s": agreed, "gone_s": gone}


def hold(bench: NodeBench, stack: ExitStack, target: Running, count: int, tag: str) -> Result:
    """Clients of one node, all of them in one room, users of their own."""
    token = target.server.token
    assert token is not None
    own = replace(
        target.server, name=f"{target.server.name}-{tag}", room=HUBBUB.room, token=lambda user: token(tag + user)
    )
    held = bench.bench.talking(
        replace_server(target, own), HUBBUB.room, "hold", count, room_size=count, seconds=600, concurrency=64
    )
    return stack.enter_context(held).first


def until_count(nodes: Nodes, wanted: int, seconds: float) -> float:
    """Seconds until every node says that so many are in the room."""
    start = time.monotonic()
    for target in {nodes.a.pid: nodes.a, nodes.b.pid: nodes.b}.values():
        while (count := ask(target, "/api/channels/room:r0/presence")["count"]) != wanted:
            if time.monotonic() - start > seconds:
                raise Failed(f"{target.server.name} counts {count} in the room, not {wanted}, after {seconds:g} s")
            time.sleep(0.05)
    return time.monotonic() - start


# ---- all of them ----


@dataclass(frozen=True)
class NodeCase:
    """A figure. `group` is what the command line calls it by."""

    name: str
    group: str
    title: str
    measure: Callable[[NodeBench], Result]
    unit: str = " messages/s"
    digits: int = 0
    base: str | None = None
    """The case that its ratio refers to, measured just before it."""
    goal: str | None = None
    once: bool = False


FAN_OUTS = ((100, 1), (100, 32), (1000, 1), (1000, 32))


def _fan_outs() -> Iterator[NodeCase]:
    for room, publishers in FAN_OUTS:
        name, title = f"{room}x{publishers}", f"room of {room:,}, {publishers} publishing"
        unit = " deliveries/s"
        yield NodeCase(f"memory-{name}", "fan-out", f"{title}: memory broker", fan_out(room, publishers, False), unit)
        yield NodeCase(
            f"valkey-{name}",
            "fan-out",
            f"{title}: Valkey broker",
            fan_out(room, publishers, True),
            unit,
            base=f"memory-{name}",
            goal="≥ 0.9",
        )
        yield NodeCase(
            f"across-{name}",
            "fan-out",
            f"{title}, on node A; all hear on node B",
            fan_out_across(room, publishers),
            unit,
            base=f"memory-{name}",
            goal="≥ 0.9",
        )


CASES = (
    NodeCase("engine", "engine", "the engine alone (the same script, batches of 100)", engine_alone),
    NodeCase(
        "through-memory",
        "through",
        "clients to 1 client per channel, on one node, memory broker",
        through(1, count=1, shared=False),
        base="engine",
    ),
    NodeCase(
        "through-1", "through", "clients of A to 1 client of B per channel", through(1), base="engine", goal="≥ 0.7"
    ),
    NodeCase(
        "through-10", "through", "clients of A to 10 clients of B per channel", through(10), base="engine", goal="≥ 0.7"
    ),
    NodeCase(
        "single-memory",
        "through",
        "1,000 clients, each one message under way, on one node, memory broker",
        through(1, publishers=1000, window=1, count=1, shared=False),
        base="engine",
    ),
    NodeCase(
        "single-1",
        "through",
        "1,000 clients of A, each one message under way, to 1 client of B per channel",
        through(1, publishers=1000, window=1),
        base="engine",
    ),
    NodeCase(
        "app-1", "app", "the app's code on A to 1 client of B per channel", from_app(1), base="engine", goal="≥ 0.7"
    ),
    NodeCase(
        "app-10", "app", "the app's code on A to 10 clients of B per channel", from_app(10), base="engine", goal="≥ 0.7"
    ),
    NodeCase("latency-memory", "latency", "latency at the rate, one node, memory broker", latency(1, False), " ms", 2),
    NodeCase(
        "latency-one", "latency", "the same, one node, Valkey broker", latency(1, True), " ms", 2, base="latency-memory"
    ),
    NodeCase(
        "latency-two",
        "latency",
        "the same, from node A to node B",
        latency(2, True),
        " ms",
        2,
        base="latency-memory",
        goal="+2 ms p50, +10 ms p99",
    ),
    *_fan_outs(),
    NodeCase(
        "return-memory",
        "return",
        "clients cut off come back to the same node, memory broker",
        come_back(False),
        " s",
        2,
    ),
    NodeCase(
        "return",
        "return",
        "clients of a killed node come to the other one",
        come_back(True),
        " s",
        2,
        base="return-memory",
        goal="≤ 5 s",
    ),
    NodeCase("idle", "idle", "engine commands/s while idle, two nodes", idle, "/s", 1, once=True),
    NodeCase("presence", "presence", "a killed node's people are gone", presence, " s", 1, goal="≤ 10 s", once=True),
)
