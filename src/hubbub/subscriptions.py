"""Subscribing a session to a channel, whoever asks for it: the client, or the app for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw

from hubbub.comings import present
from hubbub.errors import ClientError, ErrorCode
from hubbub.making import Making
from hubbub.messages import Gap, Position, Subscribed, Unsubscribed
from hubbub.ports import Topic
from hubbub.session import Session
from hubbub.settings import ChannelOptions
from hubbub.stream import Recovery

if TYPE_CHECKING:
    from hubbub.hub import Hub

PERSONAL = "user:"
TRIES = 3
"""How often an initial state is loaded before the channel is found too busy for it."""


class Subscriptions:
    """Makes and ends subscriptions of a hub's sessions, and tells the clients."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def subscribe(
        self, session: Session, name: str, since: Position | None, presence: bool, ref: str | None
    ) -> Position:
        """Subscribe, and send ``subscribed`` with what the session missed or with the channel's initial state.

        Whatever is raised, the session's subscriptions are then as they were before.

        :raises ClientError: too many subscriptions, the channel is too busy for its state, or it was ended meanwhile.
        :raises BrokerUnavailable: history does not answer.
        """
        if name.startswith(PERSONAL):
            # every session gets its user's channel anyway; this is only about what was missed
            recovery = await self._hub.inlet.recover_personal(name[len(PERSONAL) :], since)
            self._answer(session, name, since, recovery, UNSET, presence, ref)
            return recovery.position
        with Making(self._hub, session, name) as making:
            recovery, state = await self._make(making, since)
            self._answer(session, name, since, recovery, state, presence, ref)
            if presence:
                making.watch()
        return recovery.position

    async def _make(self, making: Making, since: Position | None) -> tuple[Recovery, Any]:
        hub, name = self._hub, making.name
        options = hub.options_for(name)
        topic = hub.topic_of(name)
        if topic is not None and topic.has_state:
            return await self._with_state(making, since, options, topic)
        return await making.attach(since, options), UNSET

    def _answer(
        self,
        session: Session,
        name: str,
        since: Position | None,
        recovery: Recovery,
        state: Any,
        presence: bool,
        ref: str | None,
    ) -> None:
        self._tell(session, name, recovery, state, presence, ref)
        if since is not None and not recovery.recovered and state is UNSET:
            position = recovery.position
            self._hub.reply(session, Gap(channel=name, epoch=position.epoch, offset=position.offset))
        session.link.flush()  # before any publication of the channel

    def _tell(
        self, session: Session, name: str, recovery: Recovery, state: Any, presence: bool, ref: str | None
    ) -> None:
        hub = self._hub
        codec = session.link.lane.codec
        missed = hub.visible(session, recovery.publications, name)
        channel = hub.channels.get(name)
        users: Any = UNSET
        count: Any = UNSET
        if presence and channel is not None and channel.roster is not None:
            count = len(channel.roster)
            if count <= hub.settings.presence_limit:
                users = {user: present(dict(here)) for user, here in channel.roster.snapshot().items()}
        reply = Subscribed(
            channel=name,
            epoch=recovery.position.epoch,
            offset=recovery.position.offset,
            recovered=recovery.recovered,
            messages=[codec.embed(publication.payload) for publication in missed],
            presence=users,
            count=count,
            state=state if state is UNSET else codec.embed(state),
            ref=ref,
        )
        hub.reply(session, reply)

    async def _with_state(
        self, making: Making, since: Position | None, options: ChannelOptions, topic: Topic
    ) -> tuple[Recovery, Any]:
        """A client that can have all that it missed gets that; any other gets the state, and what came while it was
        loaded: the position is read first, so nothing falls between."""
        if since is not None:
            recovery = await making.attach(since, options)
            if recovery.recovered:
                return recovery, UNSET
            making.withdraw()
        for _ in range(TRIES):
            read = await self._hub.broker.recover(making.name, None, 0, options)
            state = Raw(await topic.state(making.session, making.name))
            recovery = await making.attach(read.position, options)
            if recovery.recovered:
                return Recovery(recovery.position, recovery.publications, False), state
            making.withdraw()
        raise ClientError(
            ErrorCode.BUSY, "more is published than the channel's history holds while its state loads", retry_after=1.0
        )

    def end(self, session: Session, name: str, reason: str | None = None, ref: str | None = None) -> bool:
        """End a subscription and send ``unsubscribed``. False if there was none."""
        if not self._hub.detach(session, name):
            return False
        self._hub.reply(session, Unsubscribed(channel=name, reason=reason, ref=ref))
        return True
