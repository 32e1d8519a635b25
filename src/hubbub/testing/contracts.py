"""What every broker promises, as tests: subclass them for your own (``docs/testing.md`` has how).

The promises are those of :class:`hubbub.ports.Broker` and :class:`hubbub.ports.Peers`. A broker may hand a publication
over twice, or early, since a hub puts that right; it may not lose one, change one, or give two the same offset.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import pytest

from hubbub.messages import Position
from hubbub.ports import ONCE_SECONDS
from hubbub.settings import ChannelOptions
from hubbub.stream import PAGE_BYTES, Publication
from hubbub.testing.contracts_peers import PeersContract
from hubbub.testing.place import Heard, Node, Place

KEEPS: Final = ChannelOptions(history_size=100, history_ttl=3600.0)
SMALL: Final = ChannelOptions(history_size=5, history_ttl=3600.0)
BRIEF: Final = ChannelOptions(history_size=100, history_ttl=1.0)
BARE: Final = ChannelOptions(history_size=0)
HOSTILE: Final = (
    "a",
    "A",
    "0",
    "_.:@/+=~-",
    "n" * 128,
    "a:b",
    "a:b:c",
    "user:*",
    "user:?",
    "user:[a-z]",
    "user:{0}",
    "user:{}",
    "user:}{",
    "user:ünïcode 🙂 \u202e",
    "user:é",
    "user:e\u0301",
    "user:'\"\\ ;%s$1",
    "user:" + "🙂" * 128,
)
"""Channels that may look the same, or like something else, to who is careless. User ids are nearly any text."""
FIELDS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"key": ""},
    {"key": "é\u202e🙂" * 10},
    {"user": "ünïcode 🙂"},
    {"origin": "s-1"},
    {"key": "k" * 128, "user": "u" * 128, "origin": "o" * 64},
    {"key": "\u2028'\"\\"},
)


class BrokerContract:
    """One node, or several: publications, histories, idempotency.

    A subclass has a fixture ``place`` that gives a :class:`Place`: a fresh engine for each test.

    :cvar nodes: how many nodes the tests may have on one engine: 1 for a broker that is for one process.
    """

    nodes = 3

    @pytest.fixture
    def place(self) -> Place:
        """The engine to test. Yours may be async."""
        raise NotImplementedError("a subclass of BrokerContract needs a fixture `place`: see docs/testing.md")

    # -- offsets and epochs

    async def test_offsets_are_1_2_3_in_each_channel(self, place: Place) -> None:
        async with place.node() as node:
            positions = [await node.publish("a", str(number), KEEPS) for number in range(10)]
            assert [position.offset for position in positions] == list(range(1, 11))
            assert len({position.epoch for position in positions}) == 1
            assert positions[0].epoch
            assert len(positions[0].epoch) <= 64, "the wire has no room for longer epochs"
            assert (await node.publish("b", "other", KEEPS)).offset == 1

    async def test_offsets_have_no_gaps_when_many_publish_at_once(self, place: Place) -> None:
        options = ChannelOptions(history_size=1000)
        async with place.nodes(self.nodes) as nodes:
            await nodes[0].broker.subscribe("a")
            work = [nodes[number % self.nodes].publish("a", str(number), options) for number in range(500)]
            positions = await asyncio.gather(*work)
            assert sorted(position.offset for position in positions) == list(range(1, 501))
            await nodes[0].has("a", *range(1, 501))
            texts = {position.offset: str(number) for number, position in enumerate(positions)}
            assert nodes[0].texts("a") == texts, "the position that its publisher was told is that of another one"
            assert await nodes[-1].kept("a", options) == [texts[offset] for offset in sorted(texts)][-1000:]

    async def test_many_channels_at_once(self, place: Place) -> None:
        names = [f"c:{number}" for number in range(200)]
        async with place.nodes(self.nodes) as nodes:
            await asyncio.gather(*(nodes[-1].broker.subscribe(name) for name in names))
            work = [nodes[0].publish(name, f"{name} {number}", KEEPS) for number in range(3) for name in names]
            await asyncio.gather(*work)
            for name in names:
                await nodes[-1].has(name, 1, 2, 3)
                assert nodes[-1].texts(name) == {number + 1: f"{name} {number}" for number in range(3)}

    async def test_handing_in_is_answered_in_order(self, place: Place) -> None:
        """``submit``, where a broker has it: ``publish`` without waiting."""
        async with place.nodes(self.nodes) as nodes:
            submit = getattr(nodes[0].broker, "submit", None)
            if submit is None:
                pytest.skip("this broker has no `submit`: its `publish` does not wait")
            await nodes[-1].broker.subscribe("a")
            answers: list[tuple[str, Position | None, Exception | None]] = []

            def hand_in(text: str, options: ChannelOptions = KEEPS, **how: Any) -> None:
                publication = nodes[0].publication(text)
                submit("a", publication, options, lambda *answer: answers.append((text, *answer)), **how)

            for number in range(1, 51):
                hand_in(str(number))
            hand_in("bare", BARE)  # what has no history may overtake what has
            hand_in("once", once="k", version=7)
            hand_in("again", once="k")
            hand_in("late", version=7)
            assert answers == [], "it is answered later"
            await place.until(lambda: len(answers) == 54, "all are answered")
            assert [error for *_, error in answers] == [None] * 54
            texts = [text for text, *_ in answers]
            offsets = {text: position.offset for text, position, _ in answers if position is not None}
            assert [text for text in texts if offsets[text]] == [*map(str, range(1, 51)), "once", "again", "late"]
            assert [offset for offset in offsets.values() if offset] == [*range(1, 51), 51, 51, 51]
            await nodes[-1].has("a", 0, *range(1, 52))

    # -- to the nodes

    async def test_every_subscribed_node_gets_it_and_no_other(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            for node in nodes[:-1] or nodes:
                await node.broker.subscribe("a")
            for number in range(20):
                await nodes[number % self.nodes].publish("a", str(number), KEEPS)
            for node in nodes[:-1] or nodes:
                await node.has("a", *range(1, 21))
                assert node.texts("a") == {number + 1: str(number) for number in range(20)}
            if not place.hears_all:
                await _flushed(nodes[-1], nodes[0])
                assert self.nodes == 1 or "a" not in nodes[-1].got, "this node is not subscribed"

    async def test_nothing_comes_once_it_is_unsubscribed(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            node, other = nodes[0], nodes[-1]
            await node.broker.subscribe("a")
            await other.publish("a", "1", KEEPS)
            await node.has("a", 1)
            await node.broker.unsubscribe("a")
            await other.publish("a", "2", KEEPS)
            await _flushed(node, other)
            assert place.hears_all or node.texts("a") == {1: "1"}
            await node.broker.subscribe("a")
            await other.publish("a", "3", KEEPS)
            await node.has("a", 3)

    async def test_subscribing_is_of_the_node(self, place: Place) -> None:
        """Once more changes nothing, and one end of it is enough."""
        async with place.node() as node:
            await node.broker.unsubscribe("never")
            await asyncio.gather(*(node.broker.subscribe("a") for _ in range(3)))
            await node.publish("a", "1", KEEPS)
            await node.has("a", 1)
            for text in ("2", "3"):
                await node.broker.unsubscribe("a")
                await node.publish("a", text, KEEPS)
            await _flushed(node, node)
            assert place.hears_all or node.texts("a") == {1: "1"}

    async def test_what_is_published_after_subscribing_comes(self, place: Place) -> None:
        """In the same breath, on many channels: there is no moment between the two in which one could be lost."""
        async with place.nodes(self.nodes) as nodes:

            async def once(number: int) -> None:
                await nodes[0].broker.subscribe(f"c:{number}")
                await nodes[-1].publish(f"c:{number}", "x", KEEPS)

            await asyncio.gather(*(once(number) for number in range(100)))
            for number in range(100):
                await nodes[0].has(f"c:{number}", 1)

    async def test_all_nodes_have_the_same_order(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            for node in nodes:
                await node.broker.subscribe("a")

            async def talk(node: Node, name: int) -> list[int]:
                return [(await node.publish("a", f"{name}.{number}", KEEPS)).offset for number in range(30)]

            said = await asyncio.gather(*(talk(node, name) for name, node in enumerate(nodes)))
            for offsets in said:
                assert offsets == sorted(offsets), "one after the other is that order"
            for node in nodes:
                await node.has("a", *range(1, 30 * len(nodes) + 1))
                assert node.texts("a") == nodes[0].texts("a")

    @pytest.mark.parametrize("fields", FIELDS)
    async def test_all_of_a_publication_survives_the_way(self, place: Place, fields: dict[str, Any]) -> None:
        sent = Publication(b'{"offset":', b',"data":"\xc3\xbc"}', at=1_800_000_000.123456, **fields)
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            position = await nodes[0].broker.publish("a", sent, KEEPS)
            await nodes[-1].place.until(lambda: "a" in nodes[-1].got, "it arrives")
            recovery = await nodes[-1].broker.recover("a", Position(position.epoch, 0), 10, KEEPS)
            _, page, _ = await nodes[-1].broker.history("a", None, None, 10, KEEPS)
            for one in (nodes[-1].got["a"][0], recovery.publications[0], page[0]):
                assert one.payload == b'{"offset":1,"data":"\xc3\xbc"}'
                found = (one.head + b"|" + one.tail, one.key, one.user, one.origin, one.at, one.offset)
                assert found == (sent.head + b"|" + sent.tail, sent.key, sent.user, sent.origin, sent.at, 1)

    @pytest.mark.parametrize("body", [b"", b"\x00\r\n\xff\xfe$3\r\n*1", bytes(range(256)) * 64, b"{}" * 20])
    async def test_bodies_are_bytes(self, place: Place, body: bytes) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            for head, tail in ((b"head", body), (body, b"tail")):
                await nodes[0].broker.publish("a", Publication(head, tail, at=place.clock.time()), KEEPS)
            await place.until(lambda: len(nodes[-1].got.get("a", ())) >= 2, "both arrive")
            recovery = await nodes[-1].broker.recover("a", (await _top(nodes[-1], "a", -2)), 10, KEEPS)
            for found in (nodes[-1].got["a"], recovery.publications):
                assert [(one.head, one.tail) for one in found] == [(b"head", body), (body, b"tail")]

    async def test_a_megabyte_fits(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            text = "ü" * (1 << 19)
            for number in range(3):
                await nodes[0].publish("a", f"{number}{text}", KEEPS)
            await nodes[-1].has("a", 1, 2, 3)
            assert nodes[-1].texts("a")[3] == f"2{text}"
            assert (await nodes[0].kept("a", KEEPS))[-1] == f"2{text}", "at least one is kept, however large"
            assert (await nodes[-1].broker.recover("a", await _top(nodes[0], "a", -1), 10, KEEPS)).recovered

    async def test_names_are_taken_literally(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            for name in HOSTILE:
                await nodes[-1].broker.subscribe(name)
            for name in HOSTILE:
                assert (await nodes[0].publish(name, name, KEEPS, once=name[:128])).offset == 1, name
            for name in HOSTILE:
                await nodes[-1].has(name, 1)
                assert nodes[-1].texts(name) == {1: name}
                assert await nodes[-1].kept(name, KEEPS) == [name]

    # -- without history

    async def test_without_history_there_are_no_positions(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            sent = Publication(b'{"offset":0}', b"", "k", "u", "o", 12.5)
            for _ in range(2):
                assert await nodes[0].broker.publish("a", sent, BARE) == Position("", 0)
            await place.until(lambda: len(nodes[-1].got.get("a", ())) >= 2, "both arrive")
            for one in nodes[-1].got["a"]:
                assert (one.payload, one.key, one.user, one.origin, one.at, one.offset) == (
                    b'{"offset":0}', "k", "u", "o", 12.5, 0,
                )  # fmt: skip
            recovery = await nodes[0].broker.recover("a", Position("x", 1), 10, BARE)
            assert (recovery.position, recovery.publications, recovery.recovered) == (Position("", 0), [], False)

    async def test_keys_and_versions_are_not_looked_at_without_history(self, place: Place) -> None:
        async with place.node() as node:
            await node.broker.subscribe("a")
            for _ in range(2):
                assert (await node.publish("a", "x", BARE, once="k", version=1)).offset == 0
            await place.until(lambda: len(node.got.get("a", ())) >= 2, "both arrive")

    # -- relaying

    async def test_relaying_keeps_offsets_and_nothing_else(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("room:1")
            for first in (7, 9):
                pair = [nodes[0].publication(str(number), offset=number, user="ü") for number in (first, first + 1)]
                await nodes[0].broker.relay("room:1", pair)
            await nodes[-1].has("room:1", 7, 8, 9, 10)
            assert nodes[-1].texts("room:1") == {number: str(number) for number in (7, 8, 9, 10)}
            assert nodes[-1].got["room:1"][0].user == "ü"
            assert await nodes[0].kept("room:1", KEEPS) == []

    # -- what was missed

    async def test_what_was_published_can_be_recovered_at_once(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            for number in range(1, 20):
                position = await nodes[number % self.nodes].publish("a", str(number), KEEPS)
                for node in nodes:
                    recovery = await node.broker.recover("a", Position(position.epoch, 0), 100, KEEPS)
                    assert recovery.recovered
                    assert [one.offset for one in recovery.publications] == list(range(1, number + 1))
                    assert recovery.position == position

    async def test_a_position_of_a_channel_that_is_empty_means_something_later(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            asked = await nodes[0].broker.recover("a", None, 10, KEEPS)
            assert (asked.position.offset, asked.publications, asked.recovered) == (0, [], False)
            assert asked.position.epoch
            again = await nodes[-1].broker.recover("a", asked.position, 10, KEEPS)
            assert (again.position, again.publications, again.recovered) == (asked.position, [], True)
            await nodes[-1].publish("a", "1", KEEPS)
            recovery = await nodes[0].broker.recover("a", asked.position, 10, KEEPS)
            assert (recovery.recovered, [one.offset for one in recovery.publications]) == (True, [1])

    async def test_nothing_asked_nothing_recovered(self, place: Place) -> None:
        async with place.node() as node:
            position = await node.publish("a", "1", KEEPS)
            recovery = await node.broker.recover("a", None, 10, KEEPS)
            assert (recovery.position, recovery.publications, recovery.recovered) == (position, [], False)
            at_the_top = await node.broker.recover("a", position, 10, KEEPS)
            assert (at_the_top.position, at_the_top.publications, at_the_top.recovered) == (position, [], True)
            at_the_top = await node.broker.recover("a", position, 0, KEEPS)
            assert at_the_top.recovered, "nothing fits into a limit of 0"

    async def test_more_than_the_limit_is_nothing(self, place: Place) -> None:
        async with place.node() as node:
            position = await node.fill("a", map(str, range(6)), KEEPS)
            for limit in (0, 1, 5):
                recovery = await node.broker.recover("a", Position(position.epoch, 0), limit, KEEPS)
                assert (recovery.position, recovery.publications, recovery.recovered) == (position, [], False)
            assert (await node.broker.recover("a", Position(position.epoch, 0), 6, KEEPS)).recovered

    async def test_what_was_trimmed_is_never_recovered_in_part(self, place: Place) -> None:
        async with place.node() as node:
            position = await node.fill("a", map(str, range(1, 41)), SMALL)
            for missed in range(6):
                recovery = await node.broker.recover("a", Position(position.epoch, 40 - missed), 100, SMALL)
                assert recovery.recovered, "so many are kept"
                assert [one.offset for one in recovery.publications] == list(range(41 - missed, 41))
            for since in range(35):
                await _all_or_nothing(node, "a", Position(position.epoch, since), position, SMALL)
            assert not (await node.broker.recover("a", Position(position.epoch, 0), 100, SMALL)).recovered
            assert len(await node.kept("a", SMALL)) <= 2 * SMALL.history_size, "a history has its bound"

    async def test_the_bound_in_bytes_holds(self, place: Place) -> None:
        async with place.node(history_bytes=8192) as node:
            position = await node.fill("a", (f"{number}" + "x" * 1000 for number in range(1, 41)), KEEPS)
            for since in range(40):
                await _all_or_nothing(node, "a", Position(position.epoch, since), position, KEEPS)
            assert (await node.broker.recover("a", Position(position.epoch, 39), 100, KEEPS)).recovered
            assert not (await node.broker.recover("a", Position(position.epoch, 20), 100, KEEPS)).recovered
            assert len(await node.kept("a", KEEPS)) <= 8

    async def test_what_is_too_old_is_gone(self, place: Place) -> None:
        async with place.node() as node:
            first = await node.publish("a", "old", BRIEF)
            assert (await node.broker.recover("a", Position(first.epoch, 0), 10, BRIEF)).recovered
            await place.pass_time(BRIEF.history_ttl + 0.1)

            async def gone() -> bool:
                recovery = await node.broker.recover("a", Position(first.epoch, 0), 10, BRIEF)
                assert recovery.position == first, "the offset goes on counting when the kept ones age away"
                return not recovery.recovered

            await place.until_it(gone, "what is too old is gone")
            assert await node.kept("a", BRIEF) == []
            at_the_top = await node.broker.recover("a", first, 10, BRIEF)
            assert (at_the_top.recovered, at_the_top.publications) == (True, [])
            second = await node.publish("a", "new", BRIEF)
            assert second == Position(first.epoch, 2)
            recovery = await node.broker.recover("a", Position(first.epoch, 0), 10, BRIEF)
            assert (recovery.recovered, recovery.publications) == (False, [])
            recovery = await node.broker.recover("a", first, 10, BRIEF)
            assert (recovery.recovered, [one.offset for one in recovery.publications]) == (True, [2])

    async def test_positions_that_never_were(self, place: Place) -> None:
        async with place.node() as node:
            position = await node.publish("a", "1", KEEPS)
            other = await node.publish("b", "1", KEEPS)
            future = Position(position.epoch, 2)
            for since in (
                future,
                Position(position.epoch, 2**53),
                Position("", 0),
                Position("", 1),
                Position("x", 0),
                Position(position.epoch + "0", 1),
                Position(position.epoch[:-1], 1),
                Position("%s" * 32, 1),
                Position("\x00é🙂*"[:64], 1),
                Position("x" * 64, 2**53),
                *([other] if other.epoch != position.epoch else []),
            ):
                recovery = await node.broker.recover("a", since, 10, KEEPS)
                assert (recovery.position, recovery.publications, recovery.recovered) == (position, [], False), since

    @pytest.mark.parametrize("seed", range(4))
    async def test_recovery_is_exact_whatever_happens(self, place: Place, seed: int) -> None:
        """All that came after the position, or nothing: over random publications, bounds, nodes, limits and positions."""
        dice = random.Random(seed)  # noqa: S311  # to be the same each time
        names = ["a", "b:c", "user:é"]
        options = ChannelOptions(history_size=dice.choice((1, 3, 20)))
        said: dict[str, list[str]] = {name: [] for name in names}
        async with place.nodes(self.nodes, history_bytes=4096) as nodes:
            for step in range(150):
                name, node = dice.choice(names), dice.choice(nodes)
                if dice.random() < 0.5:
                    text = f"{step}" + "x" * dice.choice((0, 10, 900))
                    said[name].append(text)
                    assert (await node.publish(name, text, options)).offset == len(said[name])
                    continue
                top = (await node.broker.recover(name, None, 0, options)).position
                assert top.offset == len(said[name])
                since = dice.randint(0, len(said[name]) + 1)
                limit = dice.choice((0, 1, 5, 100))
                recovery = await node.broker.recover(name, Position(top.epoch, since), limit, options)
                if recovery.recovered:
                    assert [one.tail.decode() for one in recovery.publications] == said[name][since:]
                    assert len(recovery.publications) <= limit
                else:
                    assert recovery.publications == []
                    missed = len(said[name]) - since
                    fits = 0 <= missed <= min(limit, 1, options.history_size)
                    assert not fits, f"{missed} missed of {len(said[name])} with a limit of {limit}"

    # -- pages

    async def test_pages_of_history(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            node = nodes[-1]
            position = await nodes[0].fill("a", map(str, range(1, 11)), KEEPS)
            for after, before, limit, wanted, more in (
                (None, None, 100, range(1, 11), False),
                (None, None, 3, range(8, 11), True),
                (None, 8, 3, range(5, 8), True),
                (None, 4, 3, range(1, 4), False),
                (None, 1, 3, range(0), False),
                (None, 99, 2, range(9, 11), True),
                (0, None, 3, range(1, 4), True),
                (4, None, 3, range(5, 8), True),
                (7, None, 3, range(8, 11), False),
                (10, None, 3, range(0), False),
                (99, None, 3, range(0), False),
                (2, 5, 10, range(3, 5), False),
                (2, 9, 3, range(3, 6), True),
                (5, 5, 10, range(0), False),
                (5, 2, 10, range(0), False),
            ):
                where, page, has_more = await node.broker.history("a", after, before, limit, KEEPS)
                case = (after, before, limit)
                assert [one.offset for one in page] == list(wanted), case
                assert [one.tail for one in page] == [str(offset).encode() for offset in wanted], case
                assert has_more is more, case
                assert where == position, case

    async def test_pages_of_what_is_not_there(self, place: Place) -> None:
        async with place.node() as node:
            position, page, more = await node.broker.history("never", None, None, 10, KEEPS)
            assert (position.offset, list(page), more) == (0, [], False)
            await node.fill("a", map(str, range(1, 9)), SMALL)
            _, page, more = await node.broker.history("a", 0, None, 100, SMALL)
            offsets = [one.offset for one in page]
            assert offsets == list(range(9 - len(offsets), 9))
            assert len(offsets) >= SMALL.history_size
            assert not more

    async def test_a_page_is_bounded_in_bytes(self, place: Place) -> None:
        async with place.node(history_bytes=8 << 20) as node:
            for number in range(8):
                await node.publish("a", f"{number}" + "x" * (PAGE_BYTES // 3), KEEPS)
            position, page, more = await node.broker.history("a", 0, None, 100, KEEPS)
            assert 1 <= len(page) < 8
            assert more
            assert [one.offset for one in page] == list(range(1, len(page) + 1))
            position, page, more = await node.broker.history("a", None, None, 100, KEEPS)
            assert more
            assert [one.offset for one in page] == list(range(9 - len(page), 9))
            assert position.offset == 8

    # -- once

    async def test_published_once_with_a_key(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            first = await nodes[0].publish("a", "first", KEEPS, once="k")
            await nodes[0].publish("a", "other", KEEPS, once="l")
            for node in nodes:
                assert await node.publish("a", "again", KEEPS, once="k") == first
            assert (await nodes[0].publish("b", "elsewhere", KEEPS, once="l")).offset == 1
            assert await nodes[0].kept("b", KEEPS) == ["elsewhere"], "a key is the channel's"
            assert (await nodes[-1].publish("a", "plain", KEEPS)).offset == 3
            await nodes[-1].has("a", 1, 2, 3)
            assert nodes[-1].texts("a") == {1: "first", 2: "other", 3: "plain"}
            assert await nodes[0].kept("a", KEEPS) == ["first", "other", "plain"]

    async def test_published_once_when_all_nodes_try_at_once(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[0].broker.subscribe("a")
            work = [nodes[number % self.nodes].publish("a", "x", KEEPS, once=f"k{number % 3}") for number in range(60)]
            positions = await asyncio.gather(*work)
            for key in range(3):
                assert len({position.offset for position in positions[key::3]}) == 1
            assert {position.offset for position in positions} == {1, 2, 3}
            assert len(await nodes[-1].kept("a", KEEPS)) == 3
            await nodes[0].has("a", 1, 2, 3)
            assert nodes[0].texts("a").keys() == {1, 2, 3}

    async def test_a_key_outlives_what_was_published_with_it(self, place: Place) -> None:
        async with place.node() as node:
            first = await node.publish("a", "first", SMALL, once="k")
            for number in range(20):
                await node.publish("a", str(number), SMALL)
            assert await node.publish("a", "again", SMALL, once="k") == first
            assert (await node.publish("a", "next", SMALL)).offset == 22

    @pytest.mark.parametrize("key", ["k", "k" * 128, "🙂" * 128, "\x00\r\n", "*", "{0}", "a:b", " "])
    async def test_any_key(self, place: Place, key: str) -> None:
        async with place.nodes(self.nodes) as nodes:
            first = await nodes[0].publish("a", "1", KEEPS, once=key)
            assert await nodes[-1].publish("a", "2", KEEPS, once=key) == first
            assert (await nodes[0].publish("a", "3", KEEPS, once=key[:-1] + "x")).offset == 2

    async def test_keys_are_forgotten(self, place: Place) -> None:
        if place.longest < ONCE_SECONDS:
            pytest.skip(f"this engine's time cannot be turned, and {ONCE_SECONDS} s is too long to wait")
        async with place.node() as node:
            first = await node.publish("a", "1", KEEPS, once="k")
            await place.pass_time(ONCE_SECONDS - 1)
            assert await node.publish("a", "2", KEEPS, once="k") == first
            await place.pass_time(2)
            assert (await node.publish("a", "3", KEEPS, once="k")).offset == first.offset + 1

    # -- versions

    async def test_only_higher_versions_are_published(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            await nodes[-1].broker.subscribe("a")
            tries = ((0, 1), (0, 1), (3, 2), (2, 2), (3, 2), (9, 3), (10, 4), (2**53 - 1, 5), (2**53, 6), (10, 6))
            for number, (version, offset) in enumerate(tries):
                position = await nodes[number % self.nodes].publish("a", str(version), KEEPS, version=version)
                assert position.offset == offset, (number, version)
            assert (await nodes[0].publish("a", "plain", KEEPS)).offset == 7
            assert (await nodes[0].publish("a", "late", KEEPS, version=11)).offset == 7, "who has none changes nothing"
            assert (await nodes[0].publish("b", "other", KEEPS, version=1)).offset == 1
            await nodes[-1].has("a", *range(1, 8))
            wanted = ["0", "3", "9", "10", str(2**53 - 1), str(2**53), "plain"]
            assert nodes[-1].texts("a") == dict(enumerate(wanted, 1))
            assert await nodes[0].kept("a", KEEPS) == wanted

    async def test_the_highest_version_wins_when_all_try_at_once(self, place: Place) -> None:
        async with place.nodes(self.nodes) as nodes:
            versions = list(range(40))
            random.Random(1).shuffle(versions)  # noqa: S311  # to be the same each time
            work = [nodes[v % self.nodes].publish("a", str(v), KEEPS, version=v) for v in versions]
            await asyncio.gather(*work)
            kept = [int(text) for text in await nodes[0].kept("a", KEEPS)]
            assert kept == sorted(set(kept))
            assert kept[-1] == 39

    async def test_a_key_and_a_version_together(self, place: Place) -> None:
        async with place.node() as node:
            first = await node.publish("a", "1", KEEPS, once="k", version=5)
            await node.publish("a", "2", KEEPS, version=6)
            assert await node.publish("a", "1", KEEPS, once="k", version=5) == first, "the key says where it was"
            assert (await node.publish("a", "old", KEEPS, once="l", version=4)).offset == 2
            assert await node.kept("a", KEEPS) == ["1", "2"]

    # -- life

    async def test_it_says_that_it_is_healthy(self, place: Place) -> None:
        async with place.node() as node:
            await place.until(lambda: node.broker.healthy, "it is healthy")

    async def test_it_may_be_swept_at_any_time(self, place: Place) -> None:
        async with place.node() as node:
            node.broker.sweep(place.clock.time())
            await node.publish("a", "1", KEEPS)
            for _ in range(10):
                node.broker.sweep(place.clock.time())
            assert await node.kept("a", KEEPS) == ["1"]

    async def test_the_end_leaves_nothing_behind(self, place: Place) -> None:
        before = asyncio.all_tasks()
        async with place.nodes(self.nodes) as nodes:
            for node in nodes:
                await node.broker.subscribe("a")
            work = [asyncio.ensure_future(nodes[0].publish("a", str(number), KEEPS)) for number in range(50)]
            await asyncio.sleep(0)
            for node in nodes:
                await node.stop()
            async with asyncio.timeout(10):
                await asyncio.gather(*work, return_exceptions=True)
            got = [len(node.got.get("a", ())) for node in nodes]
            for _ in range(20):
                await asyncio.sleep(0)
            assert [len(node.got.get("a", ())) for node in nodes] == got, "something came after the end"
        await place.until(lambda: asyncio.all_tasks() <= before, "no task is left")

    async def test_it_can_be_started_again(self, place: Place) -> None:
        """An app's lifespan may begin twice in a process: that is a new node, which is subscribed to nothing."""
        node = Node(place, place.broker())
        for number in range(3):
            await node.start()
            try:
                await node.broker.subscribe("a")
                before = len(node.got.get("a", ()))
                await node.publish("a", str(number), KEEPS)
                await place.until(lambda seen=before: len(node.got.get("a", ())) > seen, "it arrives")  # type: ignore[misc]  # a default binds it
            finally:
                await node.stop()


async def _all_or_nothing(node: Node, name: str, since: Position, top: Position, options: ChannelOptions) -> None:
    recovery = await node.broker.recover(name, since, 1000, options)
    assert recovery.position == top
    wanted = list(range(since.offset + 1, top.offset + 1)) if recovery.recovered else []
    assert [one.offset for one in recovery.publications] == wanted


async def _top(node: Node, name: str, back: int) -> Position:
    position = (await node.broker.recover(name, None, 0, KEEPS)).position
    return Position(position.epoch, position.offset + back)


async def _flushed(node: Node, other: Node) -> None:
    """Have everything that was on its way: what is published after it has come."""
    name = "contract:flushed"
    await node.broker.subscribe(name)
    position = await other.publish(name, "x", KEEPS)
    await node.has(name, position.offset)
    await node.broker.unsubscribe(name)


__all__ = ["BrokerContract", "Heard", "Node", "PeersContract", "Place"]
