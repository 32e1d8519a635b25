"""Reports of messages, the queue in which moderators look at them, and the log of what moderators did."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Select, insert, select, update

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, MemberRow, RoomRow, check, check_admin
from hubbub.features.chat.asks import CloseReport, GetAudit, ListReports, ReportMessage
from hubbub.features.chat.membership import checked_text, doer
from hubbub.features.chat.render import MESSAGE_COLUMNS, SYSTEM, message_of
from hubbub.features.chat.tables import SEQ_MASK
from hubbub.features.chat.tells import Audit, AuditInfo, ReportAck, ReportInfo, Reports
from hubbub.features.chat.timeline import blank
from hubbub.features.chat.tx import Tx, reads, stamp, writes

OPEN: Final = "open"
_r: Final = tables.reports.c
_WITH_MESSAGE: Final = (
    select(
        *(_r.no, _r.reported_by, _r.reason, _r.at.label("reported_at"), _r.status, _r.closed_at, _r.closed_by, _r.note),
        tables.rooms.c.id.label("room_id"),
        *MESSAGE_COLUMNS,
    )
    .join_from(tables.reports, tables.rooms, tables.rooms.c.no == _r.room_no)
    .outerjoin(tables.messages, tables.messages.c.key == _r.message)
)


@writes(ReportMessage, "POST /api/rooms/{room_id}/messages/{id}/reports")
def report(tx: Tx, message: ReportMessage) -> ReportAck:
    """Tell the moderators of a message. Once per user and message: again gets the first report's number.

    :raises ClientError: ``forbidden``: one's own, or one of the system; ``conflict``: it is deleted already.
    """
    room, member = tx.enter(message.room_id, Act.BROWSE)
    if not tx.caller.user_id:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "say who reports it: `user_id`")
    row = tx.message(room, message.id, member)
    if row.author == tx.caller.user_id:
        raise ClientError(ErrorCode.FORBIDDEN, "this message is your own: delete it (delete_message)")
    if row.kind == SYSTEM:
        raise ClientError(ErrorCode.FORBIDDEN, "nobody said this: it is a message of the system")
    mine = select(_r.no).where(_r.message == row.key, _r.reported_by == tx.caller.user_id)
    before = tx.connection.scalars(mine).first()
    if before is not None:
        return ReportAck(before)
    if row.deleted_at is not None:
        raise ClientError(ErrorCode.CONFLICT, "the message is deleted already")
    values = {
        "room_no": room.no,
        "message": row.key,
        "reported_by": tx.caller.user_id,
        "reason": checked_text(message.reason, "reason"),
        "at": tx.now,
    }
    return ReportAck(tx.connection.scalars(insert(tables.reports).values(values).returning(_r.no)).one())


@reads(ListReports, "GET /api/reports")
def list_reports(tx: Tx, message: ListReports) -> Reports:
    """The review queue, the oldest first: of a room, for its moderators; of all rooms, for an admin."""
    query = _WITH_MESSAGE.where(_r.status == message.status, _r.no > message.after).order_by(_r.no)
    query = _of_room(tx, query, _r.room_no, message.room_id)
    rows = tx.connection.execute(query.limit(message.limit + 1)).all()
    return Reports(reports=[_report_of(row) for row in rows[: message.limit]], more=len(rows) > message.limit)


@writes(CloseReport, "POST /api/reports/{report}/close")
def close_report(tx: Tx, message: CloseReport) -> ReportAck:
    """Decide on a report; with ``delete``, its message goes too.

    :raises ClientError: ``conflict``: somebody decided already.
    """
    note = checked_text(message.note, "note")
    room, member = _room_of_report(tx, message.report)
    # only now: what was read before the room's row was locked may have changed
    row = tx.connection.execute(select(tables.reports).where(_r.no == message.report)).one()
    if row.status != OPEN:
        raise ClientError(ErrorCode.CONFLICT, f"the report was closed already: {row.status} by {row.closed_by}")
    closed = {"status": message.status, "closed_at": tx.now, "closed_by": doer(tx), "note": note}
    tx.connection.execute(update(tables.reports).where(_r.no == message.report).values(closed))
    said = tx.connection.execute(select(tables.messages).where(tables.messages.c.key == row.message)).first()
    about = {"user_id": said.author if said is not None else None, "message": row.message & SEQ_MASK}
    tx.audit("close_report", room, **about, data={"report": message.report, "status": message.status})
    if message.delete and said is not None and said.deleted_at is None:
        # who may see the report may see its message, also one from before they came
        check(room, member, tx.caller, Act.MODERATE, tx.now)
        tx.audit("delete_message", room, **about, data={"report": message.report})
        blank(tx, room, said)
    return ReportAck(message.report)


@reads(GetAudit, "GET /api/audit")
def get_audit(tx: Tx, message: GetAudit) -> Audit:
    """What moderators did, the newest first: in a room, for its moderators; everywhere, for an admin."""
    t = tables.audit.c
    query = select(tables.audit, tables.rooms.c.id).outerjoin(tables.rooms, tables.rooms.c.no == t.room_no)
    query = _of_room(tx, query, t.room_no, message.room_id).order_by(t.no.desc())
    if message.before is not None:
        query = query.where(t.no < message.before)
    rows = tx.connection.execute(query.limit(message.limit + 1)).all()
    return Audit(entries=[_entry_of(row) for row in rows[: message.limit]], more=len(rows) > message.limit)


def _of_room(tx: Tx, query: Select[Any], column: Any, room_id: str | None) -> Select[Any]:
    """Only what is of the room, for who may review it; without a room all of it, for an admin."""
    if room_id is None:
        check_admin(tx.caller)
        return query
    room, _ = tx.enter(room_id, Act.REVIEW)
    return query.where(column == room.no)


def _room_of_report(tx: Tx, number: int) -> tuple[RoomRow, MemberRow | None]:
    """The room of a report, locked, and the caller's membership, for who may review it.

    :raises ClientError: ``not_found``: there is none, or it is not the caller's to know of.
    """
    room_no = tx.connection.scalars(select(_r.room_no).where(_r.no == number)).first()
    try:
        if room_no is not None:
            room, member = tx.look_by_number(room_no)
            check(room, member, tx.caller, Act.REVIEW, tx.now)
            return room, member
    except ClientError:
        pass  # the numbers of others' reports are nobody's business, nor are the names of their rooms
    raise ClientError(ErrorCode.NOT_FOUND, f"there is no report {number}")


def _report_of(row: Any) -> ReportInfo:
    return ReportInfo(
        report=row.no,
        room_id=row.room_id,
        message=message_of(row) if row.key is not None else None,  # it may be gone by now, for its age
        reported_by=row.reported_by,
        reason=row.reason,
        at=stamp(row.reported_at),
        status=row.status,
        closed_at=stamp(row.closed_at) if row.closed_at is not None else None,
        closed_by=row.closed_by,
        note=row.note,
    )


def _entry_of(row: Any) -> AuditInfo:
    target = row.target_message & SEQ_MASK if row.target_message is not None else None
    data = msgspec.json.decode(row.data)
    return AuditInfo(row.no, stamp(row.at), row.by, row.act, row.id, row.target_user, target, data)
