"""Measures hubbub beside its peers and prints one table: `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench import nodes
from bench.generator import Bench, Result, Settings
from bench.reading import READER, pages, room_list
from bench.servers import (
    CACHE,
    HERE,
    SERVERS,
    Dialogue,
    Failed,
    Missing,
    Running,
    Server,
    close_all,
    compile_c,
    raise_file_limit,
    running,
)

FAULTS = ("lost", "extra", "disorder", "dropped_connections")
DEFAULT_SERVERS = (
    "limit,bun,hubbub,hubbub-stored,hubbub-postgres,hubbub-full,hubbub-app,bun-json,bun-sqlite,wse,guide,"
    "fastapi,socketio"
)


@dataclass(frozen=True)
class Case:
    """One column. `measure` gets a fresh server and what was measured of this server before (in this repeat)."""

    name: str
    title: str
    measure: Callable[[Bench, Running, dict[str, Result]], Result]
    unit: str = "/s"
    dialogue: str = "room"
    """Which of a server's dialogues it needs."""
    once: bool = False
    lower_is_better: bool = False
    needs: str | None = None
    show_cpu: bool = False
    digits: int = 0
    rooms: Callable[[Settings], int] = lambda settings: 64


# ---- the cases ----


def fan_out(room: int, publishers: int) -> Callable[[Bench, Running, dict[str, Result]], Result]:
    def measure(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
        return bench.closed_loop(target, target.server.room, room, publishers, room)

    return measure


def answered(dialogue: str) -> Callable[[Bench, Running, dict[str, Result]], Result]:
    """64 clients, each with one message that waits for its answer."""

    def measure(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
        spoken: Dialogue = getattr(target.server, dialogue)
        return bench.closed_loop(target, spoken, 64, 64, 1)

    return measure


def room_of_one(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
    return bench.closed_loop(target, target.server.room, 64, 64, 1)


def stored(room: int, *, half_of: str | None = None) -> Callable[[Bench, Running, dict[str, Result]], Result]:
    """100 publishers, in rooms of so many; at half of the rate that another case reached, the p99 of a delivery."""

    def measure(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
        dialogue = target.server.stored
        assert dialogue is not None
        if half_of is None:
            result = bench.closed_loop(target, dialogue, 100, 100, room)
            return {**result, "value": result["messages_per_s"]}
        rate = before[half_of]["messages_per_s"] / 2
        result = bench.closed_loop(target, dialogue, 100, 100, room, rate=rate, samples=100 // room * 5 or 10)
        return {**result, "value": result["p99_ms"], "rate": rate}

    return measure


def read(asked: Callable[[int, str], Result]) -> Callable[[Bench, Running, dict[str, Result]], Result]:
    def measure(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
        assert target.server.token is not None
        return asked(target.port, target.server.token(READER))

    return measure


def latency(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
    rate = before["100x32"]["messages_per_s"] / 2
    more = {"rate": rate, "samples": 10}
    result = bench.closed_loop(target, target.server.room, 100, 32, 100, **more)
    return {**result, "value": result["p99_ms"], "rate": rate}


def handshakes(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
    settings = bench.settings
    result = bench.load(
        target, target.server.room, "handshakes", settings.handshakes, room_size=settings.idle_room, concurrency=64
    )
    return {"value": result["handshakes_per_s"], **result}


def idle(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
    settings, process = bench.settings, psutil.Process(target.pid)
    at_first = process.memory_info().rss
    count = min(settings.idle, (raise_file_limit() - 500) // target.server.descriptors)
    with bench.holding(target, count) as held:
        time.sleep(2)
        grown = process.memory_info().rss - at_first
        cpu, start = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(settings.idle_seconds)
        cpu_percent = 100 * (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - start)
    return {"value": grown / 1024 / count, "connections": count, "idle_cpu": cpu_percent, **held}


def idle_cpu(bench: Bench, target: Running, before: dict[str, Result]) -> Result:
    return {"value": before["memory"]["idle_cpu"]}


def idle_rooms(settings: Settings) -> int:
    return max(64, -(-max(settings.idle, settings.handshakes) // settings.idle_room))


def hundred(settings: Settings) -> int:
    return 100


CASES = (
    Case("100x1", "room of 100, 1 publisher", fan_out(100, 1), show_cpu=True),
    Case("100x32", "room of 100, 32 publishers", fan_out(100, 32), show_cpu=True),
    Case("1000x1", "room of 1,000, 1 publisher", fan_out(1000, 1), show_cpu=True),
    Case("1000x32", "room of 1,000, 32 publishers", fan_out(1000, 32), show_cpu=True),
    Case("echo", "echo", answered("echo"), dialogue="echo", show_cpu=True),
    Case("typed", "typed handler", answered("typed"), dialogue="typed", show_cpu=True),
    Case("typed-await", "typed, awaiting", answered("typed_await"), dialogue="typed_await", show_cpu=True),
    Case("typed-dep", "typed, with `yield`", answered("typed_dep"), dialogue="typed_dep", show_cpu=True),
    Case("typed-plain-dep", "typed, plain", answered("typed_plain_dep"), dialogue="typed_plain_dep", show_cpu=True),
    Case("typed-model", "typed by pydantic", answered("typed_model"), dialogue="typed_model", show_cpu=True),
    Case("one", "publish into a room of one", room_of_one, show_cpu=True),
    Case("latency", "p99 at half rate", latency, unit=" ms", lower_is_better=True, needs="100x32", digits=2),
    Case(
        "stored-rooms",
        "stored, 100 rooms, 1 publisher each",
        stored(1),
        dialogue="stored",
        show_cpu=True,
        rooms=hundred,
    ),
    Case("stored-room", "stored, room of 100, all publish", stored(100), dialogue="stored", show_cpu=True),
    Case(
        "stored-rooms-p99",
        "p99 at half of that, 100 rooms",
        stored(1, half_of="stored-rooms"),
        " ms",
        "stored",
        lower_is_better=True,
        needs="stored-rooms",
        digits=2,
        rooms=hundred,
    ),
    Case(
        "stored-room-p99",
        "p99 at half of that, one room",
        stored(100, half_of="stored-room"),
        " ms",
        "stored",
        lower_is_better=True,
        needs="stored-room",
        digits=2,
    ),
    Case(
        "page",
        "p99 of a page of 50 out of 1,000,000",
        read(pages),
        " ms",
        "full",
        lower_is_better=True,
        digits=2,
    ),
    Case("room-list", "p50 of the list of 1,000 rooms", read(room_list), " ms", "full", lower_is_better=True, digits=1),
    Case("handshakes", "handshake + join", handshakes, rooms=idle_rooms, show_cpu=True),
    Case("memory", "KB per idle connection", idle, " KB", once=True, lower_is_better=True, digits=1, rooms=idle_rooms),
    Case("idle-cpu", "CPU while idle", idle_cpu, " %", once=True, lower_is_better=True, needs="memory", digits=2),
)


# ---- running them ----

Measured = dict[str, dict[str, list[Result]]]
"""server → case → one result per repeat"""


def measure_all(bench: Bench, servers: list[Server], cases: list[Case], notes: list[str]) -> Measured:
    """Every repeat goes through all servers, so that what disturbs the machine disturbs all of them."""
    measured: Measured = {server.name: {} for server in servers}
    for repeat in range(bench.settings.repeat):
        for server in servers:
            before: dict[str, Result] = {}
            for case in cases:
                if (case.once and repeat > 0) or not can(server, case):
                    continue
                if case.needs and case.needs not in before:
                    continue
                try:
                    before[case.name] = measure_one(bench, server, case, before)
                except Failed as failure:
                    notes.append(f"{server.name}, {case.name}: {failure}")
                    print(f"  {server.name:15} {case.name:11} failed: {failure}", file=sys.stderr)
                    continue
                result = before[case.name]
                measured[server.name].setdefault(case.name, []).append(result)
                print(f"  {server.name:15} {case.name:11} {describe(case, result)}", file=sys.stderr)
    return measured


def can(server: Server, case: Case) -> bool:
    """Whether a server is measured in a column."""
    return getattr(server, case.dialogue) is not None and (server.only is None or case.name in server.only)


def measure_one(bench: Bench, server: Server, case: Case, before: dict[str, Result]) -> Result:
    if case.name == "idle-cpu":
        return {"value": before["memory"]["idle_cpu"]}
    settings = bench.settings
    with running(server, settings.server_cpu, case.rooms(settings), settings.nice) as target:
        try:
            return case.measure(bench, target, before)
        except Failed as failure:
            raise Failed(f"{failure} {target.tail()}".strip()) from None


def describe(case: Case, result: Result) -> str:
    words = [f"{result['value']:12,.{case.digits}f}{case.unit}"]
    for key, name in (("generator_cpu", "generator"), ("server_cpu", "server")):
        if key in result:
            words.append(f"{name} {result[key]:.0f} %")
    if "bytes_per_delivery" in result:
        words.append(f"{result['bytes_per_delivery']:.0f} bytes each, p99 {result['p99_ms']:.2f} ms")
    words += [f"{fault.upper()} {result[fault]}" for fault in FAULTS if result.get(fault)]
    return "  ".join(words)


def faults(measured: Measured) -> list[str]:
    """What the load generator's own checks found: each published message to each member, once, in order."""
    return [
        f"{server}, {case}: {fault.replace('_', ' ')} {total:,} in {len(results)} runs"
        for server, by_case in measured.items()
        for case, results in by_case.items()
        for fault in FAULTS
        if (total := sum(result.get(fault, 0) for result in results))
    ]


def median(results: list[Result], key: str = "value") -> float:
    return statistics.median(float(result[key]) for result in results)


# ---- the table ----


def figure(results: list[Result], per_cpu: bool) -> float:
    """The median; with `per_cpu`, per second of the server's CPU instead of per second of the clock."""
    if per_cpu and all(result.get("server_cpu") for result in results):
        return statistics.median(100 * float(result["value"]) / float(result["server_cpu"]) for result in results)
    return median(results)


def cell(case: Case, results: list[Result] | None, base: list[Result] | None, per_cpu: bool) -> str:
    if not results:
        return "–"
    text = f"{figure(results, per_cpu and case.show_cpu):,.{case.digits}f}{case.unit}"
    if case.name == "memory":
        text += f"; {median(results, 'connections'):,.0f}"
    if case.name == "room-list":
        text += f"; p99 {median(results, 'p99_ms'):.1f}"
    elif "p99" in case.title and "p50_ms" in results[0]:
        text += f"; p50 {median(results, 'p50_ms'):.2f}"
    if case.show_cpu:
        text += f"; gen {median(results, 'generator_cpu'):.0f} %, srv {median(results, 'server_cpu'):.0f} %"
    if base and median(base) > 0 and case.name != "idle-cpu":  # a ratio of two near-zeros says nothing
        ratio = figure(results, per_cpu and case.show_cpu) / figure(base, per_cpu and case.show_cpu)
        return f"**{ratio:.2f}** ({text})"
    return text


def table(measured: Measured, cases: list[Case], base: str | None, per_cpu: bool) -> str:
    reference = measured.get(base, {}) if base else {}
    lines = ["| Server | " + " | ".join(case.title for case in cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for name, by_case in measured.items():
        cells = [cell(case, by_case.get(case.name), reference.get(case.name), per_cpu) for case in cases]
        lines.append("| " + " | ".join([SERVERS[name].title, *cells]) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Goal:
    """A case compared with a bound: a multiple of a peer's figure, or (without a peer) the figure itself.

    With the peer "echo": microseconds of the server's time per message, above those of an echo by the same server.
    """

    case: str
    bound: float
    peer: str | None = None
    server: str = "hubbub"


FAN_OUTS = ("100x1", "100x32", "1000x1", "1000x32")
GOALS = (
    *(Goal(case, 1.0, "bun") for case in FAN_OUTS),
    *(Goal(case, 0.8, "limit") for case in FAN_OUTS),
    *(Goal(case, 10.0, "guide") for case in ("100x32", "1000x32")),
    *(Goal(case, 0.6, "bun") for case in ("echo", "one")),
    *(Goal(case, 2.0, "guide") for case in ("echo", "one")),
    Goal("typed", 8.0, "echo"),
    Goal("typed-await", 8.0, "echo"),
    Goal("typed-plain-dep", 25.0, "echo"),
    Goal("typed-dep", 25.0, "echo"),
    Goal("latency", 1.0, "bun"),
    *(Goal(case, 10_000, server="hubbub-stored") for case in ("stored-rooms", "stored-room")),
    *(Goal(case, 50, server="hubbub-stored") for case in ("stored-rooms-p99", "stored-room-p99")),
    Goal("page", 5, server="hubbub-full"),
    Goal("room-list", 20, server="hubbub-full"),
    Goal("handshakes", 5000),
    Goal("memory", 4),
    Goal("idle-cpu", 1),
)


def undisturbed(results: list[Result]) -> bool:
    """Whether the server, or else the generator, had its core to itself (where that was measured)."""
    return all(max(result.get(key, 100) for key in ("server_cpu", "generator_cpu")) >= 93 for result in results)


def judge(goal: Goal, measured: Measured, case: Case) -> str | None:
    if goal.peer == "echo":
        return judge_cost(goal, measured.get("hubbub-app", {}), case)
    own = measured.get(goal.server, {}).get(goal.case)
    others = measured.get(goal.peer, {}).get(goal.case) if goal.peer else None
    if not own or (goal.peer and not others):
        return None
    value = median(own) / max(median(others), 1e-9) if others else median(own)
    met = value <= goal.bound if case.lower_is_better else value >= goal.bound
    sign = "≤" if case.lower_is_better else "≥"
    said = f"{value:.2f} × {goal.peer}" if others else f"{value:,.{case.digits}f}"
    verdict = "met" if met else "SHORT"
    if case.show_cpu and not undisturbed([*own, *(others or [])]):
        verdict = f"UNSURE, other work had part of a core ({verdict.lower()} as measured)"
        if others:
            said += f", per CPU second {figure(own, True) / figure(others, True):.2f}"
    return f"{verdict}: {case.title}: {said} (goal {sign} {goal.bound:,g})"


def cost(results: list[Result]) -> float:
    """Microseconds of the server's CPU per message."""
    return statistics.median(10_000 * float(each["server_cpu"]) / float(each["value"]) for each in results)


def judge_cost(goal: Goal, by_case: dict[str, list[Result]], case: Case) -> str | None:
    if goal.case not in by_case or "echo" not in by_case:
        return None
    value = cost(by_case[goal.case]) - cost(by_case["echo"])
    verdict = "met" if value <= goal.bound else "SHORT"
    return f"{verdict}: {case.title}: {value:.1f} µs above an echo (goal ≤ {goal.bound:g} µs)"


def judged(measured: Measured) -> list[str]:
    """hubbub beside its goals (docs/performance.md), each met or short."""
    by_name = {case.name: case for case in CASES}
    verdicts = (judge(goal, measured, by_name[goal.case]) for goal in GOALS)
    return [verdict for verdict in verdicts if verdict]


def report(bench: Bench, measured: Measured, cases: list[Case], base: str | None, notes: list[str]) -> str:
    settings = bench.settings
    versions = f"Python {platform.python_version()}, Linux {platform.release()}, {processor()}"
    parts = [
        f"# Benchmark, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{versions}. Each server on one core, the load generator on another; loopback; {settings.text_bytes}-byte "
        f"texts; medians of {settings.repeat} × {settings.seconds:g} s (idle: once, {settings.idle:,} connections in "
        f"rooms of {settings.idle_room}, {settings.idle_seconds:g} s). Bold: ratio to {base or 'nobody'}. "
        "gen, srv: CPU of the load generator and of the server, in % of a core. "
        + ("Rates are per second of the server's CPU. " if settings.per_cpu else "")
        + "What is measured and how: bench/README.md.",
        table(measured, cases, base, settings.per_cpu) if cases else "Nothing was measured.",
    ]
    for heading, lines in (("Goals", judged(measured)), ("Not right", faults(measured)), ("Missing", notes)):
        if lines:
            parts.append(f"{heading}:\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


# ---- the command line ----


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", help=f"servers, of: {', '.join(SERVERS)}")
    parser.add_argument("--cases", help="columns, all by default")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--quick", action="store_true", help="one repeat of 1 s, 2,000 idle connections")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measured window")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="how long the idle server is watched")
    parser.add_argument("--idle-room", type=int, default=10, help="members per room, idle and in handshakes")
    parser.add_argument("--handshakes", type=int, default=5_000, help="connections of the handshake case")
    parser.add_argument("--window", type=int, default=1, help="messages outstanding per publisher")
    parser.add_argument(
        "--wake", type=int, default=0, help="deliveries per wake-up of a mere receiver (0: five writes)"
    )
    parser.add_argument("--text-bytes", type=int, default=50, help="length of the chat texts")
    parser.add_argument("--base", default="bun", help="the server that ratios refer to")
    parser.add_argument("--nice", type=int, default=0, help="priority of server and generator (below 0 needs root)")
    parser.add_argument("--per-cpu", action="store_true", help="rates per CPU second of the server: on a busy machine")
    parser.add_argument(
        "--nodes",
        action=argparse.BooleanOptionalAction,
        help="also measure two nodes (python -m bench.nodes); by default, where neither --only nor --cases is given",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of latest.md and latest.json")
    return parser.parse_args(arguments)


def settings_from(options: argparse.Namespace) -> Settings:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load generator")
    quick = options.quick
    return Settings(
        seconds=min(options.seconds, 1.0) if quick else options.seconds,
        warmup=0.5 if quick else 1.0,
        repeat=1 if quick else options.repeat,
        idle=min(options.idle, 2_000) if quick else options.idle,
        idle_seconds=min(options.idle_seconds, 5.0) if quick else options.idle_seconds,
        idle_room=options.idle_room,
        handshakes=min(options.handshakes, 2_000) if quick else options.handshakes,
        window=options.window,
        wake=options.wake,
        text_bytes=options.text_bytes,
        server_cpu=cores[-1],
        generator_cpu=cores[0],
        nice=options.nice,
        per_cpu=options.per_cpu,
    )


def chosen(names: str, known: dict[str, Any], what: str) -> list[Any]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"unknown {what}: {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in wanted]


def with_needed(cases: list[Case]) -> list[Case]:
    """The chosen columns and those that they are derived from, in the order of the table."""
    names = {case.name for case in cases} | {case.needs for case in cases}
    return [case for case in CASES if case.name in names]


def available(servers: list[Server], notes: list[str]) -> list[Server]:
    ready = []
    for server in servers:
        try:
            server.prepare()
        except Missing as reason:
            notes.append(f"{server.name}: {reason}")
        else:
            ready.append(server)
    return ready


def main() -> None:
    options = parse(sys.argv[1:])
    settings, notes = settings_from(options), list[str]()
    wanted = chosen(options.only or DEFAULT_SERVERS, SERVERS, "servers")
    by_name = {case.name: case for case in CASES}
    cases = with_needed(chosen(options.cases or ",".join(by_name), by_name, "cases"))
    CACHE.mkdir(exist_ok=True)
    try:
        compile_c("load.c")
    except Missing as reason:
        sys.exit(str(reason))
    files = raise_file_limit()
    if settings.idle + 500 > files and any(case.name == "memory" for case in cases):
        notes.append(f"idle: {settings.idle:,} connections need more descriptors than the {files:,} allowed here")
        cases = [case for case in cases if case.name not in ("memory", "idle-cpu")]
    bench = Bench(settings)
    try:
        servers = available(wanted, notes)
        measured = measure_all(bench, servers, cases, notes)
    finally:
        close_all()
    base = next((name for name in (options.base, "limit") if measured.get(name)), None)
    text = report(bench, measured, cases, base, notes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "latest.md").write_text(text)
    raw = {"settings": vars(settings), "base": base, "notes": notes, "measured": measured}
    (options.out / "latest.json").write_text(json.dumps(raw, indent=1))
    print(text)
    if options.nodes if options.nodes is not None else not (options.only or options.cases):
        print(two_nodes(options))


def two_nodes(options: argparse.Namespace) -> str:
    arguments = ["--nice", str(options.nice), "--text-bytes", str(options.text_bytes), "--out", str(options.out)]
    arguments += ["--repeat", str(options.repeat), "--seconds", str(options.seconds)]
    try:
        return nodes.run([*arguments, "--quick"] if options.quick else arguments)
    except Missing as reason:
        return f"Two nodes: {reason}"


if __name__ == "__main__":
    main()
