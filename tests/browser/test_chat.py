"""The chat at the page: what becomes of messages, what is unread, what is found, what moderators do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.browser.acting import PAYLOADS, STRANGERS, asks, png, talk
from tests.browser.conftest import Person, Server, Somebody

pytestmark = pytest.mark.browser

PRESSED = ("aria-pressed", "true")


def two(somebody: Somebody, names: tuple[str, str], name: str, room_id: str, **choices: str) -> tuple[Person, Person]:
    """Two people in a room that the first one made."""
    first, second = somebody(names[0]), somebody(names[1])
    first.make_room(name, room_id, **choices)
    second.enter(room_id)
    return first, second


# -- messages


def test_messages_are_edited_and_deleted(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Edits", "edits")
    ada.say("teh first")
    ada.say("the second")
    ada.field.press("ArrowUp")  # the last one; then the one before, by its button
    edit = ada.page.get_by_label("Edit the message")
    expect(edit).to_have_value("the second")
    edit.press("Escape")
    expect(edit).to_have_count(0)
    expect(ada.field).to_be_focused()
    ada.act(ada.row("teh first"), "Edit")
    edit.fill("the first")
    edit.press("Enter")
    for person in (ada, bob):
        expect(person.bubble("the first")).to_be_visible()
        expect(person.row("the first")).to_contain_text("edited")
    bob.row("the first").get_by_role("button", name="edited").click()
    expect(bob.page.locator(".version p")).to_have_text(["the first", "teh first"])
    bob.page.keyboard.press("Escape")
    expect(bob.page.locator(".popup")).to_have_count(0)

    bob.row("the first").hover()
    tools = bob.row("the first").get_by_role("toolbar")
    expect(tools).to_be_visible()
    expect(tools.get_by_role("button", name="Edit")).to_have_count(0)  # it is not his
    ada.act(ada.row("the second"), "More", "Delete…")
    expect(ada.dialog).to_contain_text("the second")
    ada.dialog.get_by_role("button", name="Delete").click()
    for person in (ada, bob):
        expect(person.rows.last).to_have_text(re.compile("Message deleted"))
        expect(person.bubble("the second")).to_have_count(0)
    bob.page.reload()
    bob.is_online()
    expect(bob.rows.last).to_have_text(re.compile("Message deleted"))


def test_reactions_and_pins(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Reactions", "reactions")
    ada.say("Ship it?")
    bob.act(bob.row("Ship it?"), "React with thumbs up yes")
    theirs = ada.row("Ship it?").locator(".reaction")
    expect(theirs).to_have_text("👍1")
    expect(theirs).to_have_attribute("aria-pressed", "false")
    theirs.click()
    expect(theirs).to_have_text("👍2")
    expect(theirs).to_have_attribute(*PRESSED)
    expect(theirs).to_have_attribute("title", "you and 1 other")
    expect(bob.row("Ship it?").locator(".reaction")).to_have_text("👍2")
    theirs.click()
    expect(theirs).to_have_text("👍1")

    ada.act(ada.row("Ship it?"), "React")
    ada.page.get_by_label("Find an emoji").fill("rocket")
    ada.page.keyboard.press("Enter")
    expect(bob.row("Ship it?").locator(".reaction")).to_have_text(["👍1", "🚀1"])

    ada.act(ada.row("Ship it?"), "More", "Pin")
    expect(bob.page.locator(".system-line").last).to_contain_text("Ada pinned a message")
    bob.page.get_by_role("button", name="Pinned messages").click()
    pinned = bob.page.locator("#pins-list .card")
    expect(pinned).to_have_text(re.compile("Ship it?"))
    expect(pinned.get_by_role("button", name="Unpin")).to_have_count(0)  # a public room's pins are its moderators'
    ada.act(ada.row("Ship it?"), "More", "Unpin")
    expect(pinned).to_have_count(0)
    expect(bob.page.locator("#pins-state")).to_contain_text("Nothing is pinned")


def test_answers_and_threads(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Threads", "threads")
    ada.say("Who is coming on Friday?")
    ada.say("And who brings cake?")
    bob.act(bob.row("Who is coming on Friday?"), "Reply")
    expect(bob.page.locator("#composer .answered")).to_contain_text("Who is coming on Friday?")
    bob.say("I am")
    quote = ada.row("I am").locator(".quote")
    expect(quote).to_contain_text("Who is coming on Friday?")
    quote.click()
    expect(ada.row("Who is coming on Friday?")).to_have_class(re.compile(r"\blit\b"))

    bob.act(bob.row("And who brings cake?"), "Reply in a thread")
    thread = bob.page.get_by_label("Reply in this thread")
    thread.fill("I can bake")
    thread.press("Enter")
    expect(bob.replies).to_have_count(1)
    root = ada.row("And who brings cake?").locator(".replies")
    expect(root).to_contain_text("1 reply")
    expect(root.locator(".badge")).to_have_text("1")  # it is her message, so she follows its thread
    expect(ada.bubble("I can bake")).to_have_count(0)  # not among the room's messages
    root.click()
    expect(ada.replies).to_contain_text(["I can bake"])
    expect(root.locator(".badge")).to_have_count(0)
    answer = ada.page.get_by_label("Reply in this thread")
    expect(answer).to_be_focused()
    answer.fill("Wonderful")
    answer.press("Enter")
    expect(bob.replies).to_contain_text(["I can bake", "Wonderful"])
    expect(root).to_contain_text("2 replies")

    ada.act(ada.replies.last, "More", "Copy link")
    expect(ada.page.locator(".flash")).to_have_count(1)
    reply = ada.replies.last.get_attribute("data-id")
    ada.page.get_by_role("button", name="Close the thread").click()
    expect(ada.page.locator("#thread-panel")).to_be_hidden()
    ada.page.evaluate(f"location.hash = '#threads/{reply}'")  # a link to what is in a thread opens that
    expect(ada.replies.last).to_have_class(re.compile(r"\blit\b"))
    ada.page.keyboard.press("Escape")
    expect(ada.page.locator("#thread-panel")).to_be_hidden()
    ada.page.get_by_role("button", name="Threads").first.click()
    ada.page.locator("#threads-list .card-open").first.click()
    expect(ada.page.locator("#thread-root")).to_contain_text("And who brings cake?")
    expect(ada.replies).to_have_count(2)


def test_mentions_are_offered_marked_and_counted(somebody: Somebody, server: Server) -> None:
    ada, bob = two(somebody, ("Ada Lovelace", "Bob"), "Mentions", "mentions")
    ada.say("hello")
    bob.enter("general")
    ada.field.press_sequentially("Look at this, @bo")
    expect(ada.page.get_by_role("option")).to_have_text(re.compile("Bob"))
    ada.field.press("Tab")
    expect(ada.field).to_have_value("Look at this, @Bob ")
    ada.field.press("Enter")
    line = bob.room_line("mentions")
    expect(line.locator(".badge.mention")).to_have_text("@")
    expect(bob.page.locator("#mention-count")).to_have_text("1")
    expect(bob.toasts).to_contain_text(["Ada Lovelace mentioned you in Mentions"])
    bob.toasts.get_by_role("button", name="Show the message").click()
    expect(bob.row("Look at this, @Bob")).to_be_in_viewport()
    bob.enter("general")
    ada.say("One more, @Bob")
    bob.page.locator("#open-mentions").click()
    bob.page.locator("#mentions-list .card-open").first.click()
    expect(bob.page.locator("#room-name")).to_have_text("Mentions")
    expect(bob.row("One more, @Bob")).to_have_class(re.compile(r"\bcalls-me\b"))
    expect(line.locator(".badge")).to_have_count(0)
    expect(bob.page.locator("#mention-count")).to_be_hidden()

    bob.field.press_sequentially("@ada")  # a name of two words
    bob.field.press("Enter")
    expect(bob.field).to_have_value("@[Ada Lovelace] ")
    bob.field.press_sequentially("yes, @nobody, bob@Ada.example")
    bob.field.press("Enter")
    expect(ada.rows.last.locator(".mention")).to_have_text(["@Ada Lovelace"])
    expect(ada.rows.last.locator(".mention")).to_have_class(re.compile(r"\bmine\b"))

    ada.page.locator("#people-list .person-open").filter(has_text="Bob").click()
    expect(ada.page.get_by_role("menuitem", name="Message Bob")).to_be_visible()
    ada.page.get_by_role("menuitem", name="Mention", exact=True).click()
    expect(ada.field).to_have_value("@Bob ")


def test_links_lead_out_and_nowhere_else(somebody: Somebody) -> None:
    ada = somebody("Ada")
    ada.make_room("Links", "links")
    ada.say("see https://example.com/a_(b)?q=1#c, (http://example.org) javascript:alert(1) https://x\u202e.example")
    links = ada.rows.last.get_by_role("link")
    expect(links).to_have_text(["https://example.com/a_(b)?q=1#c", "http://example.org", "https://x"])
    expect(links.first).to_have_attribute("rel", re.compile("noopener"))


# -- attachments


def test_files_are_sent_and_shown(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Files", "files")
    picture: FilePayload = {"name": "green.png", "mimeType": "image/png", "buffer": png(320, 200)}
    paper: FilePayload = {"name": "notes & more.txt", "mimeType": "text/plain", "buffer": b"some notes"}
    ada.page.locator("#compose input[type=file]").set_input_files([picture, paper])
    tray = ada.page.locator("#compose .tray .file")
    expect(tray).to_have_count(2)
    expect(tray.first).to_have_attribute("data-state", "done")
    ada.say("Both of them")
    expect(tray).to_have_count(0)
    for person in (ada, bob):
        image = person.row("Both of them").locator("img")
        expect(image).to_have_attribute("src", re.compile("^blob:"))
        expect(image).to_have_attribute("alt", "green.png")
        size = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
        assert image.evaluate(size) == [320, 200]
    line = bob.row("Both of them").locator(".file")
    expect(line).to_contain_text("notes & more.txt")
    expect(line).to_contain_text("10 bytes")
    with bob.page.expect_download() as download:
        line.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "notes & more.txt"
    assert download.value.path().read_bytes() == b"some notes"

    bob.row("Both of them").get_by_role("button", name="Picture green.png").click()
    expect(bob.dialog.locator("img")).to_be_visible()
    bob.page.keyboard.press("Escape")
    expect(bob.dialog).to_have_count(0)
    ada.act(ada.row("Both of them"), "More", "Delete…")
    ada.dialog.get_by_role("button", name="Delete").click()
    expect(bob.rows.last.locator("img, .file")).to_have_count(0)


def test_a_file_that_is_refused_can_be_taken_away(somebody: Somebody, own_server: Callable[..., Server]) -> None:
    server = own_server(max_file_size="1000")
    ada = somebody("Ada", at=server)
    ada.forgive(r"413")
    ada.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(5000)], "large.bin"));
            data.items.add(new File(["fine"], "small.txt"));
            const paste = new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
            document.querySelector("#composer-input").dispatchEvent(paste);
        }"""
    )
    tray = ada.page.locator("#compose .tray .file")
    expect(tray.first).to_have_attribute("data-state", "failed")
    expect(tray.first).to_contain_text("at most 1,000 bytes")
    expect(tray.last).to_have_attribute("data-state", "done")
    tray.first.get_by_role("button", name="Take large.bin away").click()
    expect(tray).to_have_count(1)
    ada.field.press("Enter")  # without a text
    expect(ada.rows.last).to_contain_text("small.txt")
    expect(ada.rows.last).to_have_attribute("data-state", "sent")


# -- what is unread


def test_what_one_device_reads_is_read_on_the_other(somebody: Somebody, server: Server) -> None:
    desk, phone = somebody("Twice"), somebody("Twice")
    desk.make_room("Both", "both")
    desk.enter("general")
    phone.enter("both")
    phone.enter("general")
    talk(server, "Chatterbox", "both", ["one", "two @Twice", "three"])
    for device in (desk, phone):
        expect(device.unread("both")).to_have_text("3")
        expect(device.room_line("both").locator(".badge.mention")).to_have_text("@")
    phone.look_away()
    phone.room_line("both").click()
    expect(phone.unread("both")).to_have_text("3")  # it is open, and nobody looks
    desk.room_line("both").click()
    for device in (desk, phone):
        expect(device.room_line("both").locator(".badge")).to_have_count(0)
    desk.enter("general")
    desk.page.reload()
    desk.is_online()
    expect(desk.room_line("both").locator(".badge")).to_have_count(0)

    talk(server, "Chatterbox", "both", ["four"])
    expect(desk.unread("both")).to_have_text("1")
    phone.look_back()
    expect(desk.unread("both")).to_have_count(0)


def test_who_has_seen_it_is_shown(somebody: Somebody) -> None:
    ada, bob = two(somebody, ("Ada", "Bob"), "Receipts", "receipts")
    bob.look_away()
    ada.say("Seen?")
    seen = ada.page.locator("#receipts")
    expect(bob.bubble("Seen?")).to_be_visible()
    expect(seen).to_be_hidden()
    bob.look_back()
    expect(seen).to_have_text(re.compile("Seen by Bob"))
    ada.page.reload()
    ada.is_online()
    expect(seen).to_have_text(re.compile("Seen by Bob"))


def test_a_quiet_room_and_one_of_mentions_only(somebody: Somebody, server: Server) -> None:
    bob = somebody("Quiet Bob")
    bob.make_room("Noise", "noise")
    bob.settings("You").get_by_label("Nothing").check()
    bob.page.keyboard.press("Escape")
    expect(bob.room_line("noise")).to_have_class(re.compile(r"\bmuted\b"))
    bob.enter("general")
    talk(server, "Chatterbox", "noise", ["@[Quiet Bob] hear me"])
    expect(bob.unread("noise")).to_have_text("1")
    expect(bob.room_line("noise").locator(".badge.mention")).to_have_count(0)
    expect(bob.room_line("noise")).not_to_have_class(re.compile("has-unread"))
    expect(bob.page).not_to_have_title(re.compile(r"^\("))


def test_far_more_is_unread_than_is_shown(somebody: Somebody, server: Server) -> None:
    bob = somebody("Bob")
    bob.make_room("Flood", "flood")
    bob.say("seen")
    bob.enter("general")
    talk(server, "Chatterbox", "flood", [f"number {n}" for n in range(1, 301)])
    expect(bob.unread("flood")).to_have_text("300")
    bob.room_line("flood").click()
    expect(bob.bubble("number 300")).to_be_in_viewport()  # a room opens at its end
    bar = bob.page.locator("#unread-bar")
    expect(bar).to_contain_text("300 new messages")
    expect(bob.unread("flood")).to_have_count(0)
    bar.get_by_role("button", name="Jump to the first").click()
    expect(bob.bubble("number 1")).to_be_in_viewport()
    expect(bob.row("number 1").locator(".newmark")).to_have_count(1)
    expect(bar).to_be_hidden()


# -- long rooms


def rows_of(page: Page) -> list[str]:
    return page.locator("#messages .bubble").all_text_contents()


def scroll(page: Page, to: str) -> None:
    page.evaluate(f"(() => {{ const list = document.querySelector('#thread'); list.scrollTop = {to}; }})()")


def test_a_long_room_is_scrolled_back_with_few_rows(somebody: Somebody, server: Server) -> None:
    asks(server, "Chatterbox", {"type": "create_room", "room_id": "long", "name": "Long"})
    talk(server, "Chatterbox", "long", [f"number {n}" for n in range(1, 701)])
    bob = somebody("Bob")
    bob.enter("long")
    expect(bob.bubble("number 700")).to_be_in_viewport()
    expect(bob.rows).to_have_count(100)  # the newest page, and the one that is scrolled to next
    most = 0
    for _ in range(60):
        scroll(bob.page, "0")
        expect(bob.page.locator("#thread")).to_have_attribute("aria-busy", "false")
        texts = rows_of(bob.page)
        most = max(most, len(texts))
        first, last = int(texts[0].split()[1]), int(texts[-1].split()[1])
        assert texts == [f"number {n}" for n in range(first, last + 1)], "there is a hole, or something is twice"
        if first == 1:
            break
    assert first == 1
    assert 250 <= most <= 310
    expect(bob.page.locator("#beginning")).to_be_visible()
    expect(bob.bubble("number 700")).to_have_count(0)

    talk(server, "Chatterbox", "long", [f"number {n}" for n in range(701, 711)])  # what is read stays where it is
    expect(bob.page.get_by_role("button", name="10 new messages")).to_be_visible()
    expect(bob.bubble("number 1")).to_have_count(1)
    bob.page.get_by_role("button", name="10 new messages").click()
    expect(bob.bubble("number 710")).to_be_in_viewport()
    expect(bob.rows).to_have_count(100)
    for _ in range(60):  # and down again, from far up
        scroll(bob.page, "0")
        expect(bob.page.locator("#thread")).to_have_attribute("aria-busy", "false")
        if bob.bubble("number 300").count():
            break
    for _ in range(60):
        scroll(bob.page, "list.scrollHeight")
        expect(bob.page.locator("#thread")).to_have_attribute("aria-busy", "false")
        assert len(rows_of(bob.page)) <= 310
        if bob.bubble("number 710").count():
            break
    scroll(bob.page, "list.scrollHeight")
    expect(bob.bubble("number 710")).to_be_in_viewport()


def test_what_is_read_stays_where_it_is(somebody: Somebody, server: Server) -> None:
    asks(server, "Chatterbox", {"type": "create_room", "room_id": "still", "name": "Still"})
    ids = talk(server, "Chatterbox", "still", [f"number {n}" for n in range(1, 201)])
    bob = somebody("Bob")
    bob.enter("still")
    expect(bob.rows).to_have_count(100)
    scroll(bob.page, "list.scrollHeight - 1200")
    where = "(row) => row.getBoundingClientRect().top"
    row = bob.row("number 170")
    expect(bob.page.locator("#thread")).to_have_attribute("aria-busy", "false")
    before = row.evaluate(where)
    talk(server, "Chatterbox", "still", [f"later {n}\nof two lines" for n in range(1, 31)])
    expect(bob.page.get_by_role("button", name="30 new messages")).to_be_visible()
    assert abs(row.evaluate(where) - before) <= 1
    requests = [
        {"type": "edit_message", "room_id": "still", "id": ids[n], "message": "much\nlonger\nthan\nbefore"}
        for n in range(100, 110)
    ]
    asks(server, "Chatterbox", {"type": "join_room", "room_id": "still"}, *requests)
    expect(bob.page.locator("#messages .row", has_text="longer")).to_have_count(10)
    assert abs(row.evaluate(where) - before) <= 1


def test_found_messages_are_jumped_to(somebody: Somebody, server: Server) -> None:
    asks(server, "Chatterbox", {"type": "create_room", "room_id": "haystack", "name": "Haystack"})
    texts = [f"straw {n}" for n in range(1, 401)]
    texts[40] = "here is 🧵 the Needle, at last"
    ids = talk(server, "Chatterbox", "haystack", texts)
    bob = somebody("Bob")
    bob.enter("haystack")
    expect(bob.rows).to_have_count(100)
    bob.page.get_by_role("button", name="Search messages").click()
    bob.page.locator("#search-field").fill("needle")
    hit = bob.page.locator("#search-list .card")
    expect(hit).to_have_count(1)
    expect(hit.locator("mark")).to_have_text("Needle")
    hit.click()
    found = bob.row(texts[40])
    expect(found).to_be_in_viewport()
    expect(found).to_have_class(re.compile(r"\blit\b"))
    expect(bob.page.get_by_role("button", name="Jump to newest")).to_be_visible()
    bob.say("back at the end")
    expect(bob.bubble("back at the end")).to_be_in_viewport()
    expect(bob.bubble("straw 400")).to_be_in_viewport()

    bob.page.locator("#search-field").fill("straw")
    expect(hit).to_have_count(20)
    bob.page.get_by_role("button", name="Show more").click()
    expect(hit).to_have_count(40)
    bob.page.locator("#search-field").fill("nothing of the kind")
    expect(bob.page.locator("#search-state")).to_have_text("Nothing was found.")
    bob.enter("general")
    bob.page.get_by_label("In all rooms").check()
    bob.page.locator("#search-field").fill("needle")
    expect(hit).to_contain_text(["Haystack"])
    hit.locator(".card-open").click()
    expect(bob.page.locator("#room-name")).to_have_text("Haystack")
    expect(found).to_be_in_viewport()

    linked = somebody()
    linked.page.goto(server.url + f"#haystack/{ids[10]}")
    linked.log_in("Eve")
    expect(linked.row("straw 11")).to_be_in_viewport()
    linked.page.goto(server.url + "#haystack/999999")
    expect(linked.page.locator(".flash")).to_contain_text("not there any more")


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


# -- what may go wrong


def test_a_gap_is_told_calmly_and_the_newest_is_loaded(somebody: Somebody, own_server: Callable[..., Server]) -> None:
    server = own_server(catch_up_limit="20", recovery_limit="20", rate_limit="0", user_rate_limit="0")
    ada = somebody("Ada", at=server)
    ada.forgive("WebSocket connection to .* failed")
    ada.say("before")
    ada.page.context.set_offline(True)
    ada.page.evaluate("dispatchEvent(new Event('offline'))")
    server.post("api/sessions/disconnect", user_id="Ada")
    expect(ada.status).not_to_have_attribute("data-state", "online")
    talk(server, "Chatterbox", "general", [f"number {n}" for n in range(1, 101)])
    ada.page.context.set_offline(False)
    ada.page.get_by_role("button", name="Try now").click()
    ada.is_online()
    expect(ada.notice).to_contain_text("The newest messages were loaded again")
    expect(ada.rows).to_have_count(50)
    expect(ada.bubble("number 100")).to_have_count(1)
    scroll(ada.page, "0")
    expect(ada.bubble("number 1")).to_have_count(1)
    scroll(ada.page, "0")
    expect(ada.bubble("before")).to_have_count(1)  # there is no hole: it is all there
    ada.notice.get_by_role("button", name="Close").click()
    expect(ada.notice).to_be_hidden()


def test_messages_of_a_busy_server_are_sent_again_by_themselves(
    somebody: Somebody, own_server: Callable[..., Server]
) -> None:
    server = own_server(rate_limit="1", rate_burst="25", abuse_limit="1000")
    ada = somebody("Ada", at=server)
    for number in range(30):
        ada.field.fill(f"number {number}")
        ada.field.press("Enter")
    expect(ada.rows).to_have_count(30)
    expect(ada.page.locator('#messages .row[data-state="waiting"]')).not_to_have_count(0)
    expect(ada.page.locator('#messages .row[data-state="sent"]')).to_have_count(30, timeout=60_000)
    assert rows_of(ada.page) == [f"number {n}" for n in range(30)]


def test_the_keyboard_goes_from_message_to_message(somebody: Somebody, server: Server) -> None:
    asks(server, "Chatterbox", {"type": "create_room", "room_id": "keys", "name": "Keys"})
    talk(server, "Chatterbox", "keys", ["one", "two", "three"])
    ada = somebody("Ada")
    ada.enter("keys")
    ada.say("four")
    page = ada.page
    ada.field.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(ada.row("four")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(ada.row("three")).to_be_focused()
    page.keyboard.press("r")
    expect(page.locator("#composer .answered")).to_contain_text("three")
    expect(ada.field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#composer .answered")).to_be_hidden()
    ada.row("two").focus()
    page.keyboard.press("t")
    expect(page.get_by_label("Reply in this thread")).to_be_focused()
    page.keyboard.type("in the thread")
    page.keyboard.press("Enter")
    expect(ada.replies).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#thread-panel")).to_be_hidden()
    ada.row("four").focus()
    page.keyboard.press("+")
    page.keyboard.type("tada")
    page.keyboard.press("Enter")
    expect(ada.row("four").locator(".reaction")).to_have_text("🎉1")
    ada.row("four").focus()
    page.keyboard.press("Enter")
    expect(ada.row("four").get_by_role("toolbar").get_by_role("button").first).to_be_focused()
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Find a room")).to_be_focused()
    page.keyboard.type("general")
    page.keyboard.press("Enter")
    expect(page.locator("#room-name")).to_have_text("general")
    page.keyboard.press("Control+Shift+F")
    expect(page.locator("#search-field")).to_be_focused()
