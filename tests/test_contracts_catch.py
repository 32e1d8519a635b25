"""The contract is worth what it catches: brokers that break one promise each, and the test that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hubbub.brokers.memory import Once
from hubbub.messages import Position
from hubbub.ports import Broker, Here
from hubbub.settings import ChannelOptions
from hubbub.stream import Recovery
from hubbub.testing.contracts import BrokerContract, PeersContract
from hubbub.testing.engine import copied
from hubbub.testing.engine_node import MemoryEngineBroker
from tests.support import settings_for
from tests.test_contracts import EnginePlace

pytestmark = pytest.mark.anyio
Break = Callable[["BrokenPlace"], None]


class BrokenPlace(EnginePlace):
    """An engine of which one part is another one.

    :ivar every: done to each new broker.
    """

    patience = 0.3

    def __init__(self, how: Break) -> None:
        super().__init__()
        self.every: list[Callable[[MemoryEngineBroker], None]] = []
        how(self)

    def broker(self, **settings: Any) -> Broker:
        broker = self.engine.broker(settings_for(**settings))
        for change in self.every:
            change(broker)
        return broker


def replace(target: Any, name: str, made: Callable[..., Any]) -> None:
    """Put ``made(original, …)`` in place of a method."""
    setattr(target, name, partial(made, getattr(target, name)))


# -- broken histories


def gives_what_is_left(place: BrokenPlace) -> None:
    def recover(real: Any, broker: Any, channel: str, since: Position | None, limit: int, options: Any) -> Recovery:
        found: Recovery = real(broker, channel, since, limit, options)
        if since is None or found.recovered or since.epoch != found.position.epoch:
            return found
        if since.offset > found.position.offset or not options.history_size:
            return found
        return Recovery(found.position, list(place.engine.history(channel, since.offset, None, limit)[1]), True)

    replace(place.engine, "recover", recover)


def ignores_the_limit(place: BrokenPlace) -> None:
    replace(
        place.engine,
        "recover",
        lambda real, broker, channel, since, limit, options: real(broker, channel, since, 10**6, options),
    )


def takes_any_epoch(place: BrokenPlace) -> None:
    def recover(real: Any, broker: Any, channel: str, since: Position | None, limit: int, options: Any) -> Any:
        top = real(broker, channel, None, 0, options).position
        known = Position(top.epoch, since.offset) if since is not None and since.offset <= top.offset else since
        return real(broker, channel, known, limit, options)

    replace(place.engine, "recover", recover)


def takes_the_future(place: BrokenPlace) -> None:
    def recover(real: Any, broker: Any, channel: str, since: Position | None, limit: int, options: Any) -> Any:
        found = real(broker, channel, since, limit, options)
        if since is not None and since.epoch == found.position.epoch and since.offset > found.position.offset:
            return Recovery(found.position, [], True)
        return found

    replace(place.engine, "recover", recover)


def keeps_nothing_at_once(place: BrokenPlace) -> None:
    """The answer comes before the history has it."""

    def publish(real: Any, broker: Any, *rest: Any) -> Any:
        position = real(broker, *rest)
        kept = place.engine._channels.get(rest[0])
        if kept is not None:
            last = kept.history._kept.pop()
            broker._loop.call_later(0.01, kept.history._kept.append, last)
        return position

    replace(place.engine, "publish", publish)


def counts_by_two(place: BrokenPlace) -> None:
    def publish(real: Any, broker: Any, channel: str, *rest: Any) -> Any:
        position = real(broker, channel, *rest)
        if channel in place.engine._channels:
            place.engine._channels[channel].history.offset += 1
        return position

    replace(place.engine, "publish", publish)


def has_more_when_there_is_none(place: BrokenPlace) -> None:
    def history(real: Any, *rest: Any) -> Any:
        position, page, _ = real(*rest)
        return position, page, bool(page)

    replace(place.engine, "history", history)


def gives_new_epochs_to_readers(place: BrokenPlace) -> None:
    """A channel that has nothing is not noted, so its next reader gets another epoch."""

    def recover(real: Any, broker: Any, channel: str, *rest: Any) -> Any:
        found = real(broker, channel, *rest)
        if not found.position.offset:
            place.engine._channels.pop(channel, None)
        return found

    replace(place.engine, "recover", recover)


def numbers_what_is_not_kept(place: BrokenPlace) -> None:
    def publish(real: Any, broker: Any, channel: str, publication: Any, options: Any, *rest: Any) -> Any:
        position = real(broker, channel, publication, options, *rest)
        return position if options.history_size else Position("e", 1)

    replace(place.engine, "publish", publish)


# -- broken deliveries


def tells_all_nodes(place: BrokenPlace) -> None:
    def hand_out(real: Any, channel: str, publication: Any) -> None:
        for broker in place.engine._brokers:
            if broker._inlet is not None:
                broker.soon(partial(broker._inlet.deliver, channel, copied(publication)))

    replace(place.engine, "hand_out", hand_out)


def stays_subscribed(place: BrokenPlace) -> None:
    async def unsubscribe(real: Any, channel: str) -> None:
        pass

    place.every.append(lambda broker: replace(broker, "unsubscribe", unsubscribe))


def counts_subscriptions(place: BrokenPlace) -> None:
    """Who subscribes three times has to unsubscribe three times."""
    counts: dict[str, int] = {}

    async def subscribe(real: Any, channel: str) -> None:
        counts[channel] = counts.get(channel, 0) + 1
        await real(channel)

    async def unsubscribe(real: Any, channel: str) -> None:
        counts[channel] = counts.get(channel, 0) - 1
        if counts[channel] <= 0:
            await real(channel)

    place.every.append(lambda broker: replace(broker, "subscribe", subscribe))
    place.every.append(lambda broker: replace(broker, "unsubscribe", unsubscribe))


def subscribes_later(place: BrokenPlace) -> None:
    async def subscribe(real: Any, channel: str) -> None:
        asyncio.get_running_loop().call_later(0.02, lambda: asyncio.ensure_future(real(channel)))

    place.every.append(lambda broker: replace(broker, "subscribe", subscribe))


def loses_a_field(name: str) -> Break:
    def change(place: BrokenPlace) -> None:
        def hand_out(real: Any, channel: str, publication: Any) -> None:
            own = copied(publication)
            setattr(own, name, None)
            real(channel, own)

        replace(place.engine, "hand_out", hand_out)

    change.__name__ = f"loses_{name}"
    return change


def folds_names(place: BrokenPlace) -> None:
    def hand_out(real: Any, channel: str, publication: Any) -> None:
        for name in {channel, channel.lower(), channel.upper()}:
            real(name, publication)

    replace(place.engine, "hand_out", hand_out)


def hands_over_twice_with_another_text(place: BrokenPlace) -> None:
    def hand_out(real: Any, channel: str, publication: Any) -> None:
        real(channel, publication)
        if publication.offset % 7 == 0:
            own = copied(publication)
            own.tail += b"!"
            real(channel, own)

    replace(place.engine, "hand_out", hand_out)


def keeps_what_is_relayed(place: BrokenPlace) -> None:
    async def relay(real: Any, channel: str, publications: Any) -> None:
        await real(channel, publications)
        kept = place.engine._kept(place.engine._brokers[0], channel, ChannelOptions())
        for publication in publications:
            kept.history.append(copied(publication))

    place.every.append(lambda broker: replace(broker, "relay", relay))


def leaves_a_task(place: BrokenPlace) -> None:
    async def start(real: Any, inlet: Any) -> None:
        place.left = asyncio.ensure_future(asyncio.sleep(0.5))  # type: ignore[attr-defined]  # held for the test alone
        await real(inlet)

    place.every.append(lambda broker: replace(broker, "start", start))


# -- broken keys and versions


class Forgetful(Once):
    def find(self, channel: str, key: str, now: float) -> Position | None:
        return None


class OneForAll(Once):
    """Keys of all channels are the same."""

    def find(self, channel: str, key: str, now: float) -> Position | None:
        return super().find("", key, now)

    def note(self, channel: str, key: str, position: Position, now: float) -> None:
        super().note("", key, position, now)


class Eternal(Once):
    def expire(self, now: float) -> None:
        pass


class Hasty(Once):
    """Looks, and notes it a moment later."""

    def note(self, channel: str, key: str, position: Position, now: float) -> None:
        asyncio.get_running_loop().call_soon(super().note, channel, key, position, now)


def remembers_like(kind: type[Once]) -> Break:
    def change(place: BrokenPlace) -> None:
        place.engine._once = kind()

    change.__name__ = kind.__name__
    return change


def publishes_the_same_version(place: BrokenPlace) -> None:
    def publish(real: Any, broker: Any, channel: str, publication: Any, options: Any, once: Any, version: Any) -> Any:
        kept = place.engine._channels.get(channel)
        same = kept is not None and version is not None and version == kept.version
        return real(broker, channel, publication, options, once, None if same else version)

    replace(place.engine, "publish", publish)


def takes_any_version(place: BrokenPlace) -> None:
    replace(place.engine, "publish", lambda real, *rest: real(*rest[:-1], None))


HISTORIES: list[tuple[Break, str]] = [
    (gives_what_is_left, "test_what_was_trimmed_is_never_recovered_in_part"),
    (gives_what_is_left, "test_the_bound_in_bytes_holds"),
    (gives_what_is_left, "test_what_is_too_old_is_gone"),
    (ignores_the_limit, "test_more_than_the_limit_is_nothing"),
    (takes_any_epoch, "test_positions_that_never_were"),
    (takes_the_future, "test_positions_that_never_were"),
    (keeps_nothing_at_once, "test_what_was_published_can_be_recovered_at_once"),
    (counts_by_two, "test_offsets_are_1_2_3_in_each_channel"),
    (counts_by_two, "test_offsets_have_no_gaps_when_many_publish_at_once"),
    (has_more_when_there_is_none, "test_pages_of_history"),
    (gives_new_epochs_to_readers, "test_a_position_of_a_channel_that_is_empty_means_something_later"),
    (numbers_what_is_not_kept, "test_without_history_there_are_no_positions"),
    (tells_all_nodes, "test_every_subscribed_node_gets_it_and_no_other"),
    (stays_subscribed, "test_nothing_comes_once_it_is_unsubscribed"),
    (counts_subscriptions, "test_subscribing_is_of_the_node"),
    (subscribes_later, "test_what_is_published_after_subscribing_comes"),
    (loses_a_field("key"), "test_all_of_a_publication_survives_the_way"),
    (loses_a_field("user"), "test_all_of_a_publication_survives_the_way"),
    (loses_a_field("origin"), "test_all_of_a_publication_survives_the_way"),
    (loses_a_field("at"), "test_all_of_a_publication_survives_the_way"),
    (folds_names, "test_names_are_taken_literally"),
    (hands_over_twice_with_another_text, "test_all_nodes_have_the_same_order"),
    (keeps_what_is_relayed, "test_relaying_keeps_offsets_and_nothing_else"),
    (leaves_a_task, "test_the_end_leaves_nothing_behind"),
    (remembers_like(Forgetful), "test_published_once_with_a_key"),
    (remembers_like(OneForAll), "test_published_once_with_a_key"),
    (remembers_like(Eternal), "test_keys_are_forgotten"),
    (remembers_like(Hasty), "test_published_once_when_all_nodes_try_at_once"),
    (publishes_the_same_version, "test_only_higher_versions_are_published"),
    (takes_any_version, "test_the_highest_version_wins_when_all_try_at_once"),
]


# -- broken peers


def hears_itself(place: BrokenPlace) -> None:
    replace(place.engine, "add_message", lambda real, sender, *what: real("somebody", *what))


def tells_everybody(place: BrokenPlace) -> None:
    replace(place.engine, "add_message", lambda real, sender, message, _, keep: real(sender, message, None, keep))


def tells_twice(place: BrokenPlace) -> None:
    def add(real: Any, sender: str, message: bytes, *how: Any) -> None:
        for _ in range(2 if b"7" in message else 1):
            real(sender, message, *how)

    replace(place.engine, "add_message", add)


def tells_in_passing_to_nobody(place: BrokenPlace) -> None:
    def add(real: Any, sender: str, message: bytes, node: str | None, keep: bool) -> None:
        if keep:
            real(sender, message, node, keep)

    replace(place.engine, "add_message", add)


def tells_in_another_order(place: BrokenPlace) -> None:
    def unheard(real: Any, broker: Any) -> Any:
        missed, messages = real(broker)
        return missed, messages[::-1]

    replace(place.engine, "unheard", unheard)


def hears_the_past(place: BrokenPlace) -> None:
    def started(real: Any, broker: Any) -> None:
        real(broker)
        broker.heard = 0
        broker.soon(broker.listen)

    replace(place.engine, "started", started)


def says_before_it_is_asked(place: BrokenPlace) -> None:
    def hear(broker: Any, at: int, channel: str, node: str, user_id: str, here: Here | None) -> None:
        if channel in broker.wanted:
            broker.peers.ear.present(channel, node, user_id, here)

    place.every.append(lambda broker: setattr(broker, "hear_present", partial(hear, broker)))


def says_what_nobody_wants(place: BrokenPlace) -> None:
    def hear(broker: Any, at: int, channel: str, node: str, user_id: str, here: Here | None) -> None:
        broker.peers.ear.present(channel, node, user_id, here)

    place.every.append(lambda broker: setattr(broker, "hear_present", partial(hear, broker)))


def drops_what_comes_meanwhile(place: BrokenPlace) -> None:
    """What is said between the engine's answer and its arrival is not held."""

    def hear(real: Any, at: int, channel: str, *rest: Any) -> None:
        asked = real.__self__.peers.asked.get(channel)
        if asked is None or asked.held is None:
            real(at, channel, *rest)

    place.every.append(lambda broker: replace(broker, "hear_present", hear))


def is_among_the_others(place: BrokenPlace) -> None:
    replace(place.engine, "who", lambda real, node, channel: real("", channel))


def counts_the_same_user_twice(place: BrokenPlace) -> None:
    def counts(real: Any, channels: Any) -> dict[str, int]:
        members = place.engine._members.values()
        return {channel: sum(len(member.here.get(channel, ())) for member in members) for channel in channels}

    replace(place.engine, "counts", counts)


def loses_the_grace(place: BrokenPlace) -> None:
    def say(real: Any, node: str, channel: str, user_id: str, here: Here | None) -> None:
        real(node, channel, user_id, here if here is None or here.devices else None)

    replace(place.engine, "say_here", say)


def lives_for_ever(place: BrokenPlace) -> None:
    async def kill(broker: Broker) -> None:
        pass

    place.kill = kill  # type: ignore[method-assign]  # it does not end


def goes_without_a_word(place: BrokenPlace) -> None:
    replace(place.engine, "part", lambda real, node: None)


def leaves_at_once(place: BrokenPlace) -> None:
    replace(place.engine, "leave", lambda real, node: place.engine.part(node))


def keeps_its_name(place: BrokenPlace) -> None:
    async def start(real: Any, inlet: Any) -> None:
        real.__self__._was_started = False
        await real(inlet)

    place.every.append(lambda broker: replace(broker, "start", start))


def keeps_for_ever(place: BrokenPlace) -> None:
    replace(place.engine, "keep", lambda real, kind, key, value, seconds, rank: real(kind, key, value, 10**9, rank))


def keeps_what_comes_last(place: BrokenPlace) -> None:
    replace(place.engine, "keep", lambda real, kind, key, value, seconds, rank: real(kind, key, value, seconds))


def keeps_the_higher_for_its_own_time(place: BrokenPlace) -> None:
    ranks: dict[tuple[str, str], float] = {}

    def keep(real: Any, kind: str, key: str, value: bytes, seconds: float, rank: float) -> None:
        if rank >= ranks.get((kind, key), rank):
            ranks[kind, key] = rank
            real(kind, key, value, seconds)

    replace(place.engine, "keep", keep)


def keeps_all_kinds_together(place: BrokenPlace) -> None:
    replace(place.engine, "keep", lambda real, kind, *rest: real("", *rest))
    replace(place.engine, "kept", lambda real, kind: real(""))


PEERS: list[tuple[Break, str]] = [
    (hears_itself, "test_all_others_hear_it_once_and_in_order"),
    (tells_in_passing_to_nobody, "test_what_is_not_kept_is_heard_by_who_is_there"),
    (tells_everybody, "test_one_node_alone_hears_it"),
    (tells_twice, "test_all_others_hear_it_once_and_in_order"),
    (tells_in_another_order, "test_messages_of_one_turn_keep_their_order"),
    (hears_the_past, "test_who_comes_later_does_not_hear_what_was_said_before"),
    (says_before_it_is_asked, "test_nothing_is_heard_before_asking"),
    (says_what_nobody_wants, "test_no_changes_are_heard_once_it_is_unsubscribed"),
    (drops_what_comes_meanwhile, "test_nothing_falls_between_asking_and_hearing"),
    (is_among_the_others, "test_who_is_there_survives_the_way"),
    (counts_the_same_user_twice, "test_a_user_on_several_nodes_counts_once"),
    (loses_the_grace, "test_the_newest_word_counts"),
    (lives_for_ever, "test_who_ends_without_a_word_is_gone_with_its_lease"),
    (goes_without_a_word, "test_who_stops_is_gone_before_its_lease"),
    (leaves_at_once, "test_who_leaves_is_forgotten_once_it_has_nobody"),
    (keeps_its_name, "test_who_starts_again_is_another_node"),
    (keeps_for_ever, "test_facts_end"),
    (keeps_what_comes_last, "test_the_fact_of_the_highest_rank_counts"),
    (keeps_the_higher_for_its_own_time, "test_the_fact_of_the_highest_rank_stays_for_as_long_as_any"),
    (keeps_all_kinds_together, "test_facts_are_for_all_nodes_also_those_to_come"),
]


async def caught(contract: BrokerContract | PeersContract, how: Break, name: str) -> None:
    test = getattr(contract, name)
    marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
    cases: list[dict[str, Any]] = [{}]
    if "parametrize" in marks:
        argument, values = marks["parametrize"].args
        cases = [{argument: value} for value in values]
    for case in cases:
        try:
            await test(BrokenPlace(how), **case)
        except (AssertionError, IndexError):
            return
    pytest.fail(f"{name} passes, although it {how.__name__}")


@pytest.mark.parametrize(("how", "name"), HISTORIES, ids=[f"{how.__name__}-{name}" for how, name in HISTORIES])
async def test_a_broken_broker_is_caught(how: Break, name: str) -> None:
    await caught(BrokerContract(), how, name)


@pytest.mark.parametrize(("how", "name"), PEERS, ids=[f"{how.__name__}-{name}" for how, name in PEERS])
async def test_broken_peers_are_caught(how: Break, name: str) -> None:
    await caught(PeersContract(), how, name)
