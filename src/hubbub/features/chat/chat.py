"""The chat feature of a hub: commands come in, the store decides and keeps, and the rooms hear of it after the commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from msgspec import UNSET, structs
from sqlalchemy import Connection

from hubbub.auth import Grants
from hubbub.engines import Engine
from hubbub.errors import BrokerUnavailable, ClientError, CloseCode, ErrorCode
from hubbub.features.chat import asks, members, membership, moderation, past, reading, rooms, search, tells, timeline  # noqa: F401
from hubbub.features.chat.access import Act, Caller, RoomRow, no_such_room
from hubbub.features.chat.entering import Entering, lock_rooms
from hubbub.features.chat.fleeting import Fleeting
from hubbub.features.chat.live import PREFIX, Live, Room
from hubbub.features.chat.mentioning import mentions_of
from hubbub.features.chat.nodes import Nodes, here
from hubbub.features.chat.search import Indexer
from hubbub.features.chat.sending import Send, Sending, Sent, said_data
from hubbub.features.chat.texts import check_message
from hubbub.features.chat.tx import COMMANDS, Command, Mentioned, Outcome, Removed, Told, Tx, message_head, stamp
from hubbub.hub import EPHEMERAL, PERSONAL, ChannelRule, Hub
from hubbub.messages import JSON, ClientMessage, Gap, Position, Reply, ServerMessage
from hubbub.ports import Past
from hubbub.session import Session, State
from hubbub.settings import ChannelOptions
from hubbub.store import Store
from hubbub.stream import Publication, Recovery

log = logging.getLogger("hubbub")
R = TypeVar("R", bound=Reply)
EXCERPT: Final = 200
"""Characters of a message that a notification of a mention shows."""


class Notify(Protocol):
    """Notifies users on all their devices."""

    def __call__(
        self, user_ids: Iterable[str], title: str, message: str, *, metadata: dict[str, Any]
    ) -> Awaitable[object]: ...


class _Pending(Send, gc=False):
    """A message on its way into the store, and who waits for the answer: a session, or a future."""

    session: Session | None = None
    ref: str | None = None
    answer: asyncio.Future[tells.ChatAck] | None = None


class Chat:
    """Rooms and their messages.

    :param prepare: sees to it that the database has the tables.
    :param notify: tells people that they were mentioned.
    """

    def __init__(self, hub: Hub, store: Store, prepare: Callable[[Engine], Awaitable[None]], notify: Notify) -> None:
        self.hub = hub
        self.store = store
        self.live = Live(hub)
        self.indexer = Indexer(store, hub.spawn)
        self.declared: dict[str, asks.CreateRoom] = {
            room_id: asks.CreateRoom(room_id=room_id) for room_id in hub.settings.default_rooms
        }
        if store.engine.name == "postgresql":  # SQLite has one lock, and no two who wait for each other
            store.lock = lock_rooms
        self._prepare = prepare
        self._notify = notify
        self._past = RoomPast(self)
        self._sends = store.bulk(Sending(hub.settings, hub.clock.time), self._sent)
        self._entrance = Entering(store, hub.settings, hub.clock.time, self._tell)
        self.nodes = Nodes(hub, store, self.live, caller_of)
        self.options = self._options()
        self._fleeting = Fleeting(hub, self.live, self.options, self.nodes.shared)
        hub.reserve(PREFIX, ChannelRule(self.options, self._may_read, self._past_of, self._floor))
        hub.starters.append(self._start)
        hub.stoppers.append(self._stop)
        hub.openers.append(self._opened)
        hub.sweepers.append(self.sweep)
        self._route()

    def _options(self) -> ChannelOptions:
        """Rooms have presence and history whatever the settings say of channels; sizes and policy are configurable."""
        wanted = self.hub.settings.channels.get("room:*", ChannelOptions())
        return wanted.model_copy(update={"presence": True, "history_size": max(1, wanted.history_size)})

    def _route(self) -> None:
        hub = self.hub
        hub.route(asks.JoinRoom, self._on_join)
        hub.route(asks.LeaveRoom, self._on_leave)
        hub.route(asks.ChatMessage, self._on_message)
        hub.route(asks.Typing, self._on_typing)
        for message, command in COMMANDS.items():
            if message is not asks.LeaveRoom:
                hub.route(message, partial(self._on_command, command))

    # -- the beginning and the end

    async def _start(self) -> None:
        await self.store.start(self._prepare)
        try:
            await self.store.write(self._declare)
            await self.indexer.start()
        except BaseException:
            await self.store.stop()
            raise

    def _declare(self, connection: Connection) -> None:
        """Make the rooms that are to be there from the start, where they are not."""
        tx = self._tx(connection, SERVER, writes=True)
        for room_id, wanted in self.declared.items():
            rooms.ensure_room(tx, room_id, wanted)

    async def _stop(self) -> None:
        await self.store.stop()
        self.live.rooms.clear()

    # -- carrying out commands

    def _tx(self, connection: Connection, caller: Caller, *, writes: bool) -> Tx:
        now = int(self.hub.clock.time() * 1000)
        return Tx(connection, caller, now, self.hub.settings, writes=writes)

    async def run(self, caller: Caller, message: ClientMessage, by: Session | None = None) -> Any:
        """Carry out a command for somebody; returns its reply once it is committed and told.

        :param by: the session that it comes from.
        :raises ClientError: it is refused.
        """
        command: Command[Any, Any] = COMMANDS[type(message)]

        def work(connection: Connection) -> Outcome[Any]:
            tx = self._tx(connection, caller, writes=command.writes)
            tx.outcome.reply = command.work(tx, message)
            return tx.outcome

        if command.writes:
            room_id = getattr(message, "room_id", None)
            within = (room_id,) if room_id is not None else ()
            outcome = await self.store.write(work, partial(self._tell, by=by), within=within)
        else:
            outcome = await self.store.read(work)
        return await self._with_presence(outcome.reply)

    async def _on_command(self, command: Command[Any, Any], session: Session, message: ClientMessage) -> None:
        reply = await self.run(caller_of(session), message, session)
        reply.ref = message.ref
        self.hub.reply(session, reply)

    async def _with_presence(self, reply: Any) -> Any:
        """What only the nodes know of a reply: how many are in a room now, and who is connected."""
        if isinstance(reply, tells.Rooms):
            counts = await self.hub.comings.others.counts([PREFIX + room.room_id for room in reply.rooms])
            reply.rooms = [structs.replace(room, users=counts.get(PREFIX + room.room_id, 0)) for room in reply.rooms]
        elif isinstance(reply, tells.RoomReply):
            name = PREFIX + reply.room.room_id
            counts = await self.hub.comings.others.counts([name])
            reply.room = structs.replace(reply.room, users=counts.get(name, 0))
        elif isinstance(reply, tells.LastSeen):
            reply.users.update(dict.fromkeys(await self.hub.cluster.everywhere.online(reply.users), "now"))
        return reply

    # -- telling what was committed

    def _tell(self, outcome: Outcome[Any], by: Session | None = None) -> None:
        """Tell of a command, in the turn of its commit and in the order of the commits."""
        for changed in outcome.changed:
            room = self.live.rooms.get(changed.room.id)
            if room is not None:
                room.row = changed.room
        shared = self.nodes.shared
        if shared:  # else who has to go hears of it first
            self._remove(outcome)
        self._relay(outcome.told, self.nodes.marks_of(outcome))
        for room_id, passing in outcome.passing:
            self.live.publish(room_id, Publication(JSON.encode(passing)))
        for user_id, message in outcome.personal:
            answered = by is not None and by.user_id == user_id and isinstance(message, tells.RoomAdded)
            self._personally(user_id, message, by if answered else None)
        if not shared:
            self._remove(outcome)
        elif outcome.changed or outcome.removed:
            self.hub.spawn(self.nodes.tell(outcome))
        for mentioned in outcome.mentioned:
            self.hub.spawn(self._mention(mentioned))

    def _relay(self, everything: Iterable[Told], marks: Iterable[tuple[str, Publication]] = ()) -> None:
        """Hand publications to the rooms' channels: those of one room together, and before them who has to leave it."""
        by_room: dict[str, list[Publication]] = {}
        for room_id, mark in marks:
            by_room.setdefault(room_id, []).append(mark)
        for told in everything:
            by_room.setdefault(told.room_id, []).append(told.publication)
            if told.publication.offset:
                self.indexer.mark(told.room_no)
        for room_id, publications in by_room.items():
            room = self.live.rooms.get(room_id)
            if room is not None:
                room.seq = max(room.seq, publications[-1].offset)
            self.hub.spawn(self._relay_room(PREFIX + room_id, publications))

    async def _relay_room(self, channel: str, publications: Sequence[Publication]) -> None:
        try:
            await self.hub.broker.relay(channel, publications)
        except BrokerUnavailable:
            # it is committed: this node has it from the store, if it has not got it; the others once they look there
            local = self.hub.channels.get(channel)
            if local is not None and here(local) < publications[-1].offset:
                self.hub.inlet.lost(channel)

    def _personally(self, user_id: str, message: ServerMessage, by: Session | None = None) -> None:
        """Send something to all devices of a user, but not to the session that it comes from."""
        publication = Publication(JSON.encode(message), origin=by.id if by is not None else None)
        self.hub.spawn(self._publish_ephemeral(PERSONAL + user_id, publication))

    async def _publish_ephemeral(self, channel: str, publication: Publication) -> None:
        try:
            await self.hub.broker.publish(channel, publication, EPHEMERAL)
        except (BrokerUnavailable, ClientError):
            self.hub.deliver(channel, publication)  # it is fleeting: at least who is here hears it

    def _remove(self, outcome: Outcome[Any]) -> None:
        """Take out of rooms who has to leave them."""
        for removed in outcome.removed:
            number = outcome.number_of(removed)
            heard = self.nodes.shared and number > 0
            self.nodes.remove(removed.room_id, removed.user_id, removed.reason, number or removed.seq + 1, heard=heard)

    async def _mention(self, mentioned: Mentioned) -> None:
        text = mentioned.text if len(mentioned.text) <= EXCERPT else mentioned.text[: EXCERPT - 1] + "…"
        metadata = {"kind": "mention", "room_id": mentioned.room_id, "id": mentioned.seq, "user_id": mentioned.author}
        title = f"{mentioned.author} mentioned you in {mentioned.room_name}"
        try:
            await self._notify(mentioned.user_ids, title[:500], text, metadata=metadata)
        except (BrokerUnavailable, ClientError) as error:
            log.warning("a mention was not notified: %s", error)  # it is counted all the same

    # -- entering rooms

    async def _on_join(self, session: Session, message: asks.JoinRoom) -> None:
        await self.join(session, message.room_id, message)

    async def join(self, session: Session, room_id: str, message: asks.JoinRoom | None, *, quiet: bool = False) -> Room:
        """Put a session into a room (and make its user a member, where that is open to it), and say what it missed.

        :param quiet: without telling it anything.
        :raises ClientError: it may not enter.
        """
        caller, key = caller_of(session), (room_id, session.user_id)
        try:
            with self.nodes.coming(room_id, session.user_id) as coming:
                entry = await self._entrance.enter(caller, room_id)
                room = self.live.know(entry.row)
                if entry.new:
                    self._personally(session.user_id, tells.RoomAdded(room=entry.info), session)
                since = message.since if message is not None else None
                if entry.floor:
                    room.floors[session.user_id] = entry.floor
                    if since is not None and since.offset < entry.floor:
                        since = None  # what was said before is not for this member
                if quiet:
                    self.live.quiet[key] = session
                seen = entry.row.event_seq
                recovery = await self.nodes.enter(session, room, since, self.options, coming, seen)
        finally:
            if quiet:  # its coming is told at the end of this turn, or it was here already
                asyncio.get_running_loop().call_soon(self.live.quiet.pop, key, None)
        if not quiet:
            self._welcome(session, room, entry.info, recovery, message)
        return room

    def _welcome(
        self, session: Session, room: Room, info: tells.RoomInfo, recovery: Recovery, message: asks.JoinRoom | None
    ) -> None:
        hub = self.hub
        codec = session.link.lane.codec
        listed, count = self.live.listed(room)
        position = recovery.position
        reply = tells.RoomJoined(
            room_id=room.id,
            room=info,
            position=position,
            recovered=recovery.recovered,
            messages=[codec.embed(publication.payload) for publication in recovery.publications],
            users=UNSET if listed is None else listed,
            count=count,
            ref=message.ref if message is not None else None,
        )
        hub.reply(session, reply)
        if message is not None and message.since is not None and not recovery.recovered:
            hub.reply(session, Gap(channel=room.channel, epoch=position.epoch, offset=position.offset))
        session.link.flush()  # before any message of the room

    async def _opened(self, session: Session) -> None:
        """``/ws/chat/{room_id}``: in the room as soon as the user is known."""
        if session.room is None:
            return
        try:
            await self.join(session, session.room, None)
        except ClientError as error:
            if error.code in (ErrorCode.BUSY, ErrorCode.UNAVAILABLE):
                raise
            # another one: the same error may be on its way to others, who only asked to join
            raise ClientError(
                error.code, error.message, retry_after=error.retry_after, close=CloseCode.NOT_FOUND
            ) from None

    async def _on_leave(self, session: Session, message: asks.LeaveRoom) -> None:
        if message.membership:
            await self._on_command(COMMANDS[asks.LeaveRoom], session, message)
            return
        if not self.hub.detach(session, PREFIX + message.room_id):
            raise ClientError(ErrorCode.NOT_JOINED, "you are not in this room")
        room = self.live.rooms.get(message.room_id)
        if room is not None:
            self.live.unmark(room, session.user_id)
        self.hub.reply(session, tells.RoomLeft(room_id=message.room_id, ref=message.ref))

    def _may_read(self, session: Session, name: str) -> None:
        room_id = name[len(PREFIX) :]
        if not caller_of(session).grants.may_join(room_id):
            raise no_such_room(room_id)
        if name not in session.channels:  # the same whether it is there or not
            raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")

    def _floor(self, session: Session, name: str) -> int:
        room = self.live.of_channel(name)
        return 0 if room is None else room.floors.get(session.user_id, 0)

    def _past_of(self, name: str) -> Past | None:
        """Where a room's past is: in the store, but for `live` rooms."""
        room = self.live.of_channel(name)
        return None if room is not None and not room.stored else self._past

    # -- saying something

    def _on_message(self, session: Session, message: asks.ChatMessage) -> Coroutine[Any, Any, None] | None:
        check_message(message, self.hub.settings)
        room = self._joined(session, message.room_id)
        if room is None:
            return self._say_in_default_room(session, message)
        return self._say(session, room, message)

    async def _say_in_default_room(self, session: Session, message: asks.ChatMessage) -> None:
        """A client that never heard of rooms (the guide's) talks in the first default room."""
        default = self.hub.settings.default_rooms
        if not default:
            raise ClientError(ErrorCode.NOT_JOINED, "join a room first (join_room)")
        room = await self.join(session, default[0], None, quiet=True)
        waits = self._say(session, room, message)
        if waits is not None:
            await waits

    def _say(self, session: Session, room: Room, message: asks.ChatMessage) -> Coroutine[Any, Any, None] | None:
        if not room.stored:
            if self._fleeting.waits:
                self._fleeting.hand_in(session, room, caller_of(session), message)
                return None
            return self._say_live(session, room, message)
        self._queue(room.row, caller_of(session), message, session=session, ref=message.ref)
        return None

    def _queue(self, row: RoomRow, caller: Caller, message: asks.ChatMessage, **who: Any) -> None:
        text = message.message
        pending = _Pending(
            row.no,
            row.id,
            caller,
            text,
            message.client_id,
            message.reply_to,
            message.thread,
            message.files,
            mentions_of(text, self.hub.settings.max_mentions) if "@" in text else (),
            **who,
        )
        self._sends.add(pending, len(text), (row.no,))

    async def say(self, caller: Caller, room_id: str, message: asks.ChatMessage) -> tells.ChatAck:
        """Say something in a room without a session; returns once it is committed.

        :raises ClientError: it is refused.
        """
        if not caller.user_id:
            raise ClientError(ErrorCode.INVALID_MESSAGE, "say who speaks: `user_id`")
        check_message(message, self.hub.settings)
        row = await self.store.read(partial(self._row, caller, room_id))
        if not row.stored:
            room = self.live.know(row)
            return await self._fleeting.say(room, caller, message, None)
        answer: asyncio.Future[tells.ChatAck] = asyncio.get_running_loop().create_future()
        self._queue(row, caller, message, answer=answer)
        return await answer

    def _row(self, caller: Caller, room_id: str, connection: Connection) -> RoomRow:
        tx = self._tx(connection, caller, writes=False)
        room, member = tx.enter(room_id, Act.WRITE)
        if not room.stored:
            membership.check_join(tx, room, member)  # a ban is all that keeps somebody out of a live room
        return room

    def _sent(self, items: Sequence[Send], results: Sequence[Sent | ClientError]) -> None:
        """A turn's messages are committed, or were refused: the rooms hear them, and then their authors."""
        told: list[Told] = []
        rooms_here = self.live.rooms
        for item, sent in zip(items, results, strict=True):
            if isinstance(sent, Sent) and not sent.again:
                tail = b",%b}" % JSON.encode(said_data(item, sent, stamp(sent.at)))[1:]
                room = rooms_here.get(item.room_id)
                if room is not None and room.typing:
                    self.live.said(room, item.caller.user_id)
                head = room.head if room is not None else message_head(item.room_id)
                publication = Publication(head, tail, None, item.caller.user_id, None, 0.0, sent.seq)
                told.append(Told(item.room_id, publication, item.room_no))
        self._relay(told)
        for item, sent in zip(items, results, strict=True):
            assert isinstance(item, _Pending)
            self._answer(item, sent)

    def _answer(self, item: _Pending, sent: Sent | ClientError) -> None:
        if isinstance(sent, Sent):
            if sent.mentioned is not None and not sent.again:
                self.hub.spawn(self._mention(sent.mentioned))
            ack = tells.ChatAck(sent.seq, stamp(sent.at), item.room_id, item.client_id, ref=item.ref)
            if item.answer is not None:
                if not item.answer.done():
                    item.answer.set_result(ack)
            elif item.session is not None and item.session.state is State.OPEN:
                link = item.session.link
                link.send(link.lane.codec.encode(ack))
        elif item.answer is not None:
            if not item.answer.done():
                item.answer.set_exception(sent)
        elif item.session is not None and item.session.state is State.OPEN:
            self.hub.failed(item.session, None, sent, item.ref)

    async def _say_live(self, session: Session, room: Room, message: asks.ChatMessage) -> None:
        ack = await self._fleeting.say(room, caller_of(session), message, message.ref)
        link = session.link
        link.send(link.lane.codec.encode(ack))

    async def _on_typing(self, session: Session, message: asks.Typing) -> None:
        room = self._joined(session, message.room_id)
        if room is None:
            default = self.hub.settings.default_rooms
            if not default:
                raise ClientError(ErrorCode.NOT_JOINED, "join a room first (join_room)")
            room = await self.join(session, default[0], None, quiet=True)
        self.live.types(room, session)

    def _joined(self, session: Session, room_id: str | None) -> Room | None:
        """The room that a message is for: the named one, the endpoint's, or the only one joined; None: none is joined.

        :raises ClientError: ``not_joined``, ``not_found``, or that it is not clear which.
        """
        if room_id is None:
            room_id = session.room
        if room_id is None:
            joined = [name[len(PREFIX) :] for name in session.channels if name.startswith(PREFIX)]
            if len(joined) > 1:
                raise ClientError(ErrorCode.INVALID_MESSAGE, "you are in several rooms: say which - at `$.room_id`")
            if not joined:
                return None
            room_id = joined[0]
        room = self.live.rooms.get(room_id)
        if PREFIX + room_id not in session.channels or room is None:
            raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")
        return room

    # -- what goes on by itself

    def sweep(self, monotonic: float) -> None:
        """Fade typing, look what other nodes did, index what was said."""
        self.live.sweep(monotonic)
        self.nodes.sweep(monotonic)
        self.indexer.sweep(monotonic)


class RoomPast:
    """The past of stored rooms: a :class:`~hubbub.ports.Past`."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        room_id = channel[len(PREFIX) :]
        room = self._chat.live.rooms.get(room_id)
        if since is None and room is not None and room.sure:
            return Recovery(Position(room.row.epoch, room.seq), [], False)
        limit = min(limit, self._chat.hub.settings.catch_up_limit)
        nodes = self._chat.nodes
        removed: list[Removed] | None = [] if nodes.shared else None
        recovery = await self._chat.store.read(
            lambda connection: past.recover(connection, room_id, since, limit, _emptied(removed))
        )
        if recovery is None:
            return await self._chat.hub.broker.recover(channel, since, limit, options)
        if removed:
            nodes.read(removed)
        if since is not None and not recovery.recovered:
            nodes.doubt(room_id)  # somebody may have been removed in what this node does not hear
        if room is not None and self._chat.store.exclusive:
            room.seq = max(room.seq, recovery.position.offset)
            room.sure = True  # what is committed from here on, or was since the read, this node tells of itself
        return recovery

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        room_id = channel[len(PREFIX) :]
        read = await self._chat.store.read(lambda connection: past.page(connection, room_id, after, before, limit))
        return read or await self._chat.hub.broker.history(channel, after, before, limit, options)


def _emptied(found: list[Removed] | None) -> list[Removed] | None:
    """A list to read into: reading may have been begun before."""
    if found is not None:
        found.clear()
    return found


def caller_of(session: Session) -> Caller:
    """Who a session speaks for."""
    identity = session.identity
    if identity is None:
        raise ClientError(ErrorCode.AUTHENTICATION_REQUIRED, "send an auth message first")
    return Caller(identity.user_id, identity.grants, identity.grants.admin)


SERVER: Final = Caller("", Grants(admin=True), True)
"""The server itself: an API key that speaks for nobody, or the app's own code."""
