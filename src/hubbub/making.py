"""Making a subscription, which may take a while: in the end it is there, or all is as it was before.

While it is made, history has to answer, and an engine may be away. Others go on meanwhile: the app may end what is being
made, or make it at the same time.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from hubbub.channel import Channel
from hubbub.errors import ClientError, ErrorCode
from hubbub.messages import Position
from hubbub.session import Session, State
from hubbub.settings import ChannelOptions
from hubbub.stream import Recovery

if TYPE_CHECKING:
    from hubbub.hub import Hub


class SubscriptionEnded(ClientError):
    """It was ended while it was being made."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.CONFLICT, "the subscription was ended while it was being made")


class Attempts:
    """What all have in common that make the same subscription of the same session.

    :ivar count: how many they are.
    :ivar there: there is a subscription, whatever becomes of those that are still at it.
    :ivar ended: somebody has ended it.
    """

    __slots__ = ("count", "ended", "there")

    def __init__(self, there: bool) -> None:
        self.count = 0
        self.ended = False
        self.there = there


class Making:
    """Subscribes a session to a channel. A context: left by an exception, what was there before stays, and nothing else.

    :raises ClientError: at the begin: ``too_many`` subscriptions, or the session is over.
    """

    __slots__ = ("_attempts", "_hub", "name", "session")

    def __init__(self, hub: Hub, session: Session, name: str) -> None:
        self._hub = hub
        self.session = session
        self.name = name

    def __enter__(self) -> Making:
        hub, session, name = self._hub, self.session, self.name
        if session.state is State.CLOSED:
            raise SubscriptionEnded
        attempts = hub.attempts.get((session, name))
        if attempts is None:
            attempts = Attempts(name in session.channels)
            session.subscribe(name, hub.settings.max_channels_per_session)
            hub.attempts[session, name] = attempts
        attempts.count += 1
        self._attempts = attempts
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attempts = self._attempts
        attempts.count -= 1
        if attempts.ended:
            return  # and if somebody makes it anew, that is theirs
        if kind is None:
            attempts.there = True
        else:
            self.withdraw()
        if not attempts.count:
            del self._hub.attempts[self.session, self.name]
            if not attempts.there:
                self._hub.detach(self.session, self.name)

    async def attach(self, since: Position | None, options: ChannelOptions) -> Recovery:
        """Say what the session missed. It gets every publication after the returned position.

        :raises BrokerUnavailable: history does not answer.
        :raises SubscriptionEnded: it was ended meanwhile.
        """
        hub = self._hub
        self._check()
        channel = hub.channel_of(self.name, options)
        hub.inlet.begin(channel)
        try:
            await hub.hear(channel)
            recovery = await hub.inlet.recover(channel, since)
            # no await from here: what the broker hands over next is after the position
            self._check()
            hub.put_in(channel, self.session)
        finally:
            hub.inlet.done(channel)
            hub.release(channel)
        return recovery

    def withdraw(self) -> None:
        """Take back what :meth:`attach` did, to try again; but not a subscription that was there."""
        channel = self._hub.channels.get(self.name)
        if channel is not None and not self._attempts.there and not self._attempts.ended:
            self._hub.take_out(channel, self.session)
            self._hub.release(channel)

    def watch(self) -> None:
        """Tell the session of comings and goings from here on."""
        channel: Channel = self._hub.channels[self.name]
        channel.watchers = {*(channel.watchers or ()), self.session.link}

    def _check(self) -> None:
        if self._attempts.ended:
            raise SubscriptionEnded
