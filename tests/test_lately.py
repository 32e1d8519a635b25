"""Many who ask for the same cost as much as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hubbub.lately import Lately

pytestmark = pytest.mark.anyio


class Source:
    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.fails = False

    async def ask(self, names: Sequence[str]) -> dict[str, int]:
        self.asked.append(list(names))
        await self.open.wait()
        if self.fails:
            raise ConnectionError("away")
        return {name: len(name) for name in names if name != "unknown"}


async def test_who_asks_meanwhile_waits_for_the_same_answer() -> None:
    source = Source()
    lately = Lately(source.ask, 60.0)
    asking = [asyncio.ensure_future(lately.of(["a", "bb"])) for _ in range(5)]
    asking.append(asyncio.ensure_future(lately.of(["bb", "ccc"])))
    await asyncio.sleep(0)
    source.open.set()
    answers = await asyncio.gather(*asking)
    assert answers == [{"a": 1, "bb": 2}] * 5 + [{"bb": 2, "ccc": 3}]
    assert source.asked == [["a", "bb"], ["ccc"]]
    assert await lately.of(["a", "ccc", "unknown"]) == {"a": 1, "ccc": 3}
    assert source.asked == [["a", "bb"], ["ccc"], ["unknown"]]


async def test_an_answer_is_good_for_a_moment_only() -> None:
    source = Source()
    source.open.set()
    lately = Lately(source.ask, 0.0)
    for _ in range(3):
        assert await lately.of(["a"]) == {"a": 1}
    assert len(source.asked) == 3


async def test_all_who_wait_hear_of_the_fault_and_it_is_not_remembered() -> None:
    source = Source()
    source.fails = True
    lately = Lately(source.ask, 60.0)
    asking = [asyncio.ensure_future(lately.of(["a"])) for _ in range(3)]
    await asyncio.sleep(0)
    source.open.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)
    source.fails = False
    assert await lately.of(["a"]) == {"a": 1}


async def test_what_is_remembered_has_a_bound() -> None:
    source = Source()
    source.open.set()
    lately = Lately(source.ask, 60.0, size=10)
    for number in range(100):
        await lately.of([f"n{number}"])
    assert len(lately._known) <= 10


async def test_who_asked_first_may_go_away() -> None:
    source = Source()
    lately = Lately(source.ask, 60.0)
    first = asyncio.ensure_future(lately.of(["a"]))
    await asyncio.sleep(0)
    other = asyncio.ensure_future(lately.of(["a"]))
    await asyncio.sleep(0)
    first.cancel()
    source.open.set()
    assert await other == {"a": 1}
    assert source.asked == [["a"]]
