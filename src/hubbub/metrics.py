"""Every counter, gauge and histogram, named once.

The hot path only adds to plain integers; :meth:`Metrics.families` turns them into Prometheus families when somebody
looks. Labels come from fixed sets: never a room, a user or an address.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

DURATIONS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
LATENCIES: Final = (0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
LAGS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> Metric:
        buckets, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            buckets.append((bound, float(running)))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class StoreMetrics:
    """What the store did.

    :ivar units: what was asked of it, in ``commits`` transactions.
    :ivar retried: transactions that were tried again: the database was locked or away.
    :ivar refused: what was answered ``busy``, because too much waited.
    """

    __slots__ = ("commits", "failed", "reads", "refused", "retried", "seconds", "units")

    def __init__(self) -> None:
        self.commits = self.units = self.reads = self.failed = self.retried = self.refused = 0
        self.seconds = Histogram(LATENCIES)

    def families(self, waiting: int, healthy: bool) -> Iterator[Metric]:
        yield _total("hubbub_store_commits", "Transactions committed", self.commits)
        yield _total("hubbub_store_units", "Changes in them (by hubbub_store_commits: the group)", self.units)
        yield _total("hubbub_store_reads", "Reads", self.reads)
        faults = {"failed": self.failed, "retried": self.retried, "refused": self.refused}
        yield _counter(
            "hubbub_store_faults", "Transactions that failed or were tried again; changes refused", "what", faults
        )
        yield self.seconds.family("hubbub_store_commit_seconds", "From the beginning of a transaction to its commit")
        yield _gauge("hubbub_store_waiting", "Changes that wait for their commit", waiting)
        yield _gauge("hubbub_store_healthy", "0 while the database does not take what is written", int(healthy))


class EngineStats:
    """What a broker over an engine (Valkey, Redis) did. The broker adds to it; it is read when somebody asks for metrics.

    Counts only grow. Depths and sizes are set to what they are now.

    :ivar connects: connections made to the engine; the first one, and each after a break.
    :ivar breaks: connections that ended without our doing, or that the probe gave up.
    :ivar fences: times that the engine was found to be another than before: restarted, failed over, emptied.
    :ivar published: publications that the engine took, in ``batches`` calls of it.
    :ivar received: publications that the engine handed to this node.
    :ivar relayed: publications that the store numbered, given to the engine.
    :ivar repeated: publications that were not published: their key or version had been.
    :ivar away: publications refused because the engine was away, or did not answer in time.
    :ivar full: publications refused because too many waited for it.
    :ivar local: publications that only this node's subscribers got (``offline: local``).
    :ivar checked: subscriptions that were compared with history after a break.
    :ivar waiting: publications that wait for the engine now, of ``waiting_bytes`` bytes.
    :ivar subscriptions: channels that this node is subscribed to at the engine now.
    :ivar present: changes of presence said to the engine; ``noticed`` those heard from it.
    :ivar seconds: from a publication's being handed in to the engine's answer.
    :ivar probes: from a probe's being sent to its being heard, in seconds; ``probe`` is the last one.
    """

    __slots__ = (
        "away", "batches", "breaks", "checked", "connects", "fences", "full", "local", "noticed", "present",
        "probe", "probes", "published", "received", "relayed", "repeated", "seconds", "subscriptions",
        "waiting", "waiting_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connects = self.breaks = self.fences = 0
        self.published = self.batches = self.received = self.relayed = self.repeated = 0
        self.away = self.full = self.local = self.checked = 0
        self.waiting = self.waiting_bytes = self.subscriptions = 0
        self.present = self.noticed = 0
        self.seconds = Histogram(LATENCIES)
        self.probes = Histogram(LATENCIES)
        self.probe = 0.0

    def families(
        self, up: bool, node: str, worker: str, nodes: int, messages: Mapping[str, int], limits: Mapping[str, int]
    ) -> Iterator[Metric]:
        """The Prometheus families.

        :param worker: which one of `hubbub serve --workers`; "" for none.
        :param nodes: how many live, with this one.
        :param messages: those to and from other nodes, by what became of them.
        :param limits: what happened to limits that are shared.
        """
        info = GaugeMetricFamily("hubbub_node_info", "1, with what this node is as labels", labels=("node", "worker"))
        info.add_metric((node, worker), 1)
        yield info
        yield _gauge("hubbub_nodes", "Nodes that live, with this one", nodes)
        yield _gauge("hubbub_engine_up", "0 while the engine does not answer, or this node does not hear it", int(up))
        yield _counter(
            "hubbub_engine_connections", "Connections to the engine, by what became of them", "status",
            {"connected": self.connects, "lost": self.breaks},
        )  # fmt: skip
        yield _total("hubbub_engine_fences", "Times that the engine was another than before", self.fences)
        yield _counter(
            "hubbub_engine_publications", "Publications to and from the engine, by what became of them", "what",
            {
                "published": self.published, "relayed": self.relayed, "received": self.received,
                "repeated": self.repeated, "local": self.local, "away": self.away, "full": self.full,
            },
        )  # fmt: skip
        yield _total("hubbub_engine_batches", "Calls of the engine that published", self.batches)
        yield self.seconds.family("hubbub_engine_publish_seconds", "From a publication to the engine's answer")
        yield _gauge("hubbub_engine_waiting", "Publications that wait for the engine", self.waiting)
        yield _gauge("hubbub_engine_waiting_bytes", "Bytes of them", self.waiting_bytes)
        yield _gauge("hubbub_engine_subscriptions", "Channels subscribed to at the engine", self.subscriptions)
        yield _total("hubbub_engine_checked", "Subscriptions compared with history after a break", self.checked)
        yield self.probes.family("hubbub_engine_probe_seconds", "From a probe to its being heard again")
        yield _counter(
            "hubbub_node_messages", "Messages to and from other nodes, by what became of them", "what", messages
        )
        yield _counter(
            "hubbub_presence_changes", "Changes of who is where, said to other nodes and heard from them", "what",
            {"said": self.present, "heard": self.noticed},
        )  # fmt: skip
        yield _counter("hubbub_shared_limits", "What happened to limits that all nodes share", "what", limits)


class Metrics:
    """One node's numbers.

    :ivar opened: connections that became sessions; :attr:`by_close` counts those that ended, by close code.
    :ivar lag: seconds by which the last sweep of the loop was late.
    """

    def __init__(self) -> None:
        self.started = 0.0
        self.opened = 0
        self.by_close: Counter[int] = Counter()
        self.durations = Histogram(DURATIONS)
        self.errors: Counter[str] = Counter()
        self.auth_failures: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.order: Counter[str] = Counter()
        self.notifications: Counter[str] = Counter()
        self.handshakes = Histogram(LATENCIES)
        self.handlers = Histogram(LATENCIES)
        self.runs = Histogram(LATENCIES)
        self.store = StoreMetrics()
        self.lag = 0.0
        self.lag_histogram = Histogram(LAGS)
        self.sweeps = 0
        self.sweep_due = 0.0

    def closed(self, code: int, seconds: float) -> None:
        self.by_close[code if code in KNOWN_CODES else 0] += 1
        self.durations.add(seconds)

    def refused(self, code: str) -> None:
        self.errors[str(code)] += 1

    def auth_failed(self, reason: str) -> None:
        self.auth_failures[reason] += 1

    def limited(self, what: str) -> None:
        self.limits[what] += 1

    def families(
        self,
        *,
        active: int,
        users: int,
        channels: int,
        behind: int,
        running: int,
        received: Mapping[str, int],
        deliveries: int,
        batches: int,
        publications: int,
        history_bytes: int,
        store: Iterator[Metric],
        below: Mapping[str, int],
        engine: Iterable[Metric] = (),
    ) -> Iterator[Metric]:
        """The Prometheus families; the arguments are what others count."""
        closed = sum(self.by_close.values())
        yield _counter(
            "websocket_connections", "WebSocket sessions by what became of them", "status",
            {"connected": self.opened, "disconnected": closed},
        )  # fmt: skip
        messages = CounterMetricFamily(
            "websocket_messages", "Messages from clients, by type and outcome", labels=("type", "status")
        )
        for kind, count in received.items():
            messages.add_metric((kind, "received"), count)
        for code, count in self.errors.items():
            messages.add_metric((code, "refused"), count)
        messages.add_metric(("delivery", "sent"), deliveries)
        yield messages
        yield self.durations.family("websocket_connection_duration_seconds", "How long sessions lasted")
        yield _gauge("websocket_active_connections", "Sessions now", active)
        yield _counter("hubbub_closes", "Ended sessions by close code", "code", self.by_close)
        yield _gauge("hubbub_users", "Users with a session now", users)
        yield _gauge("hubbub_channels", "Channels with subscribers on this node", channels)
        yield _gauge("hubbub_slow_readers", "Connections that do not take what they are sent", behind)
        yield _total("hubbub_deliveries", "Messages written to subscribers", deliveries)
        yield _total("hubbub_batches", "Channel batches written", batches)
        yield _total(
            "hubbub_batched_publications", "Publications in them (by hubbub_batches: the batch size)", publications
        )
        yield _gauge("hubbub_history_bytes", "Bytes of history kept in memory", history_bytes)
        yield _counter("hubbub_auth_failures", "Tokens refused, by reason", "reason", self.auth_failures)
        yield _counter("hubbub_limited", "Connections and messages refused by a limit", "limit", self.limits)
        yield _counter("hubbub_dropped", "Messages not delivered, by reason", "reason", self.drops)
        yield _counter(
            "hubbub_order", "Publications that did not come in their turn, by what was done", "what", self.order
        )
        yield _counter("hubbub_notifications", "Notifications sent, by type", "type", self.notifications)
        yield _counter("hubbub_transport_events", "What happened below the sessions", "event", below)
        yield self.handshakes.family("hubbub_handshake_seconds", "From the request to the open session")
        yield self.handlers.family("hubbub_handler_seconds", "Handling of a message (one of 64 is timed)")
        yield self.runs.family("hubbub_run_seconds", "Handlers that wait, or are an app's: to their end (one of 64)")
        yield from store
        yield from engine
        yield _gauge("hubbub_runs", "Handlers at work now", running)
        yield _gauge("hubbub_loop_lag_seconds", "By how much the last sweep was late", self.lag)
        yield self.lag_histogram.family("hubbub_loop_lag_distribution_seconds", "By how much sweeps were late")


def _counter(name: str, text: str, label: str, values: Mapping[str, int] | Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((str(value),), count)
    return family


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


KNOWN_CODES: Final = frozenset(
    (1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 4401, 4403, 4404, 4408, 4409, 4410, 4429, 4503)
)
"""Close codes that are labels; a peer can send any other, and those are all counted as 0."""
