"""The seams of the house, with the guarantees that both sides rely on. Nothing here runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from msgspec import Raw

from hubbub.messages import Codec, Position
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication, Recovery

if TYPE_CHECKING:
    from hubbub.batch import Batch
    from hubbub.session import Session

Scope: TypeAlias = dict[str, Any]
"""An ASGI connection scope."""


# -- transports: how bytes reach one client ------------------------------------------------------------------------


class Link(Protocol):
    """One open connection, as the hub sees it. Made by a transport, never by the hub.

    A link keeps the order of what it is given, holds at most its outbox's bound for a peer that does not read, and
    calls :meth:`Sink.lost` exactly once, whatever ends it.
    """

    session: Session | None

    @property
    def lane(self) -> Lane:
        """How links of this kind are written to."""
        ...

    def send(self, payload: bytes) -> None:
        """Queue one message, already in this link's codec. It leaves at the end of the loop's turn, after channels'."""
        ...

    def flush(self) -> None:
        """Write what is queued now."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; whatever the peer does, the connection is gone after the close timeout."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...

    def hold(self) -> None:
        """Read no further until :meth:`release`. The peer's silence meanwhile is not held against it."""
        ...

    def release(self) -> None:
        """Read on."""
        ...

    def overdue(self, now: float) -> bool:
        """True when the peer has not read for longer than the outbox's age allows (monotonic seconds)."""
        ...

    @property
    def behind(self) -> bool:
        """True while the peer does not take what it is sent."""
        ...

    @property
    def closing(self) -> bool:
        """True from the closing handshake on: nothing more is sent, and nothing more is handed to the sink."""
        ...


class Members(set["Link"]):
    """A channel's links of one lane, and room for what the lane remembers of them from one batch to the next.

    :ivar made_at: what the lane's notes were made at; -1 after every change of the members.
    """

    __slots__ = ("descriptors", "made_at", "plain", "seen_at", "special")

    def __init__(self) -> None:
        super().__init__()
        self.descriptors: Any = None
        self.plain: list[Any] = []
        self.special: list[Any] = []
        self.made_at = -1
        self.seen_at = -1

    def add(self, link: Link, /) -> None:
        super().add(link)
        self.made_at = self.seen_at = -1

    def discard(self, link: object, /) -> None:
        super().discard(link)
        self.made_at = self.seen_at = -1
        self.plain = self.special = []
        self.descriptors = None


class Lane(Protocol):
    """How one kind of link (a transport and a codec) is written to. One instance for all links of that kind."""

    codec: Codec

    def deliver(self, links: Iterable[Link], batch: Batch, merge: bool) -> None:
        """Give a channel's batch to every link. Never awaits, never raises for one link's sake.

        :param merge: more channels have batches in this turn: links in several of them collect theirs, so that each
            is written to once.
        """
        ...


class Request(NamedTuple):
    """The opening request of a WebSocket, as far as a session cares."""

    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    subprotocols: list[str]
    address: str
    scheme: str


class Sink(Protocol):
    """What a transport hands its events to. Calls come from the loop's thread and return quickly."""

    def received(self, link: Link, message: str | bytes) -> None:
        """A whole message arrived: ``str`` from a text frame, ``bytes`` from a binary one."""
        ...

    def lost(self, link: Link, code: int) -> None:
        """The connection is gone; ``code`` is the close code of the peer, or ours, or 1006."""
        ...

    def wrote_behind(self, link: Link) -> None:
        """The link's peer stopped taking bytes; :attr:`Link.behind` is True now."""
        ...

    def caught_up(self, link: Link) -> None:
        """The peer has taken everything: :attr:`Link.behind` is False again."""
        ...

    def touched(self, link: Link) -> None:
        """Something was queued on the link: call its ``flush`` at the end of this turn."""
        ...

    def gap(self, link: Link, channel: str, offset: int) -> bytes:
        """The message, in the link's codec, that tells of publications dropped up to ``offset``."""
        ...

    def drain(self, link: Link) -> None:
        """The server shuts down: say goodbye to this link in its turn, within the drain's bound."""
        ...


class Gate(Protocol):
    """Admission, asked before anything is built for a connection. Found in the ASGI state as ``hubbub_gate``."""

    def refuse(self, connections: int) -> str | None:
        """None to let one more in beside so many open connections, or the reason for a 503 (a metric's label)."""
        ...


class Takeable(Protocol):
    """A connection of the fast lane before anybody has it."""

    def refuse(self, status: int, body: bytes) -> None:
        """Answer the opening request with an HTTP response."""
        ...

    def accepted(self, response: bytes) -> None:
        """Send the 101 response, with whatever else leaves in this turn."""
        ...

    def take_over(self, sink: Sink, codec: Codec, max_size: int | None = None) -> None:
        """Give every message to ``sink`` from here on."""
        ...


class Direct(Protocol):
    """Opens a session without the ASGI app, where that would only pass the request on. In the ASGI state as
    ``hubbub_direct``, and only set by an app that has nothing of its own in between.
    """

    def __call__(self, connection: Any, request: Request, key: bytes) -> bool:
        """True: the request was answered, one way or the other. False: run the app for it."""
        ...


# -- the app: what it says of its channels -------------------------------------------------------------------------


class Topic(Protocol):
    """What the app declared of the channels of one pattern. Its code is only ever called from a task."""

    @property
    def options(self) -> ChannelOptions:
        """How they behave."""
        ...

    @property
    def has_state(self) -> bool:
        """Whether who subscribes gets an initial state."""
        ...

    @property
    def filters(self) -> bool:
        """Whether subscribers may get different publications."""
        ...

    @property
    def authorizes(self) -> bool:
        """Whether the app decides who may subscribe (and not the token's grants)."""
        ...

    @property
    def edits(self) -> bool:
        """Whether the app looks at what clients publish."""
        ...

    def match(self, name: str) -> Any:
        """The variable parts of a name, or None if it is not of this pattern."""
        ...

    async def admit(self, session: Session, name: str) -> None:
        """:raises ClientError: the session may not read the channel."""
        ...

    async def state(self, session: Session, name: str) -> bytes:
        """The channel's state for who subscribes now, as JSON text."""
        ...

    async def edit(self, session: Session, name: str, data: Raw) -> bytes:
        """What a client publishes (in its codec), checked and rewritten, as JSON text.

        :raises ClientError: it may not be published.
        """
        ...

    def visible(self, session: Session, name: str, publication: Publication) -> bool:
        """Whether a subscriber gets a publication. Never raises."""
        ...

    def occupancy(self, name: str, occupied: bool) -> None:
        """The first subscriber of a channel on this node came, or the last one went."""
        ...

    def stopped(self) -> None:
        """The hub has stopped."""
        ...


# -- brokers: where publications are kept and how they reach every node --------------------------------------------


class Inlet(Protocol):
    """What a broker hands publications to: the hub of this node. It puts them in order, and drops what comes twice."""

    def deliver(self, channel: str, publication: Publication) -> None:
        """A publication on a channel that this node is subscribed to.

        Nearly always in offset order: what comes early waits until history has given what is missing before it. A
        broker that notices a new epoch says so with :meth:`lost` before it hands over anything of it, and then nothing
        of the old one any more.
        """
        ...

    def lost(self, channel: str | None) -> None:
        """Publications of a channel (None: of any) may have been missed, or its epoch may be another.

        They are checked against history, and had from there. To be called once the broker receives again, so that
        nothing can fall between.
        """
        ...

    def renewed(self, channel: str, position: Position) -> None:
        """Positions of a channel are of another epoch from this one on, and nothing was missed up to it."""
        ...


class Past(Protocol):
    """Where the past of a channel is read. A broker is one; a feature may have another for its channels: the store."""

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        """What a reader at ``since`` has missed (None: nothing is asked, only the position is). Never a part of it.

        The position may have another epoch than ``since`` although it ``recovered``: the broker can tell that positions
        of the older epoch up to that one mean the same in the new one. From then on, positions are of the new epoch.
        """
        ...

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        """A page of the kept publications, oldest first; True when there are more."""
        ...


class Broker(Past, Protocol):
    """History and fan-out in one act.

    Guarantees: per channel, offsets are 1, 2, 3, … without gaps within an epoch; :meth:`publish` returns after the
    publication is in the history (where the channel has one) and was handed to every subscribed node, or will be;
    :meth:`recover` never returns a part of what was missed.
    """

    async def start(self, inlet: Inlet) -> None:
        """Connect. Called once, before anything else."""
        ...

    async def stop(self) -> None:
        """Let go of everything. Called once."""
        ...

    async def publish(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> Position:
        """Append to the channel's history and hand to every subscribed node, as one act.

        :param once: an idempotency key, 1 to 128 characters: within :data:`ONCE_SECONDS`, a second publication on the
            channel with it is not published, and gets the position of the first. Only where the channel has history.
        :param version: of what the publication carries: it is not published unless that is higher than the version
            published last on the channel (as long as its history is kept); it gets the current position then.
        :raises BrokerUnavailable: nothing is known to have been published.
        """
        ...

    # A broker whose `publish` has to wait may have `submit(channel, publication, options, done, *, once, version)` too: it
    # returns at once, and calls `done(position, error)` with one of both: for each channel in the order of the calls, but
    # for a refusal, which may come at once (and those without history in an order of their own). Then what a session
    # publishes does not wait for the answer to what it published before.

    async def subscribe(self, channel: str) -> None:
        """This node wants the channel's publications from now on."""
        ...

    async def unsubscribe(self, channel: str) -> None:
        """This node no longer wants them."""
        ...

    async def relay(self, channel: str, publications: Sequence[Publication]) -> None:
        """Hand publications that have their offsets from elsewhere (the store) to every subscribed node. Keeps nothing.

        :raises BrokerUnavailable: other nodes may not have got them.
        """
        ...

    def sweep(self, now: float) -> None:
        """Called about once a second (unix seconds): forget what is too old."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether it is known to answer, and to hear what is published."""
        ...

    @property
    def peers(self) -> Peers | None:
        """The other nodes; None where there can be none."""
        ...


ONCE_SECONDS = 300
"""For how long a broker remembers idempotency keys."""


# -- peers: the other nodes ----------------------------------------------------------------------------------------


class Here(NamedTuple):
    """A user in a channel, as one node has them.

    :ivar devices: how many on that node; 0 while the node waits for them to come back (the grace).
    :ivar since: unix seconds.
    :ivar info: what the token says of them.
    """

    devices: int
    since: float
    info: dict[str, Any] | None = None


class Ear(Protocol):
    """What peers hand what they hear to: the cluster of this node's hub. In the loop's thread; returns quickly."""

    def heard(self, sender: str, message: bytes) -> None:
        """A message from another node (its id) or from a publisher without a server (""). Each sender's in order."""
        ...

    def missed(self) -> None:
        """Messages may have been missed: read again, from where it is kept, whatever they would have told of."""
        ...

    def present(self, channel: str, node: str, user_id: str, here: Here | None) -> None:
        """Another node says of a user in a channel that this node is subscribed to: like this now (None: not there).

        Only after :meth:`Peers.who` has answered for the channel; what comes meanwhile is held, and follows it.
        """
        ...

    def nodes(self, alive: Mapping[str, bytes]) -> None:
        """The other nodes that live, and what each last said of itself; after every beat. Who is not in it is gone. The
        first time is before the broker has started, if the engine is there."""
        ...

    def report(self) -> bytes:
        """What this node says of itself with the next beat."""
        ...

    def declare(self) -> None:
        """The engine has nothing of this node's presence (any more): say all of it again (:meth:`Peers.here`), and ask
        again (:meth:`Peers.who`) who is in the channels that this node is subscribed to."""
        ...


class Peers(Protocol):
    """The other nodes over a broker's engine: who lives, who is with them, and messages to them.

    A node that ends without a word (killed, cut off, stopped) is gone for the others at most :data:`LEASE` seconds plus
    two beats later; one that stops says so. What is kept of a node costs the engine nothing per connection while nothing
    happens: a node's lease stands for everything of it.
    """

    @property
    def node(self) -> str:
        """This node's id, new at every start."""
        ...

    def listen(self, ear: Ear) -> None:
        """Who is told. Once, before the broker starts."""
        ...

    async def tell(self, message: bytes, *, node: str | None = None, keep: bool = True) -> None:
        """Send a message to all other nodes (or to one): each gets it once, also after a short absence, or its ear hears
        that it :meth:`~Ear.missed` some.

        :param keep: False: only who can hear it now gets it, nobody misses it, and it is in no order with the others. For
            what is of no use later: questions of the moment, and answers.
        :raises BrokerUnavailable: it may not have been sent.
        """
        ...

    def here(self, channel: str, user_id: str, here: Here | None) -> None:
        """This node has a user in a channel like this now (None: no more). Never waits, never raises: what cannot be
        said now is said with everything else, once the engine is back (:meth:`Ear.declare`)."""
        ...

    async def who(self, channel: str) -> dict[str, dict[str, Here]]:
        """The users in a channel on other nodes that live: node → user → how.

        :raises BrokerUnavailable: it cannot be known now.
        """
        ...

    async def counts(self, channels: Sequence[str]) -> dict[str, int]:
        """How many users are in each channel on all nodes, this one included.

        :raises BrokerUnavailable: it cannot be known now.
        """
        ...

    async def keep(self, kind: str, key: str, value: bytes, seconds: float, *, rank: float = 0.0) -> None:
        """Keep a fact for all nodes (also for those to come), for so long.

        :param rank: where a fact with another rank is kept under the key, the one with the higher rank stays or takes its
            place, whoever came last, and until the later of both ends. Of two with the same rank the last one counts.
        :raises BrokerUnavailable: it may not be kept.
        """
        ...

    async def kept(self, kind: str) -> dict[str, bytes]:
        """The facts of a kind.

        :raises BrokerUnavailable: they cannot be known now.
        """
        ...

    def leave(self) -> None:
        """This node stops soon: the others may forget it as soon as it has nobody any more (the broker's ``stop`` says
        the last word)."""
        ...


LEASE = 6.0
"""Seconds without a beat after which a node is gone."""
BEAT = 1.5
"""Seconds between two beats of a node."""


class Clock(Protocol):
    """The two clocks. Tests turn their own by hand."""

    def time(self) -> float:
        """Unix seconds: for timestamps and token expiry only."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: for everything else."""
        ...
