"""What every broker with peers promises of the other nodes, as tests: who lives, messages, presence, facts."""

from __future__ import annotations

import asyncio
import random
from math import inf
from typing import Final

import pytest

from hubbub.ports import BEAT, LEASE, Here
from hubbub.testing.place import Node, Place

ONE: Final = Here(1, 1_800_000_000.25, None)
FULL: Final = Here(3, 1_800_000_000.0, {"name": "Ünï 🙂", "roles": ["a", {"b": [None, True, 1.5, -7, 2**53]}], "": ""})
CHANNELS: Final = ("room:general", "a:b", "n" * 128, "user:é{0}*", "_.:@/+=~-")
USERS: Final = ("alice", "ünïcode 🙂 \u202e", "{0}:*?[a]", "u" * 128, "🙂" * 128, "a:b", "'\"\\ %s$1")


class PeersContract:
    """Several nodes: what they hear of each other.

    A subclass has a fixture ``place`` that gives a :class:`Place` (its :meth:`Place.kill` is needed here): a fresh engine
    for each test.
    """

    @pytest.fixture
    def place(self) -> Place:
        """The engine to test. Yours may be async."""
        raise NotImplementedError("a subclass of PeersContract needs a fixture `place`: see docs/testing.md")

    # -- who lives

    async def test_nodes_know_each_other_and_what_each_says_of_itself(self, place: Place) -> None:
        async with place.nodes(3, acquainted=True) as nodes:
            ids = {node.peers.node for node in nodes}
            assert len(ids) == 3
            for node in nodes:
                assert node.ear.alive.keys() == ids - {node.peers.node}
            nodes[0].ear.own = b"\x00\xff changed \r\n" * 50
            await place.until_beaten(
                lambda: all(node.ear.alive[nodes[0].peers.node] == nodes[0].ear.own for node in nodes[1:]),
                "the others hear what a node says of itself",
                3 * BEAT,
            )

    async def test_who_stops_is_gone_before_its_lease(self, place: Place) -> None:
        async with place.nodes(3, acquainted=True) as nodes:
            gone = nodes[2].peers.node
            nodes[2].peers.here("a", "alice", ONE)
            await _until_who(place, nodes[0], "a", {gone: {"alice": ONE}})
            await nodes[2].stop()
            await place.until_beaten(
                lambda: all(gone not in node.ear.alive for node in nodes[:2]), "it is gone", LEASE - BEAT
            )
            assert await nodes[0].peers.who("a") == {}
            assert (await nodes[0].peers.counts(["a"])).get("a", 0) == 0

    async def test_who_ends_without_a_word_is_gone_with_its_lease(self, place: Place) -> None:
        async with place.nodes(3, acquainted=True) as nodes:
            gone, stays = nodes[2].peers.node, nodes[1].peers.node
            nodes[2].peers.here("a", "alice", ONE)
            nodes[1].peers.here("a", "bob", ONE)
            await _until_who(place, nodes[0], "a", {gone: {"alice": ONE}, stays: {"bob": ONE}})
            nodes[2].runs = False
            await place.kill(nodes[2].broker)
            await place.until_beaten(
                lambda: all(gone not in node.ear.alive for node in nodes[:2]), "it is gone", LEASE + 2 * BEAT
            )
            assert nodes[0].ear.alive.keys() == {stays}
            assert await nodes[0].peers.who("a") == {stays: {"bob": ONE}}
            assert await nodes[0].peers.counts(["a"]) == {"a": 1}

    async def test_who_lives_stays(self, place: Place) -> None:
        """With nothing to say, for longer than a lease."""
        async with place.nodes(2, acquainted=True) as nodes:
            nodes[1].peers.here("a", "alice", ONE)
            await _until_who(place, nodes[0], "a", {nodes[1].peers.node: {"alice": ONE}})
            for _ in range(5):
                await place.pass_time((LEASE + BEAT) / 5)
                assert nodes[1].peers.node in nodes[0].ear.alive
            assert await nodes[0].peers.who("a") == {nodes[1].peers.node: {"alice": ONE}}

    async def test_who_starts_again_is_another_node(self, place: Place) -> None:
        async with place.nodes(2, acquainted=True) as nodes:
            before = nodes[1].peers.node
            nodes[1].peers.here("a", "alice", ONE)
            await _until_who(place, nodes[0], "a", {before: {"alice": ONE}})
            await nodes[1].stop()
            await nodes[1].start()
            after = nodes[1].peers.node
            assert after != before
            await place.until_beaten(lambda: nodes[0].ear.alive.keys() == {after}, "only the new one is there", LEASE)
            assert await nodes[0].peers.who("a") == {}

    async def test_who_leaves_is_forgotten_once_it_has_nobody(self, place: Place) -> None:
        async with place.nodes(2, acquainted=True) as nodes:
            leaving = nodes[1].peers
            leaving.here("a", "alice", ONE)
            await _until_who(place, nodes[0], "a", {leaving.node: {"alice": ONE}})
            leaving.leave()
            await place.pass_time(BEAT)
            assert await nodes[0].peers.who("a") == {leaving.node: {"alice": ONE}}, "it still has somebody"
            leaving.here("a", "alice", None)
            await _until_who(place, nodes[0], "a", {})
            await nodes[1].stop()
            await place.until_beaten(lambda: not nodes[0].ear.alive, "it is gone", 2 * BEAT)

    async def test_who_starts_knows_at_once_who_is_there(self, place: Place) -> None:
        async with place.nodes(2, acquainted=True) as nodes, place.node() as late:
            assert set(late.ear.alive) >= {node.peers.node for node in nodes}

    # -- messages

    async def test_all_others_hear_it_once_and_in_order(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            wanted = [b"%d \x00\xff\r\n" % number for number in range(200)]
            for message in wanted:
                await nodes[0].peers.tell(message)
            for node in nodes[1:]:
                await _until_said(place, node, nodes[0], wanted)
            assert nodes[0].ear.messages == []

    async def test_all_speak_at_once(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            wanted = {node.peers.node: [b"%b %d" % (node.peers.node.encode(), n) for n in range(50)] for node in nodes}

            async def speak(node: Node) -> None:
                for message in wanted[node.peers.node]:
                    await node.peers.tell(message)

            await asyncio.gather(*(speak(node) for node in nodes))
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        await _until_said(place, node, other, wanted[other.peers.node])
                assert len(node.ear.messages) == 100, "nobody hears themselves"

    async def test_beats_do_not_disturb_what_is_said(self, place: Place) -> None:
        """Two nodes talk without a pause over some beats: that a beat is answered late is no sign of a loss."""
        async with place.nodes(2) as nodes:
            wanted: list[list[bytes]] = [[], []]
            until = place.clock.monotonic() + 2 * BEAT
            while place.clock.monotonic() < until:
                for node, said in zip(nodes, wanted, strict=True):
                    said += [b"%d" % (len(said) + number) for number in range(10)]
                    await asyncio.gather(*(node.peers.tell(message) for message in said[-10:]))
                if place.longest == inf:
                    await place.pass_time(BEAT / 50)  # else it passes by itself
            await _until_said(place, nodes[0], nodes[1], wanted[1])
            await _until_said(place, nodes[1], nodes[0], wanted[0])

    async def test_messages_of_one_turn_keep_their_order(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            wanted = [b"%d" % number for number in range(100)]
            await asyncio.gather(*(nodes[0].peers.tell(message) for message in wanted))
            await _until_said(place, nodes[1], nodes[0], wanted)

    async def test_one_node_alone_hears_it(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            for number in range(20):
                await nodes[0].peers.tell(b"%d" % number, node=nodes[1 + number % 2].peers.node)
            await nodes[0].peers.tell(b"nobody", node="there-is-none")
            await nodes[0].peers.tell(b"all")
            for place_of, node in enumerate(nodes[1:]):
                wanted = [b"%d" % number for number in range(20) if number % 2 == place_of]
                await _until_said(place, node, nodes[0], wanted, last=b"all")

    async def test_messages_to_one_and_to_all_keep_their_order(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            wanted = [b"%d" % number for number in range(60)]
            for number, message in enumerate(wanted):
                await nodes[0].peers.tell(message, node=nodes[1].peers.node if number % 3 else None)
            await _until_said(place, nodes[1], nodes[0], wanted)

    async def test_what_is_not_kept_is_heard_by_who_is_there(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            wanted = [b"%d \x00\xff\r\n" % number for number in range(100)]
            for message in wanted:
                await nodes[0].peers.tell(message, keep=False)
            await nodes[0].peers.tell(b"one", node=nodes[1].peers.node, keep=False)
            await nodes[0].peers.tell(b"nobody", node="there-is-none", keep=False)
            await _until_said(place, nodes[1], nodes[0], [*wanted, b"one"])
            await _until_said(place, nodes[2], nodes[0], wanted)
            assert nodes[0].ear.messages == []
            async with place.node() as late:
                await nodes[0].peers.tell(b"last")
                await _until_said(place, late, nodes[0], [b"last"])

    async def test_a_large_message(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            wanted = [bytes(range(256)) * 1024, b"."]
            for message in wanted:
                await nodes[0].peers.tell(message)
            await _until_said(place, nodes[1], nodes[0], wanted)

    async def test_who_comes_later_does_not_hear_what_was_said_before(self, place: Place) -> None:
        async with place.nodes(1) as nodes:
            await nodes[0].peers.tell(b"before")
            async with place.node() as late:
                await nodes[0].peers.tell(b"after")
                await _until_said(place, late, nodes[0], [b"after"])

    # -- presence

    async def test_who_is_there_survives_the_way(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            for channel in CHANNELS:
                for number, user_id in enumerate(USERS):
                    nodes[0].peers.here(channel, user_id, FULL._replace(devices=number))
            wanted = {user_id: FULL._replace(devices=number) for number, user_id in enumerate(USERS)}
            for channel in CHANNELS:
                await _until_who(place, nodes[1], channel, {nodes[0].peers.node: wanted})
                assert await nodes[0].peers.who(channel) == {}, "oneself is no other"
            counts = await nodes[1].peers.counts([*CHANNELS, "empty"])
            assert {name: counts.get(name, 0) for name in (*CHANNELS, "empty")} == {
                **dict.fromkeys(CHANNELS, len(USERS)),
                "empty": 0,
            }

    async def test_the_newest_word_counts(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            peers = nodes[0].peers
            for devices in (1, 2, 3, 0):
                peers.here("a", "alice", ONE._replace(devices=devices))
            peers.here("a", "bob", ONE)
            peers.here("a", "bob", None)
            peers.here("a", "carol", None)
            peers.here("b", "carol", ONE)
            await _until_who(place, nodes[1], "a", {peers.node: {"alice": ONE._replace(devices=0)}})
            await _until_who(place, nodes[1], "b", {peers.node: {"carol": ONE}})
            peers.here("a", "alice", None)
            await _until_who(place, nodes[1], "a", {})

    async def test_a_user_on_several_nodes_counts_once(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            for node in nodes:
                node.peers.here("a", "alice", ONE)
            nodes[0].peers.here("a", "bob", ONE)

            async def counted() -> bool:
                return all([await node.peers.counts(["a"]) == {"a": 2} for node in nodes])

            await place.until_it(counted, "two users")
            await _until_who(
                place,
                nodes[1],
                "a",
                {nodes[0].peers.node: {"alice": ONE, "bob": ONE}, nodes[2].peers.node: {"alice": ONE}},
            )

    async def test_nothing_is_heard_before_asking(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            await nodes[1].broker.subscribe("a")
            nodes[0].peers.here("a", "alice", ONE)
            await nodes[1].broker.subscribe("b")
            await _ask(nodes[1], "b")
            nodes[0].peers.here("b", "alice", ONE)
            await place.until(lambda: bool(nodes[1].ear.here["b"]), "it hears of the other channel")
            assert {channel for channel, *_ in nodes[1].ear.said} == {"b"}

    async def test_changes_are_heard_after_asking(self, place: Place) -> None:
        async with place.nodes(3) as nodes:
            node = nodes[2]
            nodes[0].peers.here("a", "alice", ONE)
            nodes[1].peers.here("a", "early", ONE)
            await node.broker.subscribe("a")
            await _until_who(
                place, node, "a", {nodes[0].peers.node: {"alice": ONE}, nodes[1].peers.node: {"early": ONE}}
            )
            await _ask(node, "a")
            nodes[1].peers.here("a", "bob", FULL)
            nodes[1].peers.here("a", "early", None)
            nodes[0].peers.here("a", "alice", ONE._replace(devices=2))
            nodes[0].peers.here("b", "alice", ONE)
            wanted = {
                nodes[0].peers.node: {"alice": ONE._replace(devices=2)},
                nodes[1].peers.node: {"bob": FULL},
            }
            await place.until(lambda: node.ear.here["a"] == wanted, "the changes are heard")
            node.peers.here("a", "dave", ONE)
            nodes[0].peers.here("a", "last", ONE)
            await place.until(lambda: "last" in node.ear.here["a"][nodes[0].peers.node], "the last is heard")
            assert {channel for channel, *_ in node.ear.said} == {"a"}, "it is not subscribed to the other"
            assert node.peers.node not in {of for _, of, *_ in node.ear.said}

    async def test_no_changes_are_heard_once_it_is_unsubscribed(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            for name in ("a", "b"):
                await nodes[1].broker.subscribe(name)
                await _ask(nodes[1], name)
            await nodes[1].broker.unsubscribe("a")
            nodes[0].peers.here("a", "alice", ONE)
            await _until_who(place, nodes[1], "b", {})
            nodes[0].peers.here("b", "alice", ONE)
            await place.until(lambda: bool(nodes[1].ear.here.get("b")), "it hears of the other channel")
            assert "a" not in {channel for channel, *_ in nodes[1].ear.said}

    async def test_nothing_falls_between_asking_and_hearing(self, place: Place) -> None:
        """While many come, others ask: what they were answered and what they hear then make all of it."""
        async with place.nodes(3) as nodes:
            for node in nodes:
                await node.broker.subscribe("a")

            async def come(node: Node) -> None:
                for number in range(100):
                    node.peers.here("a", f"{node.peers.node}-{number}", ONE)
                    if number % 10 == 0:
                        await asyncio.sleep(0)

            await asyncio.gather(come(nodes[0]), come(nodes[1]), *(_ask(node, "a") for node in nodes))
            for node in nodes:
                await place.until(
                    lambda node=node: all(  # type: ignore[misc]  # a default binds it
                        len(node.ear.here["a"].get(other.peers.node, ())) == 100
                        for other in nodes[:2]
                        if other is not node
                    ),
                    "all are known",
                )

    @pytest.mark.parametrize("seed", range(3))
    async def test_all_agree_in_the_end(self, place: Place, seed: int) -> None:
        """Comings and goings on all nodes, in any order: what each has heard is what there is."""
        dice = random.Random(seed)  # noqa: S311  # to be the same each time
        names, users = ["a", "b:c", "user:é"], [f"u{number}" for number in range(5)]
        async with place.nodes(3) as nodes:
            model: dict[str, dict[str, dict[str, Here]]] = {name: {} for name in names}
            for name in names:
                for node in nodes:
                    await node.broker.subscribe(name)
                    await _ask(node, name)
            for step in range(300):
                node, name, user_id = dice.choice(nodes), dice.choice(names), dice.choice(users)
                here = None if dice.random() < 0.4 else Here(dice.randint(0, 3), float(step), {"step": step})
                node.peers.here(name, user_id, here)
                there = model[name].setdefault(node.peers.node, {})
                there.pop(user_id, None)
                if here is not None:
                    there[user_id] = here
                if dice.random() < 0.1:
                    await asyncio.sleep(0)
            for node in nodes:
                for name in names:
                    wanted = {of: users for of, users in model[name].items() if users and of != node.peers.node}
                    await place.until(
                        lambda n=node, w=wanted, name=name: n.ear.here.get(name, {}) == w,  # type: ignore[misc]  # as above
                        "it has heard of all",
                    )
                    assert await node.peers.who(name) == wanted
            for name in names:
                there_are = len({user_id for users in model[name].values() for user_id in users})
                assert (await nodes[0].peers.counts([name])).get(name, 0) == there_are

    async def test_who_comes_later_learns_by_asking(self, place: Place) -> None:
        async with place.nodes(1) as nodes:
            nodes[0].peers.here("a", "alice", FULL)
            async with place.node() as late:
                await late.broker.subscribe("a")
                await _until_who(place, late, "a", {nodes[0].peers.node: {"alice": FULL}})

    async def test_many_in_one_breath(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            for number in range(1000):
                nodes[0].peers.here("a", f"u{number}", ONE)
            wanted = {f"u{number}": ONE for number in range(1000)}
            await _until_who(place, nodes[1], "a", {nodes[0].peers.node: wanted})
            assert await nodes[1].peers.counts(["a"]) == {"a": 1000}

    # -- facts

    async def test_facts_are_for_all_nodes_also_those_to_come(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            keep = nodes[0].peers.keep
            await keep("revoked", "k", b"1", 100)
            await keep("revoked", "ünïcode 🙂 {0}*", b"\x00\xff\r\n", 100)
            await keep("revoked", "k", b"2", 100)
            await keep("other", "k", b"", 100)
            wanted = {"k": b"2", "ünïcode 🙂 {0}*": b"\x00\xff\r\n"}
            async with place.node() as late:
                for node in (*nodes, late):
                    assert await node.peers.kept("revoked") == wanted
                    assert await node.peers.kept("other") == {"k": b""}
                    assert await node.peers.kept("none") == {}

    async def test_the_fact_of_the_highest_rank_counts(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            one, two = (node.peers for node in nodes)
            await one.keep("revoked", "k", b"2", 100, rank=1.7e9 + 0.25)
            await two.keep("revoked", "k", b"1", 100, rank=1.7e9 + 0.125)
            assert await one.kept("revoked") == {"k": b"2"}, "who comes later is not newer"
            await two.keep("revoked", "k", b"another 2", 100, rank=1.7e9 + 0.25)
            assert await one.kept("revoked") == {"k": b"another 2"}
            await two.keep("revoked", "k", b"3", 100, rank=1e10)
            assert await one.kept("revoked") == {"k": b"3"}
            await two.keep("other", "k", b"4", 100)
            await two.keep("other", "k", b"5", 100, rank=-1)
            assert await one.kept("other") == {"k": b"4"}

    async def test_the_fact_of_the_highest_rank_stays_for_as_long_as_any(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            keep = nodes[0].peers.keep
            await keep("revoked", "ends", b"higher", 1.0, rank=2)
            await keep("revoked", "lasts", b"higher", 0.5, rank=2)
            await keep("revoked", "lasts", b"lower", 1000.0, rank=1)
            await keep("revoked", "lasts too", b"lower", 1000.0, rank=1)
            await keep("revoked", "lasts too", b"higher", 0.5, rank=2)
            await place.pass_time(1.2)
            wanted = {"lasts": b"higher", "lasts too": b"higher"}

            async def ended() -> bool:
                return await nodes[1].peers.kept("revoked") == wanted

            await place.until_it(ended, "the fact ends")
            await keep("revoked", "ends", b"lower", 100.0, rank=1)
            assert (await nodes[1].peers.kept("revoked"))["ends"] == b"lower", "what has ended is in nobody's way"

    async def test_facts_outlive_who_kept_them(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            await nodes[1].peers.keep("revoked", "k", b"1", 100)
            await nodes[1].stop()
            assert await nodes[0].peers.kept("revoked") == {"k": b"1"}

    async def test_facts_end(self, place: Place) -> None:
        async with place.nodes(2) as nodes:
            await nodes[0].peers.keep("revoked", "soon", b"1", 1.0)
            await nodes[0].peers.keep("revoked", "later", b"2", 1000.0)
            await nodes[0].peers.keep("revoked", "longer", b"1", 0.5)
            await nodes[0].peers.keep("revoked", "longer", b"3", 1000.0)
            await place.pass_time(1.2)
            wanted = {"later": b"2", "longer": b"3"}

            async def ended() -> bool:
                return await nodes[1].peers.kept("revoked") == wanted

            await place.until_it(ended, "the fact ends")

    # -- the end

    async def test_the_end_leaves_no_task_behind(self, place: Place) -> None:
        before = asyncio.all_tasks()
        async with place.nodes(3) as nodes:
            for node in nodes:
                node.peers.here("a", "alice", ONE)
                await node.peers.tell(b"x")
        await place.until(lambda: asyncio.all_tasks() <= before, "no task is left")


async def _ask(node: Node, channel: str) -> None:
    """Ask who is in a channel, as a hub does: the answer stands, until changes are heard."""
    node.ear.here[channel] = {of: dict(users) for of, users in (await node.peers.who(channel)).items() if users}


async def _until_who(place: Place, node: Node, channel: str, wanted: dict[str, dict[str, Here]]) -> None:
    found: list[object] = []

    async def is_so() -> bool:
        answer = await node.peers.who(channel)
        found[:] = [answer]
        return {of: users for of, users in answer.items() if users} == wanted

    try:
        await place.until_it(is_so, f"in {channel!r} are {wanted}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it was {found[0]}") from None


async def _until_said(place: Place, node: Node, sender: Node, wanted: list[bytes], last: bytes | None = None) -> None:
    """Wait for the last message, and see that all before it came once, in order."""
    expected = wanted if last is None else [*wanted, last]
    name = sender.peers.node
    await place.until(
        lambda: expected[-1] in node.ear.said_by(name) or bool(node.ear.gaps), f"{len(expected)} messages are heard"
    )
    assert not node.ear.gaps, "nothing was missed, and yet it was said"
    heard = node.ear.said_by(name)
    assert heard == expected


__all__ = ["PeersContract"]
