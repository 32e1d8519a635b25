"""The oracle of the fault tests: it finds what is wrong, and nothing where all is well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine_oracle import At, Heard, Past, Sent, Trial, trial
from tests.engine_support import Node, running_node

pytestmark = pytest.mark.anyio


async def test_all_is_well_on_one_node(tmp_path: Path) -> None:
    async with running_node("", tmp_path) as node, trial([node]) as tried:
        await tried.more(200)
        assert await tried.present() < 5
        await tried.settle()
        assert tried.verdict() == []
        assert tried.gaps == 0


async def test_a_node_that_forgets_everything_is_told_as_gaps(tmp_path: Path) -> None:
    async with running_node("", tmp_path) as node, trial([node]) as tried:
        await tried.more(100)
        await node.kill()
        await node.start()
        await tried.flows()
        await tried.present()
        await tried.settle()
        assert tried.verdict(kept=False) == []
        assert tried.gaps == len(tried.subscribers) * 2
        assert tried.verdict() != []  # what the first life acknowledged is gone


def told() -> Trial:
    """Two who heard three publications on one channel, of which the second was not answered."""
    tried = Trial([Node.__new__(Node)], channels=1, publishers=1, spread=2)
    positions = [At("e", 1), None, At("e", 3)]
    tried.publishers[0].sent = [Sent(f"n{index}", "fault:0", 10.0, at) for index, at in enumerate(positions)]
    for each in tried.subscribers:
        each.heard["fault:0"] = Heard(
            5.0, At("e", 0), At("e", 3), {f"n{index}": At("e", index + 1) for index in range(3)}
        )
    tried.pasts["fault:0"] = Past(At("e", 3), {1: "n0", 2: "n1", 3: "n2"})
    return tried


def test_what_was_not_answered_may_be_there_or_not() -> None:
    assert told().verdict() == []
    tried = told()
    tried.publishers[0].sent[2].position = At("e", 2)
    tried.pasts["fault:0"] = Past(At("e", 2), {1: "n0", 2: "n2"})
    for each in tried.subscribers:
        each.heard["fault:0"].got = {"n0": At("e", 1), "n2": At("e", 2)}
    assert tried.verdict() == []


def lose_for_one(tried: Trial) -> None:
    del tried.subscribers[0].heard["fault:0"].got["n2"]


def lose_from_history(tried: Trial) -> None:
    tried.pasts["fault:0"] = Past(At("e", 2), {1: "n0", 2: "n1"})


def lose_what_came(tried: Trial) -> None:
    """The last one came to all, and is gone; the next in its place is another one. Only some were told."""
    tried.pasts["fault:0"] = Past(At("f", 2), {1: "n0", 2: "n1"})
    tried.subscribers[0].heard["fault:0"].gaps.append((At("e", 3), At("f", 2)))


def tear_a_hole(tried: Trial) -> None:
    del tried.pasts["fault:0"].kept[2]


def keep_twice(tried: Trial) -> None:
    tried.pasts["fault:0"].kept[4] = "n1"


def swap_for_one(tried: Trial) -> None:
    tried.subscribers[1].heard["fault:0"].got["n1"] = At("e", 1)
    tried.subscribers[1].heard["fault:0"].got["n0"] = At("e", 2)


def swap_what_was_awaited(tried: Trial) -> None:
    tried.publishers[0].sent.reverse()


def acknowledge_twice(tried: Trial) -> None:
    tried.publishers[0].sent[1].position = At("e", 1)


def refuse_and_keep(tried: Trial) -> None:
    tried.publishers[0].sent[1].refused = "busy"


@pytest.mark.parametrize(
    "spoil",
    [
        lose_for_one, lose_from_history, lose_what_came, tear_a_hole, keep_twice, swap_for_one, swap_what_was_awaited,
        acknowledge_twice, refuse_and_keep,
    ],
)  # fmt: skip
def test_it_finds(spoil: Callable[[Trial], None]) -> None:
    tried = told()
    spoil(tried)
    assert tried.verdict() != []


def test_what_the_engine_lost_is_told_to_who_had_it() -> None:
    tried = told()
    lose_what_came(tried)
    assert len(tried.verdict(kept=False)) == 1
    tried.subscribers[1].heard["fault:0"].gaps.append((At("e", 3), At("f", 2)))
    assert tried.verdict(kept=False) == []


def test_a_hole_or_a_repetition_is_found_at_once() -> None:
    subscriber = told().subscribers[0]
    for offset, nonce in ((5, "n5"), (5, "n6"), (6, "n5")):
        subscriber.wrong.clear()
        subscriber._publication("fault:0", {"offset": offset, "data": {"nonce": nonce}})
        assert subscriber.wrong
        subscriber.heard["fault:0"].at = At("e", 5)
        subscriber.heard["fault:0"].got["n5"] = At("e", 5)


def test_what_a_gap_stands_for() -> None:
    within = Heard(gaps=[(At("e", 3), At("e", 7))], at=At("e", 9))
    assert [offset for offset in range(10) if within.covers(At("e", offset))] == [4, 5, 6, 7]
    assert not within.covers(At("f", 5))
    over = Heard(gaps=[(At("e", 3), At("f", 2))], at=At("f", 9))
    assert [offset for offset in range(6) if over.covers(At("e", offset))] == [4, 5]
    assert [offset for offset in range(6) if over.covers(At("f", offset))] == [0, 1, 2]
    assert over.covers(At("between", 100))


@pytest.mark.parametrize("given_again", [False, True])
def test_what_was_evicted_in_an_older_generation_is_no_loss_unless_its_offset_was_given_again(
    given_again: bool,
) -> None:
    tried = told()
    heres = {"n0": At("e.1", 1), "n1": At("e.1", 2), "n2": At("e.2", 3)}
    tried.publishers[0].sent = [Sent(nonce, "fault:0", 10.0, at) for nonce, at in heres.items()]
    for each in tried.subscribers:
        each.heard["fault:0"] = Heard(5.0, At("e.1", 0), At("e.2", 3), dict(heres))
    if given_again:  # one of the two heard another one there
        tried.publishers[0].sent.append(Sent("other", "fault:0", 11.0, At("e.2", 2)))
    tried.pasts["fault:0"] = Past(At("e.2", 3), {3: "n2"})
    wrong = tried.verdict(kept=False)
    assert any("n1 came as" in each and "is lost" in each for each in wrong) == given_again
    assert not any("n0 came as" in each for each in wrong)
