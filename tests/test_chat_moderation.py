"""Reports of messages, the review queue, the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, insert

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import moderation, tables
from hubbub.features.chat.asks import (
    CloseReport,
    DeleteMessage,
    EditMessage,
    GetAudit,
    GetMessages,
    ListReports,
    ReportMessage,
)
from hubbub.features.chat.tables import key_of
from hubbub.features.chat.tells import ReportInfo
from hubbub.messages import ClientMessage
from tests.chat_rows import answer, change_member, change_room, everything, happens, make_room, say
from tests.chat_support import World, told, world

pytestmark = pytest.mark.anyio
COMMANDS = (moderation.report,)
"""Importing them declares them."""


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private group room `den` (number 1): ann owns it, mod is a moderator, bob and cy are members.
    bob has said something bad in it."""
    async with world(database_url) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        assert await say(it, 1, "bob", "something bad") == 1
        yield it


def report(seq: int = 1, reason: str = "it hurts", room_id: str = "den") -> ReportMessage:
    return ReportMessage(room_id=room_id, id=seq, reason=reason)


async def refused(it: World, user_id: str, message: ClientMessage, **options: Any) -> ErrorCode | str:
    with pytest.raises(ClientError) as caught:
        await it.does(user_id, message, **options)
    return caught.value.code


async def queue(it: World, user_id: str = "mod", **options: Any) -> list[ReportInfo]:
    reports: list[ReportInfo] = (await it.asks(user_id, ListReports(room_id="den", **options))).reports
    return reports


# -- reporting


async def test_a_report_comes_to_the_moderators(den: World) -> None:
    outcome = await den.does("cy", report())
    assert answer(outcome).report == 1
    assert not told(outcome), "nobody else hears of it, least of all the author"
    assert not outcome.personal
    den.clock.advance(5)
    (found,) = await queue(den)
    assert (found.report, found.room_id, found.reported_by, found.reason) == (1, "den", "cy", "it hurts")
    assert (found.status, found.closed_at, found.note) == ("open", None, "")
    assert found.message is not None
    assert (found.message.id, found.message.user_id, found.message.message) == (1, "bob", "something bad")


async def test_a_message_is_reported_once_by_each(den: World) -> None:
    assert (await den.asks("cy", report(reason="first"))).report == 1
    assert (await den.asks("cy", report(reason="second"))).report == 1
    assert (await den.asks("ann", report(reason="of another"))).report == 2
    assert [(each.reported_by, each.reason) for each in await queue(den)] == [("cy", "first"), ("ann", "of another")]


async def test_the_message_is_shown_as_it_is_now(den: World) -> None:
    await den.does("cy", report())
    await den.does("bob", EditMessage(room_id="den", id=1, message="something nice"))
    assert [each.message.message for each in await queue(den) if each.message] == ["something nice"]
    await den.does("bob", DeleteMessage(room_id="den", id=1))
    (found,) = await queue(den)
    assert found.message is not None
    assert (found.message.message, bool(found.message.deleted_at)) == ("", True)
    await den.store.write(lambda c: c.execute(delete(tables.messages).where(tables.messages.c.key == key_of(1, 1))))
    assert [each.message for each in await queue(den)] == [None]


async def test_what_is_no_message_of_somebody_else_is_not_reported(den: World) -> None:
    assert await refused(den, "bob", report()) == ErrorCode.FORBIDDEN
    assert await refused(den, "cy", report(await happens(den, "den"))) == ErrorCode.FORBIDDEN
    assert await refused(den, "cy", report(99)) == ErrorCode.NOT_FOUND
    assert await refused(den, "cy", report(room_id="nowhere")) == ErrorCode.NOT_FOUND
    assert await refused(den, "", report(), admin=True) == ErrorCode.INVALID_MESSAGE
    assert await refused(den, "cy", report(reason="a\x00b")) == ErrorCode.INVALID_MESSAGE
    await den.does("bob", DeleteMessage(room_id="den", id=1))
    assert await refused(den, "cy", report()) == ErrorCode.CONFLICT
    assert await queue(den) == []


async def test_a_report_of_what_was_deleted_since_still_has_its_number(den: World) -> None:
    assert (await den.asks("cy", report())).report == 1
    await den.does("bob", DeleteMessage(room_id="den", id=1))
    assert (await den.asks("cy", report())).report == 1


async def test_strangers_cannot_report(den: World) -> None:
    assert await refused(den, "eve", report()) == ErrorCode.NOT_FOUND
    await change_room(den, "den", visibility="public")
    assert await refused(den, "eve", report()) == ErrorCode.NOT_JOINED


async def test_nobody_reports_what_was_said_before_they_came(den: World) -> None:
    await change_member(den, 1, "cy", history_from=1)
    assert await refused(den, "cy", report()) == ErrorCode.NOT_FOUND


async def test_muted_members_and_archived_rooms_have_reports_too(den: World) -> None:
    await change_member(den, 1, "cy", muted_until=den.now + 60_000)
    await change_room(den, "den", archived_at=den.now)
    assert (await den.asks("cy", report())).report == 1
    await den.does("mod", CloseReport(report=1, delete=True))
    (found,) = (await den.asks("mod", GetMessages(room_id="den"))).messages
    assert found.deleted_at is not None


# -- the queue


@pytest.mark.parametrize(
    ("user_id", "code"), [("bob", ErrorCode.FORBIDDEN), ("cy", ErrorCode.FORBIDDEN), ("eve", ErrorCode.NOT_FOUND)]
)
async def test_only_moderators_see_who_reported_what(den: World, user_id: str, code: ErrorCode) -> None:
    await den.does("cy", report())
    assert await refused(den, user_id, ListReports(room_id="den")) == code
    assert await refused(den, user_id, ListReports()) == ErrorCode.FORBIDDEN
    assert await refused(den, user_id, GetAudit(room_id="den")) == code
    assert await refused(den, user_id, GetAudit()) == ErrorCode.FORBIDDEN
    assert await refused(den, user_id, CloseReport(report=1)) == ErrorCode.NOT_FOUND
    assert [each.report for each in await queue(den, "ann")] == [1]


async def test_all_rooms_are_for_an_admin(den: World) -> None:
    assert await make_room(den, "attic", people=("cy", "bob")) == 2
    await say(den, 2, "bob", "worse")
    await den.does("cy", report())
    await den.does("cy", report(room_id="attic"))
    assert await refused(den, "mod", ListReports()) == ErrorCode.FORBIDDEN
    assert await refused(den, "mod", ListReports(room_id="attic")) == ErrorCode.NOT_FOUND
    reports = (await den.asks("", ListReports(), admin=True)).reports
    assert [(each.room_id, each.message.message) for each in reports] == [("den", "something bad"), ("attic", "worse")]
    assert [each.room_id for each in await queue(den)] == ["den"]


async def test_a_moderator_of_one_room_does_not_learn_of_another(den: World) -> None:
    assert await make_room(den, "attic", people=("cy", "bob")) == 2
    await say(den, 2, "bob", "worse")
    assert (await den.asks("cy", report(room_id="attic"))).report == 1
    with pytest.raises(ClientError) as hidden:
        await den.does("mod", CloseReport(report=1))
    with pytest.raises(ClientError) as missing:
        await den.does("mod", CloseReport(report=2))
    assert str(hidden.value).replace("1", "2") == str(missing.value)


async def test_a_direct_room_has_no_moderators_but_admins(den: World) -> None:
    assert await make_room(den, "dm", people=("bob", "cy"), visibility="direct") == 2
    await change_member(den, 2, "bob", role="member")
    await say(den, 2, "bob", "psst")
    await den.does("cy", report(room_id="dm"))
    assert await refused(den, "cy", ListReports(room_id="dm")) == ErrorCode.FORBIDDEN
    await den.does("", CloseReport(report=1, delete=True), admin=True)
    (found,) = (await den.asks("cy", GetMessages(room_id="dm"))).messages
    assert found.deleted_at is not None


async def test_the_queue_has_pages(den: World) -> None:
    for number in range(2, 7):
        await say(den, 1, "bob", f"bad {number}")
        await den.does("cy", report(number))
    first = await den.asks("mod", ListReports(room_id="den", limit=3))
    assert ([each.report for each in first.reports], first.more) == ([1, 2, 3], True)
    second = await den.asks("mod", ListReports(room_id="den", limit=3, after=3))
    assert ([each.report for each in second.reports], second.more) == ([4, 5], False)


# -- closing


async def test_a_report_is_closed(den: World) -> None:
    await den.does("cy", report())
    den.clock.advance(60)
    outcome = await den.does("mod", CloseReport(report=1, status="dismissed", note="harmless"))
    assert answer(outcome).report == 1
    assert not told(outcome)
    assert await queue(den) == []
    assert await queue(den, status="resolved") == []
    (found,) = await queue(den, status="dismissed")
    assert (found.closed_by, found.note, found.status) == ("mod", "harmless", "dismissed")
    assert found.closed_at is not None
    assert found.closed_at > found.at
    assert found.message is not None
    assert found.message.message == "something bad"


async def test_a_report_is_closed_once(den: World) -> None:
    await den.does("cy", report())
    await den.does("mod", CloseReport(report=1, status="dismissed"))
    assert await refused(den, "ann", CloseReport(report=1, delete=True)) == ErrorCode.CONFLICT
    (found,) = await queue(den, status="dismissed")
    assert (found.closed_by, found.message.deleted_at if found.message else "") == ("mod", None)
    assert (await den.asks("cy", report())).report == 1, "and it is not opened again"
    assert await queue(den) == []


async def test_its_message_is_deleted_with_it(den: World) -> None:
    await den.does("cy", report())
    (event,) = told(await den.does("mod", CloseReport(report=1, delete=True, note="out")))
    assert (event["type"], event["data"]["id"], event["data"]["message"]) == ("message_deleted", 1, "")
    acts = [(each.act, each.user_id, each.target_user, each.target_message) for each in await log(den)]
    assert acts == [("delete_message", "mod", "bob", 1), ("close_report", "mod", "bob", 1)]
    assert [each.data for each in await log(den)] == [{"report": 1}, {"report": 1, "status": "resolved"}]


async def test_a_moderator_who_came_later_decides_on_it_too(den: World) -> None:
    await den.does("cy", report())
    await change_member(den, 1, "mod", history_from=1)
    assert len(told(await den.does("mod", CloseReport(report=1, delete=True)))) == 1


async def test_a_message_that_is_gone_is_not_deleted_again(den: World) -> None:
    await den.does("cy", report())
    await den.does("ann", report())
    await den.does("mod", CloseReport(report=1, delete=True))
    assert told(await den.does("mod", CloseReport(report=2, delete=True))) == []
    assert [each.act for each in await log(den)] == ["close_report", "delete_message", "close_report"]


async def test_nothing_is_closed_where_the_message_may_not_be_deleted(den: World) -> None:
    await den.does("cy", report())
    assert await refused(den, "bob", CloseReport(report=1, delete=True)) == ErrorCode.NOT_FOUND
    assert await refused(den, "mod", CloseReport(report=1, note="a\x00b")) == ErrorCode.INVALID_MESSAGE
    assert [each.status for each in await queue(den)] == ["open"]


# -- the audit log


async def log(it: World, user_id: str = "mod", **options: Any) -> list[Any]:
    entries: list[Any] = (await it.asks(user_id, GetAudit(room_id="den", **options))).entries
    return entries


async def test_the_audit_log_is_read_from_the_newest(den: World) -> None:
    for number in range(2, 6):
        await say(den, 1, "bob", f"bad {number}")
    for number in range(2, 6):
        await den.does("mod", DeleteMessage(room_id="den", id=number, reason=f"reason {number}"))
    page = await den.asks("ann", GetAudit(room_id="den", limit=3))
    assert ([each.target_message for each in page.entries], page.more) == ([5, 4, 3], True)
    assert page.entries[0].data == {"reason": "reason 5"}
    assert {(each.act, each.user_id, each.target_user, each.room_id) for each in page.entries} == {
        ("delete_message", "mod", "bob", "den")
    }
    page = await den.asks("ann", GetAudit(room_id="den", limit=3, before=page.entries[-1].entry))
    assert ([each.target_message for each in page.entries], page.more) == ([2], False)


async def test_the_log_of_all_rooms_is_for_an_admin(den: World) -> None:
    assert await make_room(den, "attic", people=("cy", "bob")) == 2
    await say(den, 2, "bob", "worse")
    await den.does("mod", DeleteMessage(room_id="den", id=1))
    await den.does("", DeleteMessage(room_id="attic", id=1), admin=True)
    row = {"room_no": None, "at": den.now, "by": "(api key)", "act": "erase_user", "target_user": "zed"}
    await den.store.write(lambda c: c.execute(insert(tables.audit), row))
    assert [each.room_id for each in await log(den)] == ["den"]
    entries = (await den.asks("", GetAudit(), admin=True)).entries
    assert [(each.room_id, each.user_id) for each in entries] == [
        (None, "(api key)"),
        ("attic", "(api key)"),
        ("den", "mod"),
    ]
    assert len(await everything(den, tables.audit)) == 3
