"""Rooms at the page: who comes, who decides, who has to go; and that nothing does harm, whatever is written."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import FilePayload, expect

from tests.browser.acting import PAYLOADS, STRANGERS, asks, talk, two
from tests.browser.conftest import Person, Server, Somebody

pytestmark = pytest.mark.browser


# -- rooms


def test_private_rooms_are_by_invitation_and_direct_ones_for_their_people(somebody: Somebody) -> None:
    ada, bob = somebody("Ada"), somebody("Bob")
    ada.make_room("Secret", "secret", visibility="private")
    expect(bob.room_line("secret")).to_have_count(0)
    ada.page.get_by_role("button", name="Invite people").click()
    ada.dialog.get_by_label("Who").fill("Bob")
    ada.dialog.get_by_label("Who").press("Enter")
    ada.dialog.get_by_role("button", name="Invite", exact=True).click()
    invitation = bob.page.locator('[data-invitation="secret"]')
    expect(invitation).to_contain_text("from Ada")
    invitation.get_by_role("button", name="Decline").click()
    expect(invitation).to_have_count(0)
    ada.page.get_by_role("button", name="Invite people").click()
    ada.dialog.get_by_label("Who").fill("Bob")
    ada.dialog.get_by_role("button", name="Invite", exact=True).click()
    invitation.get_by_role("button", name="Accept").click()
    expect(bob.page.locator("#room-name")).to_have_text("Secret")
    expect(ada.page.locator(".system-line").last).to_contain_text("Bob joined")
    expect(ada.people).to_have_text(["Ada", "Bob"])

    ada.page.get_by_role("button", name="Message somebody").click()
    ada.dialog.get_by_label("To").fill("Bob")
    ada.dialog.get_by_role("button", name="Open").click()
    expect(ada.page.locator("#room-name")).to_have_text("Bob")
    expect(ada.field).to_be_focused()
    ada.say("just between us")
    direct = bob.page.locator("#direct-rooms .room-line")
    expect(direct).to_contain_text(["Ada"])
    expect(direct.locator(".badge.unread")).to_have_text("1")
    direct.click()
    expect(bob.bubble("just between us")).to_be_visible()
    bob.page.get_by_role("button", name="Room settings").click()
    expect(bob.dialog.get_by_role("button", name="Leave this room")).to_have_count(0)
    bob.page.keyboard.press("Escape")
    bob.enter("secret")
    bob.leave()
    expect(bob.room_line("secret")).to_have_count(0)
    expect(ada.page.locator("#direct-rooms .room-line")).to_have_attribute("aria-current", "page")


def test_a_room_is_found_configured_and_archived(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Plans", "plans", topic="What next")
    expect(bob.page.locator("#room-topic")).to_have_text("What next")
    dialog = bob.settings("Room")
    expect(dialog).to_contain_text("What next")
    expect(dialog.get_by_label("Name")).to_have_count(0)  # he may look, and not change it
    bob.page.keyboard.press("Escape")

    dialog = ada.settings("Room")
    dialog.get_by_label("Name").fill("Better plans")
    dialog.get_by_label("Topic").fill("")
    dialog.get_by_role("button", name="Save").click()
    for person in (ada, bob):
        expect(person.page.locator("#room-name")).to_have_text("Better plans")
        expect(person.room_line("plans")).to_contain_text("Better plans")
        expect(person.page.locator("#room-topic")).to_be_hidden()
    expect(bob.page.locator(".system-line")).to_contain_text(
        ["Ada renamed the room to Better plans", "Ada removed the topic"]
    )
    eve = somebody("Eve")
    eve.page.get_by_label("Find a room").fill("ter pl")
    expect(eve.page.locator("#other-rooms [data-room]")).to_contain_text(["Better plans"])
    eve.page.get_by_label("Find a room").press("Enter")
    expect(eve.page.locator("#room-name")).to_have_text("Better plans")

    ada.settings("Room").get_by_role("button", name="Archive this room").click()
    ada.page.get_by_role("dialog", name="Archive").get_by_role("button", name="Archive").click()
    for person in (ada, bob):
        expect(person.field).to_be_hidden()
        expect(person.page.locator("#composer-obstacle")).to_contain_text("archived")
    ada.settings("Room").get_by_role("button", name="Open it again").click()
    bob.say("open again")


def test_rooms_of_other_kinds(somebody: Somebody, server: Server) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Live", "live", kind="live")
    ada.say("said and gone")
    expect(bob.bubble("said and gone")).to_be_visible()
    expect(bob.people).to_have_text(["Bob", "Ada"])
    expect(bob.page.get_by_role("button", name="Attach files").first).to_be_hidden()
    bob.row("said and gone").hover()
    tools = bob.row("said and gone").get_by_role("toolbar").get_by_role("button")
    expect(tools).to_have_count(1)  # nothing is kept, so there is nothing to answer, edit or react to
    tools.click()
    expect(bob.page.get_by_role("menuitem")).to_have_text(["Copy text"])
    bob.page.keyboard.press("Escape")
    bob.page.reload()
    bob.is_online()
    expect(bob.bubble("said and gone")).to_be_visible()  # its channel has a short past

    ada.make_room("News", "news", kind="broadcast")
    bob.enter("news")
    expect(bob.page.locator("#composer-obstacle")).to_have_text("Only moderators write in this room.")
    ada.say("hear, hear")
    bob.act(bob.row("hear, hear"), "React with heart love")
    expect(ada.row("hear, hear").locator(".reaction")).to_have_text("❤️1")
    expect(ada.page.locator("#people-note")).to_contain_text("not listed in such a room")


# -- moderation


def test_moderators_mute_remove_and_ban(somebody: Somebody) -> None:
    ada, eve = two(somebody, ("Ada", "Eve"), "Order", "order")
    eve.say("spam")

    def menu(entry: str) -> None:
        ada.page.locator("#people .person-open").filter(has_text="Eve").click()
        ada.page.get_by_role("menu").get_by_text(entry).click()

    menu("Mute…")
    ada.dialog.get_by_role("button", name="Mute").click()
    expect(eve.page.locator("#composer-obstacle")).to_contain_text("A moderator has muted you here")
    expect(eve.field).to_be_hidden()
    menu("Let write again")
    eve.say("I am sorry")

    ada.act(ada.row("spam"), "More", "Delete…")
    ada.dialog.get_by_label("Reason").fill("It is spam")
    ada.dialog.get_by_role("button", name="Delete").click()
    expect(eve.rows.first).to_contain_text("Message deleted by Ada")

    menu("Remove from the room…")
    ada.dialog.get_by_role("button", name="Remove", exact=True).click()
    expect(eve.page.locator("#empty-text")).to_have_text("A moderator removed you from this room.")
    expect(eve.field).to_be_hidden()
    expect(eve.page.locator("#other-rooms [data-room=order]")).to_be_visible()  # anybody may come in
    eve.enter("order")
    menu("Ban…")
    ada.dialog.get_by_role("button", name="Ban").click()
    expect(eve.page.locator("#empty-text")).to_have_text("You are banned from this room.")
    eve.page.get_by_role("button", name="Refresh the list").click()
    eve.room_line("order").click()
    expect(eve.page.locator("#empty-text")).to_contain_text("banned from this room")

    dialog = ada.settings("Bans")
    expect(dialog.locator(".member")).to_contain_text(["Eve"])
    dialog.get_by_role("button", name="Lift").click()
    expect(dialog).to_contain_text("Nobody is banned.")
    dialog.get_by_role("tab", name="Audit log").click()
    expect(dialog.locator(".review")).to_contain_text(
        [
            "lifted the ban of Eve",
            "banned Eve",
            "removed Eve",
            "deleted a message of Eve",
            "let write again Eve",
            "muted Eve",
        ]
    )


def test_reports_are_decided_on(somebody: Somebody) -> None:
    ada, eve = two(somebody, ("Ada", "Eve"), "Reports", "reports")
    bob = somebody("Bob")
    bob.enter("reports")
    eve.say("something nasty")
    eve.say("something else")
    for text in ("something nasty", "something else"):
        bob.act(bob.row(text), "More", "Report…")
        bob.dialog.get_by_label("What is wrong with it?").fill(f"this: {text}")
        bob.dialog.get_by_role("button", name="Report").click()
        expect(bob.page.locator(".flash").last).to_have_text("Reported to the moderators")
    bob.page.get_by_role("button", name="Room settings").click()
    expect(bob.dialog.get_by_role("tab")).to_have_text(["You", "Room", "Members"])
    bob.page.keyboard.press("Escape")
    dialog = ada.settings("Reports")
    reports = dialog.locator(".review")
    expect(reports).to_contain_text(["this: something nasty", "this: something else"])
    reports.last.get_by_role("button", name="Dismiss").click()
    expect(reports).to_have_count(1)
    reports.first.get_by_role("button", name="Delete the message").click()
    expect(dialog).to_contain_text("Nothing here.")
    dialog.get_by_label("Which reports").select_option("dismissed")
    expect(reports).to_contain_text(["this: something else"])
    expect(bob.rows.first).to_contain_text("Message deleted")
    expect(bob.bubble("something else")).to_be_visible()


def test_roles_and_slow_mode(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Slow", "slow")
    dialog = ada.settings("Room")
    dialog.get_by_label("Slow mode").select_option("5")
    dialog.get_by_role("button", name="Save").click()
    expect(ada.dialog).to_have_count(0)
    bob.say("one")
    expect(bob.page.locator("#composer-note")).to_contain_text("Slow mode: your next message may go in")
    bob.field.fill("two")
    bob.field.press("Enter")
    expect(bob.field).to_have_value("two")  # it is kept until it may go
    expect(bob.page.get_by_role("button", name="Send")).to_be_disabled()
    expect(bob.page.locator("#composer-note")).to_have_text("")
    bob.field.press("Enter")
    expect(ada.bubble("two")).to_be_visible()

    ada.page.locator("#people .person-open").filter(has_text="Bob").click()
    ada.page.get_by_role("menuitemradio", name="Make a moderator").click()
    expect(ada.page.locator("#people .person").filter(has_text="Bob")).to_contain_text("moderator")
    bob.settings("Room").get_by_label("Slow mode").select_option("0")
    bob.dialog.get_by_role("button", name="Save").click()
    expect(bob.dialog).to_have_count(0)
    bob.say("three")
    bob.say("four")


# -- harm


def test_hostile_text_is_only_text_wherever_it_stands(somebody: Somebody, server: Server) -> None:
    ada, eve = two(somebody, ("Zoe", PAYLOADS[1]), PAYLOADS[0], "zoo", topic=PAYLOADS[2])
    expect(ada.people.filter(has_text=PAYLOADS[1])).to_be_visible()
    expect(eve.page.locator("#room-topic")).to_have_text(PAYLOADS[2])
    for payload in PAYLOADS:
        eve.say(payload)
        expect(ada.bubble(payload)).to_be_visible()
        server.notify("Zoe", title=payload, message=payload, **{payload: payload})
        expect(ada.toasts.last.locator(".notice-title")).to_have_text(payload)
    eve.field.press_sequentially("x")
    expect(ada.page.locator("#typing-text")).to_have_text(f"{PAYLOADS[1]} is typing")
    eve.field.fill("")

    ids = talk(server, "Mallory", "zoo", ["root @Zoe"])
    target = {"room_id": "zoo", "id": ids[0]}
    requests: list[dict[str, Any]] = [{"type": "join_room", "room_id": "zoo"}]
    for payload in PAYLOADS:
        requests.append({"type": "chat_message", "room_id": "zoo", "message": payload, "reply_to": ids[0]})
        requests.append({"type": "chat_message", "room_id": "zoo", "message": f"{payload} @Zoe", "thread": ids[0]})
        requests.append({"type": "edit_message", **target, "message": f"{payload} findme @Zoe"})
    requests.append({"type": "add_reaction", **target, "emoji": "<img/src=x/onerror=alert(8)>"})
    asks(server, "Mallory", *requests)
    for number, payload in enumerate(PAYLOADS):
        asks(server, "Mallory", {"type": "create_room", "room_id": f"zoo-{number}", "name": payload[:100]})
    asks(
        server,
        "Zoe",
        {"type": "pin_message", **target},
        {"type": "update_room", "room_id": "zoo", "name": PAYLOADS[1][:100]},
    )
    asks(server, PAYLOADS[1], {"type": "report_message", **target, "reason": PAYLOADS[1]})
    upload: FilePayload = {
        "name": f"{PAYLOADS[1]}.txt",
        "mimeType": "text/html",
        "buffer": b"<script>alert(9)</script>",
    }
    drawing: FilePayload = {"name": "x.svg", "mimeType": "image/svg+xml", "buffer": b"<svg onload='alert(10)'/>"}
    eve.page.locator("#compose input[type=file]").set_input_files([upload, drawing])
    expect(eve.page.locator("#compose .tray .file").last).to_have_attribute("data-state", "done")
    eve.say("files")
    expect(ada.row("files").locator(".file")).to_have_count(2)
    expect(ada.row("files").locator("img")).to_have_count(0)  # a drawing is a document: it is not shown

    def nothing_strange(*people: Person) -> None:
        for person in people:
            expect(person.page.locator(STRANGERS)).to_have_count(0)

    expect(ada.page.locator("#room-name")).to_have_text(PAYLOADS[1])
    expect(ada.page.locator(".system-line").last).to_contain_text(PAYLOADS[1])
    nothing_strange(ada, eve)
    root = ada.rows.filter(has_text="findme").first
    expect(root.locator(".reaction")).to_contain_text("<img/src=x")
    root.get_by_role("button", name="edited").click()
    expect(ada.page.locator(".version")).to_have_count(len(PAYLOADS) + 1)
    nothing_strange(ada)
    ada.page.keyboard.press("Escape")
    root.locator(".replies").click()
    expect(ada.replies).to_have_count(len(PAYLOADS))
    nothing_strange(ada)
    ada.page.get_by_role("button", name="Pinned messages").click()
    expect(ada.page.locator("#pins-list .card")).to_have_count(1)
    ada.page.get_by_role("button", name="Search messages").click()
    ada.page.locator("#search-field").fill("findme")
    expect(ada.page.locator("#search-list mark")).to_have_text(["findme"])
    ada.page.locator("#search-field").fill("<script>")
    expect(ada.page.locator("#search-list mark").first).to_have_text("script")
    nothing_strange(ada)
    ada.page.get_by_role("button", name="Mentions").first.click()
    expect(ada.page.locator("#mentions-list .card")).to_have_count(len(PAYLOADS) + 1)
    nothing_strange(ada)
    ada.page.get_by_role("button", name="Refresh the list").click()
    for number, payload in enumerate(PAYLOADS):
        expect(ada.room_line(f"zoo-{number}").locator(".room-line-name")).to_have_text(payload[:100])
    dialog = ada.settings("Members")
    expect(dialog.locator(".member").filter(has_text=PAYLOADS[1])).to_be_visible()
    dialog.get_by_role("tab", name="Reports").click()
    expect(dialog.locator(".review-reason")).to_have_text([PAYLOADS[1]])
    dialog.get_by_role("tab", name="Audit log").click()
    expect(dialog.locator(".review").first).to_contain_text("changed the room")
    nothing_strange(ada)
    ada.page.keyboard.press("Escape")
    ada.page.locator("#bell").click()
    ada.page.locator("#notice-list summary").first.click()
    nothing_strange(ada)
    ada.page.keyboard.press("Escape")
    ada.page.locator("#about-button").click()
    expect(ada.page.locator("#try-notify")).to_contain_text(f"curl {server.url}api/notifications/send")
    nothing_strange(ada)
    for person in (ada, eve):
        person.unharmed()
