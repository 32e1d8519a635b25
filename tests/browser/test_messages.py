"""What becomes of messages at the page: edits, answers, threads, reactions, mentions, attachments; and with keys alone."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import FilePayload, expect

from tests.browser.acting import asks, png, talk, two
from tests.browser.conftest import Server, Somebody

pytestmark = pytest.mark.browser

PRESSED = ("aria-pressed", "true")


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


# -- keys


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
