"""Measures two nodes over a real Valkey, beside one node alone and beside the engine alone.

    python -m bench.nodes [--quick] [--cases engine,through,app,latency,fan-out,return,idle,presence]

Part of `make bench`. What each case is: bench/README.md, "Two nodes".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.generator import Result, Settings
from bench.node_cases import CASES, CHANNELS, NodeBench, NodeCase, Options
from bench.servers import CACHE, HERE, Failed, Missing, compile_c, prepare_hubbub, raise_file_limit

GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
FAULTS = ("lost", "extra", "disorder", "dropped_connections", "gaps", "incomplete", "beyond", "twice", "not_recovered")
PROCESSES = ("a", "engine", "b", "generator")
Measured = dict[str, list[Result]]


def measure_all(bench: NodeBench, cases: Sequence[NodeCase], notes: list[str]) -> Measured:
    measured: Measured = {}
    for repeat in range(bench.options.repeat):
        for case in cases:
            if case.once and repeat:
                continue
            try:
                result = case.measure(bench)
            except (Failed, OSError) as failure:
                notes.append(f"{case.name}: {failure}")
                print(f"  {case.name:16} failed: {failure}", file=sys.stderr)
                continue
            measured.setdefault(case.name, []).append(result)
            print(f"  {case.name:16} {described(case, [result])}", file=sys.stderr)
    return measured


def middle(results: Sequence[Result], key: str) -> float:
    return statistics.median(float(result[key]) for result in results)


def described(case: NodeCase, results: Sequence[Result]) -> str:
    """The figure, and what belongs to it."""
    first, words = results[0], [f"{middle(results, 'value'):,.{case.digits}f}{case.unit}"]
    for key, say in SAYERS.items():
        if key in first:
            words += say(results)
    words += [f"{fault.upper()} {total:,}" for fault in FAULTS if (total := faults_of(results, fault))]
    return "; ".join(words)


def say_costs(results: Sequence[Result]) -> list[str]:
    known = [name for name in PROCESSES if f"{name}_us" in results[0]]
    each = ", ".join(f"{name} {middle(results, f'{name}_us'):.1f}" for name in known)
    cpu = sum(middle(results, f"{name}_cpu") for name in known)
    return [f"µs of CPU per message: {each} (together {cpu:.0f} %)"]


def say_latency(results: Sequence[Result]) -> list[str]:
    return [f"p50 {middle(results, 'p50_ms'):.2f}, p99 {middle(results, 'p99_ms'):.2f} ms"]


def say_per_cpu(results: Sequence[Result]) -> list[str]:
    key = "b_cpu" if "b_cpu" in results[0] else "server_cpu"
    return [
        f"{middle(results, 'per_cpu_s'):,.0f} per CPU second of the node ({middle(results, key):.0f} %), "
        f"{middle(results, 'together'):.1f} messages per write, {middle(results, 'write_us'):.1f} µs each write"
    ]


def say_batches(results: Sequence[Result]) -> list[str]:
    def one(batch: int) -> str:
        found = [result[f"batch_{batch}"] for result in results]
        return f"batches of {batch}: {middle(found, 'value'):,.0f}/s, {middle(found, 'engine_us'):.1f} µs each"

    return [one(batch) for batch in (64, 100, 200)]


def say_return(results: Sequence[Result]) -> list[str]:
    return [
        f"{results[0]['clients']:,} clients; half after {middle(results, 'p50_s'):.2f} s, all signed in after "
        f"{middle(results, 'joined_s'):.2f} s; node {middle(results, 'server_cpu'):.0f} %, generator "
        f"{middle(results, 'generator_cpu'):.0f} %"
    ]


def say_idle(results: Sequence[Result]) -> list[str]:
    words = []
    for count, each in results[0]["by_count"].items():
        word = f"{int(count):,} clients: {each['ops_per_s']:.1f}/s, engine {each['engine_cpu']:.2f} %"
        if int(count):
            word += f", {each['node_kb']:.1f} KB each on the node, "
            word += f"{each['engine_bytes']:,.0f} bytes in the engine ({each['subscriptions']:,} subscriptions)"
        words.append(word)
    return words


def say_joins(results: Sequence[Result]) -> list[str]:
    rate, agreed = middle(results, "joins_per_s"), middle(results, "agreed_s")
    return [f"{rate:,.0f} joins/s; both nodes agree {agreed:.2f} s after the last"]


SAYERS = {
    "b_us": say_costs,
    "p50_ms": say_latency,
    "per_cpu_s": say_per_cpu,
    "batch_64": say_batches,
    "clients": say_return,
    "by_count": say_idle,
    "joins_per_s": say_joins,
}
"""By a key that the results have."""


def faults_of(results: Sequence[Result], fault: str) -> int:
    """What was counted last: at the end, where a measurement has an end of its own."""
    return sum(
        int(result[f"after_{fault}"] if f"after_{fault}" in result else result.get(fault, 0)) for result in results
    )


def ratio(case: NodeCase, measured: Measured, key: str = "value") -> str:
    """To its base, repeat by repeat; the median."""
    base = measured.get(case.base or "", [])
    pairs = zip(measured[case.name], base, strict=False)
    ratios = [result[key] / max(other[key], 1e-9) for result, other in pairs if key in result and key in other]
    return f"**{statistics.median(ratios):.2f}**" if ratios else "–"


def ratio_per_cpu(case: NodeCase, measured: Measured) -> str:
    """The same per CPU second of the node that fans out: what other work on the machine does not change."""
    return ratio(case, measured, "per_cpu_s")


def table(measured: Measured, cases: Sequence[NodeCase]) -> str:
    rows = [
        f"| {case.title} | {ratio(case, measured)} | {ratio_per_cpu(case, measured)} | {described(case, results)} "
        f"| {case.goal or ''} |"
        for case in cases
        if (results := measured.get(case.name))
    ]
    return "\n".join(["| case | ratio | per CPU second | | goal |", "|---|---|---|---|---|", *rows])


def report(bench: NodeBench, measured: Measured, cases: Sequence[NodeCase], notes: Sequence[str]) -> str:
    settings, options = bench.settings, bench.options
    parts = [
        f"# Two nodes, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{os.cpu_count()} cores for two nodes, Valkey and the load generator together; a Unix socket to Valkey, nothing on "
        f"disk; {CHANNELS} channels with history; {settings.text_bytes}-byte texts; medians of {options.repeat} × "
        f"{settings.seconds:g} s. Bold: the ratio to its base in the same repeat (the engine alone, or the memory broker); of "
        "fan-outs also per CPU second of the node that fans out, which stands where other work had a part of the cores. "
        f"Load average now: {os.getloadavg()[0]:.1f}. What is measured and how: bench/README.md.",
        table(measured, cases),
    ]
    if notes:
        parts.append("Missing:\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


# ---- the command line ----


def options_for(chosen: argparse.Namespace) -> Options:
    quick: bool = chosen.quick
    return Options(
        repeat=1 if quick else chosen.repeat,
        window=chosen.window,
        tasks=chosen.tasks,
        rate=chosen.rate,
        clients=min(chosen.clients, 1_000) if quick else chosen.clients,
        missed=100,
        idle=(0, 200, 1_000) if quick else (0, 1_000, 10_000),
        idle_seconds=3.0 if quick else 15.0,
        joins=600 if quick else 10_000,
    )


def settings_for(chosen: argparse.Namespace) -> Settings:
    return Settings(
        seconds=min(chosen.seconds, 1.0) if chosen.quick else chosen.seconds,
        warmup=0.5 if chosen.quick else 1.0,
        repeat=1,
        idle=0,
        idle_seconds=0,
        idle_room=chosen.idle_room,
        handshakes=0,
        window=1,
        wake=0,
        text_bytes=chosen.text_bytes,
        server_cpu=None,
        generator_cpu=None,
        nice=chosen.nice,
        per_cpu=False,
    )


def run(arguments: Sequence[str]) -> str:
    """Measure, write the results, and return the report.

    :raises Missing: there is no Valkey here.
    """
    chosen = parse(arguments)
    groups = [name.strip() for name in chosen.cases.split(",")]
    if unknown := sorted(set(groups) - set(GROUPS)):
        sys.exit(f"unknown cases: {', '.join(unknown)}; known: {', '.join(GROUPS)}")
    needed = {*groups, *(["engine"] if {"through", "app"} & set(groups) else [])}
    cases, notes = [case for case in CASES if case.group in needed], list[str]()
    CACHE.mkdir(exist_ok=True)
    compile_c("load.c")
    prepare_hubbub()
    raise_file_limit()
    bench = NodeBench(settings_for(chosen), options_for(chosen))
    measured = measure_all(bench, cases, notes)
    text = report(bench, measured, cases, notes)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "nodes.md").write_text(text)
    (chosen.out / "nodes.json").write_text(json.dumps({"notes": notes, "measured": measured}, indent=1))
    return text


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.nodes", description=__doc__)
    parser.add_argument("--cases", default=",".join(GROUPS), help="groups of cases, all by default")
    parser.add_argument("--quick", action="store_true", help="one repeat of 1 s, few clients")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measured window")
    parser.add_argument("--clients", type=int, default=10_000, help="how many come back")
    parser.add_argument("--window", type=int, default=16, help="messages under way per publishing client")
    parser.add_argument("--tasks", type=int, default=16, help="publications under way per channel of the app's code")
    parser.add_argument("--rate", type=float, default=10_000, help="messages/s of the latency cases")
    parser.add_argument("--text-bytes", type=int, default=50, help="length of the texts")
    parser.add_argument("--idle-room", type=int, default=10, help="members per room, idle")
    parser.add_argument("--nice", type=int, default=0, help="priority of all that is measured (below 0 needs root)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of nodes.md and nodes.json")
    return parser.parse_args(arguments)


def main() -> None:
    try:
        print(run(sys.argv[1:]))
    except Missing as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
