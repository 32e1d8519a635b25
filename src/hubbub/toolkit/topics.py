"""Channels as code: what an app says of the channels of one pattern, and a handle to publish on them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw

from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.messages import Position, plain_data
from hubbub.session import Session as CoreSession
from hubbub.settings import ChannelOptions, SlowPolicy
from hubbub.stream import Publication
from hubbub.toolkit.dependencies import Call, Callee, Context
from hubbub.toolkit.handlers import is_special
from hubbub.toolkit.names import NamePattern
from hubbub.toolkit.session import session_of
from hubbub.toolkit.shapes import CannotServe, Shape, data_bytes
from hubbub.toolkit.signature import MISSING, names_around, parameters_of, place_of, returns

if TYPE_CHECKING:
    from hubbub.app import Hubbub
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")
F = TypeVar("F", bound=Callable[..., Any])
PublishPolicy = Literal["grant", "subscribers", "anyone", "server"]
HOOKS: Final = ("authorize", "on_subscribe", "on_publish", "visible", "occupied", "vacated")
"""Methods of a class that ``@hub.channel(…)`` takes for hooks."""


class _Data(msgspec.Struct):
    data: Raw


class Topic:
    """The channels of one pattern. Made by ``hub.channel(…)`` or ``router.channel(…)``.

    It decorates the authorizer, or a class whose methods are the hooks (``authorize``, ``on_subscribe``, ``on_publish``,
    ``visible``, ``occupied``, ``vacated``); each hook can also be given by its own decorator. All hooks take the
    variable parts of the name by name and as the type that they are annotated with; all but ``visible`` may be plain
    functions (run in a thread), and may have dependencies.

    :ivar pattern: literal text, ``{name}`` for one or more characters but ``:``, ``{name:path}`` for any.
    :ivar name_types: what the hooks take the variable parts of the name as, where they say.
    :ivar returned: what the hooks are annotated to return, by their names, where they say.
    """

    def __init__(
        self,
        pattern: str,
        *,
        history: int,
        ttl: float,
        presence: bool,
        slow: SlowPolicy,
        subscribe: Literal["grant", "anyone"],
        publish: PublishPolicy | None,
        place: str,
    ) -> None:
        self.name_pattern = NamePattern(pattern, place)
        try:
            self._options = ChannelOptions(
                history_size=history,
                history_ttl=ttl,
                presence=presence,
                slow=slow,
                subscribe=subscribe,
                publish=publish or "grant",
            )
        except ValueError as error:
            raise ConfigurationError(f"{place}: {pattern!r}: {error}") from None
        self._publish_policy = publish
        self.bound: list[BoundTopic] = []
        self.hooks: dict[str, Callee] = {}
        self.data_shape: Shape | None = None
        self.filter_shape: Shape | None = None
        self.name_types: dict[str, Any] = {}
        self.returned: dict[str, Any] = {}

    @property
    def pattern(self) -> str:
        """The pattern, without what routers put before it."""
        return self.name_pattern.text

    @property
    def options(self) -> ChannelOptions:
        """How its channels behave. Unless told otherwise, subscribers may publish where ``on_publish`` looks at it."""
        if self._publish_policy is None and "on_publish" in self.hooks:
            return self._options.model_copy(update={"publish": "subscribers"})
        return self._options

    # -- hooks

    def __call__(self, hooks: Callable[..., Any]) -> Topic:
        """Decorates the authorizer, or a class of hooks.

        :raises ConfigurationError: a signature cannot be served, or a method looks like a hook and is none.
        """
        around = names_around()
        if not inspect.isclass(hooks):
            self._add("authorize", hooks, around)
            return self
        holder = hooks()
        for name in HOOKS:
            method = getattr(holder, name, None)
            if method is not None:
                self._add(name, method, around)
        strange = [name for name in vars(hooks) if name.startswith("on_") and name not in HOOKS]
        if strange or not self.hooks:
            what = f"{strange[0]!r} is no hook" if strange else "there is no hook in it"
            raise ConfigurationError(f"{place_of(hooks)}: {what}: they are {', '.join(HOOKS)}")
        return self

    def authorize(self, fn: F) -> F:
        """Who may subscribe, read the past and see who is there: return True, or refuse by False or by raising.

        It is asked instead of the token's grants; a token with the ``admin`` grant passes without.
        """
        return self._add("authorize", fn, names_around())

    def on_subscribe(self, fn: F) -> F:
        """The channel's state for who subscribes: what is returned comes as ``state`` in ``subscribed``.

        The position is read before it is called, so what is published while it loads comes after it. A client that
        recovers all that it missed needs no state, and this is not called.
        """
        if not self._options.history_size:
            raise ConfigurationError(
                f"{place_of(fn)}: {self.pattern!r} needs a history for its on_subscribe: what is published while the state "
                "loads would be lost"
            )
        return self._add("on_subscribe", fn, names_around())

    def on_publish(self, fn: F) -> F:
        """Looks at what a client publishes: the parameter that is nothing else is its data, checked by its annotation.

        Return what is to be published instead, or None to publish it as it came; refuse by raising ``ClientError``.
        """
        return self._add("on_publish", fn, names_around())

    def visible(self, fn: F) -> F:
        """Whether one subscriber gets one publication, live and in recovery alike: a plain function of the data.

        It is called for every subscriber and publication, so it can have no dependencies, and must not wait.
        """
        return self._add("visible", fn, names_around())

    def occupied(self, fn: F) -> F:
        """The first subscriber of a channel (on this node) has come."""
        return self._add("occupied", fn, names_around())

    def vacated(self, fn: F) -> F:
        """The last subscriber has gone, and none came back within HUBBUB_PRESENCE_GRACE."""
        return self._add("vacated", fn, names_around())

    def _add(self, name: str, fn: F, around: Mapping[str, Any]) -> F:
        place = place_of(fn)
        if name in self.hooks:
            raise ConfigurationError(f"{self.pattern!r} has two {name}: {self.hooks[name].place}, and {place}")
        alone = name in ("occupied", "vacated")
        context = Context(f"{name} of a channel", names=self.name_pattern.names, session=not alone)
        taken: dict[str, Any] = {}
        if name in ("on_publish", "visible"):
            shape = None
            for parameter in parameters_of(fn, around):
                if (
                    parameter.depends is None
                    and parameter.name not in self.name_pattern.names
                    and not is_special(parameter)
                    and not taken
                ):
                    taken[parameter.name] = _get_message
                    shape = self._shape(Any if parameter.full is MISSING else parameter.full, place)
            if name == "on_publish":
                self.data_shape = shape
            else:
                self.filter_shape = shape
        callee = Callee(fn, context, taken=taken, around=around)
        if name == "visible" and callee.waits:
            raise ConfigurationError(
                f"{place}: it is called for every subscriber and publication, so it must be a plain function without Depends"
            )
        self.hooks[name] = callee
        types = {each.name: each.full for each in parameters_of(fn, around) if each.full is not MISSING}
        self.name_types |= {each: types[each] for each in self.name_pattern.names if each in types}
        self.returned[name] = returns(fn, around)
        for bound in self.bound:
            bound.changed()
        return fn

    def _shape(self, kind: Any, place: str) -> Shape:
        try:
            return Shape(kind, whole=False)
        except CannotServe as error:
            raise ConfigurationError(f"{place}: the data cannot be decoded: {error}") from None

    # -- use

    def name(self, **names: Any) -> str:
        """The channel's name with these variable parts: ``orders.name(order_id=7)``.

        :raises TypeError: one is missing, or is none of the pattern's.
        :raises ValueError: what comes of it is no channel's name.
        """
        return self._only().name_pattern.make(names)

    async def publish(
        self, data: Any, /, *, key: str | None = None, user_id: str | None = None, **names: Any
    ) -> Position:
        """Publish on one of the channels: ``await orders.publish(Shipped(…), order_id=7)``. Returns the position.

        :param data: anything that JSON can carry; Structs, models and dataclasses too.
        :param key: what ``conflate`` keeps the newest of.
        :raises TypeError, ValueError: as :meth:`name`; or the data has no JSON form.
        """
        bound = self._only()
        return await bound.owner.publish(bound.name_pattern.make(names), data, key=key, user_id=user_id)

    def _only(self) -> BoundTopic:
        if len(self.bound) != 1:
            count = "no hub yet" if not self.bound else "several hubs"
            raise RuntimeError(f"{self.pattern!r} is in {count}: use hub.publish(name, …)")
        return self.bound[0]

    def __repr__(self) -> str:
        return f"<Topic {self.pattern!r}>"


def _get_message(call: Call) -> Any:
    return call.message


class BoundTopic:
    """A topic in one hub (a :class:`hubbub.ports.Topic`): calls the hooks with the hub's app.

    :ivar name_pattern: its pattern, with what routers put before it.
    """

    def __init__(self, topic: Topic, prefix: str, hub: Hub, owner: Hubbub) -> None:
        self.topic = topic
        self.hub = hub
        self.owner = owner
        self.name_pattern = NamePattern(prefix + topic.pattern, topic.name_pattern.place)
        self.match = lru_cache(maxsize=65_536)(self.name_pattern.match)
        self.options = topic.options
        self._leaving: dict[str, float] = {}
        self._told: set[str] = set()
        self._queues: dict[str, deque[str]] = {}
        self._last: tuple[Publication | None, Any] = (None, None)
        topic.bound.append(self)
        hub.keep_openings |= self.asks_opening
        hub.sweepers.append(self.sweep)

    def changed(self) -> None:
        """A hook was added."""
        self.options = self.topic.options
        self.hub.options_for.cache_clear()
        self.hub.keep_openings |= self.asks_opening

    @property
    def has_state(self) -> bool:
        return "on_subscribe" in self.topic.hooks

    @property
    def filters(self) -> bool:
        return "visible" in self.topic.hooks

    @property
    def authorizes(self) -> bool:
        return "authorize" in self.topic.hooks

    @property
    def edits(self) -> bool:
        return "on_publish" in self.topic.hooks

    @property
    def asks_opening(self) -> bool:
        return any(hook.asks_opening for hook in self.topic.hooks.values())

    def _call(self, session: CoreSession | None, name: str, message: Any = None) -> Call:
        handle = session_of(session, self.hub) if session is not None else None
        return Call(handle, message, self.match(name) or {}, hub=self.owner, app=self.owner.app)

    async def admit(self, session: CoreSession, name: str) -> None:
        if not await self.topic.hooks["authorize"](self._call(session, name)):
            raise ClientError(ErrorCode.FORBIDDEN, f"you may not subscribe to {name[:128]!r}")

    async def state(self, session: CoreSession, name: str) -> bytes:
        return data_bytes(await self.topic.hooks["on_subscribe"](self._call(session, name)))

    async def edit(self, session: CoreSession, name: str, data: Raw) -> bytes:
        is_json = session.link.lane.codec.is_json
        plain = plain_data(data, is_json=is_json)
        shape = self.topic.data_shape
        value = shape.decode(plain, is_json=True, at="$.data") if shape is not None else UNSET
        edited = await self.topic.hooks["on_publish"](self._call(session, name, value))
        return plain if edited is None else plain_data(Raw(data_bytes(edited)), is_json=True)

    def visible(self, session: CoreSession, name: str, publication: Publication) -> bool:
        hook = self.topic.hooks["visible"]
        try:
            call = self._call(session, name, self._data_of(publication))
            return bool(hook.without_waiting(call))
        except Exception:
            # what may not be seen must not be seen because of a fault
            log.exception("a channel's filter failed: the publication is kept from the subscriber")
            self.hub.metrics.drops["filter_failed"] += 1
            return False

    def _data_of(self, publication: Publication) -> Any:
        """The publication's data; decoded once for all subscribers."""
        last, value = self._last
        if last is not publication:
            raw = msgspec.json.decode(publication.payload, type=_Data).data
            shape = self.topic.filter_shape
            value = shape.decode(raw, is_json=True) if shape is not None else None
            self._last = (publication, value)
        return value

    # -- who is there

    def occupancy(self, name: str, occupied: bool) -> None:
        hooks = self.topic.hooks
        if "occupied" not in hooks and "vacated" not in hooks:
            return
        if not occupied:
            self._leaving[name] = self.hub.clock.monotonic() + self.hub.settings.presence_grace
        elif self._leaving.pop(name, None) is None and name not in self._told:
            self._told.add(name)
            self._tell(name, "occupied")

    def stopped(self) -> None:
        """The hub has stopped; it may be started again, and then all channels are empty."""
        self._leaving.clear()
        self._told.clear()

    def sweep(self, monotonic: float) -> None:
        """See which channels stayed empty for the grace."""
        for name in [name for name, deadline in self._leaving.items() if deadline <= monotonic]:
            del self._leaving[name]
            self._told.discard(name)
            self._tell(name, "vacated")

    def _tell(self, name: str, hook: str) -> None:
        """Call a hook of a channel, after those called for it before have ended."""
        if hook not in self.topic.hooks:
            return
        queue = self._queues.get(name)
        if queue is not None:
            queue.append(hook)
            return
        self._queues[name] = deque([hook])
        self.hub.background(self._work_off(name))

    async def _work_off(self, name: str) -> None:
        queue = self._queues[name]
        try:
            while queue:
                try:
                    async with asyncio.timeout(self.hub.settings.handler_timeout or None):
                        await self.topic.hooks[queue[0]](self._call(None, name))
                except Exception:
                    log.exception("a channel's hook failed", extra={"channel": name, "hook": queue[0]})
                queue.popleft()
        finally:
            del self._queues[name]


__all__ = ["BoundTopic", "Topic"]
