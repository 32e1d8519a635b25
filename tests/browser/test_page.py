"""The page at `/`, used by people: two browsers, one server, and what may go wrong between them."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.acting import frames_of, talk
from tests.browser.conftest import BACK, SECRET, Server, Somebody

pytestmark = pytest.mark.browser

REFUSED = r"WebSocket connection to .* failed"
"""What Chromium writes to the console when a server is not there."""


def test_two_people_talk_and_a_backend_notifies_both(somebody: Somebody, server: Server) -> None:
    ada, bob = somebody("Ada"), somebody("Bob")
    expect(ada.people).to_have_text(["Ada", "Bob"])
    expect(bob.people).to_have_text(["Bob", "Ada"])

    ada.say("Hello Bob")
    expect(bob.bubble("Hello Bob")).to_be_visible()
    expect(bob.rows.last).not_to_have_class(re.compile("own"))
    expect(ada.rows.last).to_have_class(re.compile("own"))
    bob.say("Hello Ada\nhow are you?")
    expect(ada.bubble("Hello Ada\nhow are you?")).to_be_visible()

    assert server.notify("Ada", "Bob", title="Deployed", message="Build 7 is live", kind="success", build=7) == 2
    for person in (ada, bob):
        expect(person.toasts).to_contain_text(["Deployed"])
        expect(person.toasts.first).to_contain_text("Success")
        expect(person.page.get_by_role("button", name="Notifications, 1 unread")).to_be_visible()

    reached = server.post("api/notifications/broadcast", title="To all", message="", notification_type="warning")
    assert reached["delivered"] >= 2
    expect(ada.toasts).to_have_count(2)
    ada.page.get_by_role("button", name="Notifications, 2 unread").click()
    listed = ada.page.locator("#notice-list .notice")
    expect(listed).to_contain_text(["To all", "Deployed"])
    expect(listed.first).to_contain_text("Warning")
    expect(listed.first).to_contain_text("to everyone")
    expect(ada.page.locator("#bell-count")).to_be_hidden()
    ada.page.keyboard.press("Escape")
    expect(ada.page.locator("#notices")).to_be_hidden()


def test_presence_and_typing(somebody: Somebody) -> None:
    ada, bob = somebody("Ada"), somebody("Bob")
    ada.make_room("Presence", "presence")
    bob.enter("presence")
    expect(ada.people).to_have_text(["Ada", "Bob"])
    expect(ada.page.locator("#room-sub")).to_have_text("2 people are here")

    bob.field.press_sequentially("Well")
    expect(ada.page.locator("#typing")).to_have_class(re.compile(r"\bon\b"))
    expect(ada.page.locator("#typing")).to_have_text("Bob is typing")
    expect(bob.page.locator("#typing")).not_to_have_class(re.compile(r"\bon\b"))
    bob.field.press("Enter")
    expect(ada.bubble("Well")).to_be_visible()
    expect(ada.page.locator("#typing")).not_to_have_class(re.compile(r"\bon\b"))

    bob.leave()
    expect(ada.people).to_have_text(["Ada"])
    expect(ada.page.locator("#room-sub")).to_have_text("Only you are here")


def test_rooms_unread_and_drafts(somebody: Somebody) -> None:
    ada, bob = somebody("Ada"), somebody("Bob")
    bob.make_room("Tea & Cake")
    expect(bob.room_line("tea-cake")).to_have_attribute("aria-current", "page")
    bob.field.fill("half a thought")
    ada.enter("tea-cake")
    bob.enter("general")
    expect(bob.field).to_have_value("")

    ada.say("one")
    ada.say("two")
    expect(bob.unread("tea-cake")).to_have_text("2")
    expect(bob.page).to_have_title(re.compile(r"^\(\d+\)"))
    bob.room_line("tea-cake").click()
    expect(bob.unread("tea-cake")).to_have_count(0)
    expect(bob.field).to_have_value("half a thought")
    expect(bob.page.locator(".newmark")).to_have_count(1)
    expect(bob.rows.filter(has=bob.page.locator(".newmark"))).to_contain_text("one")

    bob.page.get_by_role("button", name="New room").click()
    bob.page.locator("#new-room-name").fill("Tea cake")
    bob.page.get_by_role("button", name="Make room").click()
    expect(bob.page.locator("#new-room-error")).to_contain_text("there is a room", ignore_case=True)
    bob.page.keyboard.press("Escape")
    expect(bob.dialog).to_have_count(0)


def test_a_room_opens_at_the_first_unread_message(somebody: Somebody, server: Server) -> None:
    bob = somebody("Bob")
    bob.make_room("Busy", "busy")
    bob.say("seen")
    bob.enter("general")
    talk(server, "Chatterbox", "busy", [f"number {n}" for n in range(1, 41)])
    expect(bob.unread("busy")).to_have_text("40")
    for _ in range(2):  # and after a reload as well
        bob.room_line("busy").click()
        expect(bob.bubble("number 1")).to_be_in_viewport()
        expect(bob.page.locator(".newmark")).to_be_in_viewport()
        expect(bob.bubble("number 40")).not_to_be_in_viewport()
        expect(bob.unread("busy")).to_have_text("40")
        bob.enter("general")
        bob.page.reload()
        bob.is_online()
    bob.room_line("busy").click()
    bob.page.get_by_role("button", name="Jump to newest").click()
    expect(bob.bubble("number 40")).to_be_in_viewport()
    expect(bob.unread("busy")).to_have_count(0)


def test_a_refused_message_can_be_sent_again_or_discarded(somebody: Somebody) -> None:
    ada = somebody()
    sent = frames_of(ada.page)
    ada.log_in("Ada")
    ada.make_room("Short", "short")
    ada.field.fill("this is too long for this server " * 20)
    ada.field.press("Enter")
    row = ada.rows.last
    expect(row).to_have_attribute("data-state", "failed")
    expect(row).to_contain_text("Not sent: A message has at most 500 characters.")
    row.get_by_role("button", name="Try again").click()
    expect(row).to_have_attribute("data-state", "failed")
    ids = [frame["client_id"] for frame in sent if frame["type"] == "chat_message"]
    assert len(ids) == 2
    assert ids[0] == ids[1]
    row.get_by_role("button", name="Discard").click()
    expect(ada.rows).to_have_count(0)


def test_a_lost_connection_misses_nothing(somebody: Somebody, server: Server) -> None:
    bob = somebody("Bob")
    bob.make_room("Lossy", "lossy")
    sockets: list[WebSocketRoute] = []
    blocked = False

    def route(socket: WebSocketRoute) -> None:
        if blocked:
            socket.close(code=4410)
        else:
            sockets.append(socket)
            socket.connect_to_server()

    ada = somebody()
    ada.page.route_web_socket(re.compile(r"/ws$"), route)
    ada.page.reload()
    ada.log_in("Ada")
    ada.enter("lossy")
    bob.say("before")
    expect(ada.bubble("before")).to_be_visible()

    blocked = True
    sockets[-1].close(code=4410)
    expect(ada.status).to_have_attribute("data-state", re.compile("waiting|connecting"))
    expect(ada.status).to_contain_text("Reconnecting in")
    ada.field.fill("written while away")
    ada.field.press("Enter")
    expect(ada.rows.last).to_have_attribute("data-state", "pending")
    bob.say("one")
    bob.say("two")
    server.notify("Ada", title="While you were away")
    blocked = False
    ada.is_online(BACK)
    expect(ada.bubble("written while away")).to_be_visible()
    expect(ada.rows.last).to_have_attribute("data-state", "sent")
    said = ["before", "one", "two", "written while away"]
    for person in (ada, bob):
        expect(person.page.locator("#messages .bubble")).to_have_text(said)
    expect(ada.notice).to_be_hidden()
    expect(ada.toasts).to_contain_text(["While you were away"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_page_comes_back_after_a_restart_and_all_is_still_there(
    somebody: Somebody, own_server: Callable[..., Server], how: signal.Signals
) -> None:
    server = own_server()
    ada, bob = somebody("Ada", at=server), somebody("Bob", at=server)
    for person in (ada, bob):
        person.forgive(REFUSED)
    bob.make_room("Long-lived", "long-lived", topic="It stays")
    bob.say("kept over the restart")
    bob.enter("general")
    ada.say("before the restart")
    expect(bob.bubble("before the restart")).to_be_visible()

    server.stop(how)
    for person in (ada, bob):
        expect(person.status).not_to_have_attribute("data-state", "online")
        expect(person.page.locator("#room-sub")).to_have_text("Not connected")
    ada.field.fill("sent when it is back")
    ada.field.press("Enter")
    expect(ada.rows.last).to_contain_text("Waits for the connection")
    server.start()
    bob.page.evaluate("dispatchEvent(new Event('online'))")  # he need not wait, and she comes back by herself
    for person in (ada, bob):
        person.is_online(BACK)
        expect(person.notice).to_be_hidden()  # nothing was missed
        expect(person.bubble("before the restart")).to_have_count(1)
        expect(person.bubble("sent when it is back")).to_have_count(1)
        expect(person.people).to_have_count(2)
    expect(ada.rows.last).to_have_attribute("data-state", "sent")
    bob.say("and on we go")
    expect(ada.bubble("and on we go")).to_be_visible()

    bob.enter("long-lived")
    expect(bob.page.locator("#room-topic")).to_have_text("It stays")
    expect(bob.bubble("kept over the restart")).to_be_visible()
    eve = somebody("Eve", at=server)  # who was not there before sees what was said
    expect(eve.bubble("before the restart")).to_be_visible()
    expect(eve.page.locator("#messages .bubble")).to_have_text(
        ["before the restart", "sent when it is back", "and on we go"]
    )


def test_a_reload_stays_signed_in_and_signing_out_does_not(somebody: Somebody, server: Server) -> None:
    ada = somebody("Ada")
    ada.make_room("Second", "second")
    ada.say("kept")
    ada.page.reload()
    ada.is_online()
    expect(ada.page.locator("#me-name")).to_have_text("Ada")
    expect(ada.page.locator("#room-name")).to_have_text("Second")
    expect(ada.room_line("general")).to_be_visible()
    expect(ada.bubble("kept")).to_have_count(1)

    server.notify("Ada", title="Unread over a reload")
    expect(ada.toasts).to_have_count(1)
    ada.page.reload()
    ada.is_online()
    expect(ada.page.locator("#bell-count")).to_have_text("1")
    expect(ada.toasts).to_have_count(0)

    ada.page.get_by_role("button", name="Sign out").click()
    expect(ada.page.get_by_label("Your name")).to_be_focused()
    expect(ada.page.locator("#login")).to_contain_text("Signed out")
    assert ada.page.evaluate("sessionStorage.length") == 0
    ada.page.reload()
    expect(ada.page.get_by_label("Your name")).to_be_visible()


def test_a_revoked_user_is_asked_to_sign_in(somebody: Somebody, server: Server) -> None:
    mallory = somebody("Mallory")
    server.post("api/sessions/disconnect", user_id="Mallory", revoke=True)
    expect(mallory.page.locator("#login-error")).to_contain_text("You were signed out: the token was revoked")
    assert mallory.page.evaluate("sessionStorage.length") == 0


def test_a_phone_is_enough(somebody: Somebody) -> None:
    bob = somebody("Bob")
    phone = somebody(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"
    assert phone.page.evaluate(fits)
    phone.log_in("Ada")
    assert phone.page.evaluate(fits)
    phone.say("from a phone " + "with_a_very_long_word" * 8)
    assert phone.page.evaluate(fits)
    expect(bob.rows.last).to_contain_text("from a phone")

    expect(phone.page.locator("#sidebar")).to_be_hidden()
    phone.page.get_by_role("button", name="Rooms").tap()
    expect(phone.page.locator("#sidebar")).to_be_visible()
    phone.make_room("Pocket", "pocket")
    expect(phone.page.locator("#sidebar")).to_be_hidden()
    bob.enter("pocket")
    phone.page.locator("#people-button").tap()
    expect(phone.page.locator("#people")).to_be_visible()
    expect(phone.people).to_have_text(["Ada", "Bob"])
    phone.page.get_by_role("button", name="Close the list of people").tap()
    expect(phone.page.locator("#people")).to_be_hidden()
    phone.page.locator("#bell").tap()
    expect(phone.page.locator("#notices")).to_be_in_viewport(ratio=1)
    assert phone.page.evaluate(fits)
    phone.page.get_by_role("button", name="Close the notifications").tap()
    phone.field.fill("Send has a button")
    phone.page.get_by_role("button", name="Send").tap()
    expect(bob.bubble("Send has a button")).to_be_visible()


def test_the_keyboard_is_enough(somebody: Somebody, server: Server) -> None:
    ada = somebody()
    page = ada.page
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_have_text("What shall we call you?")
    page.keyboard.type("Ada")
    page.keyboard.press("Enter")
    ada.is_online()
    expect(ada.field).to_be_focused()

    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    expect(ada.bubble("two\nlines")).to_be_visible()
    expect(ada.field).to_be_focused()

    go_to(page, "new-room")
    page.keyboard.press("Enter")
    expect(page.locator("#new-room-name")).to_be_focused()
    page.keyboard.press("Escape")
    expect(ada.dialog).to_have_count(0)
    expect(page.locator("#new-room")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("Keys only")
    page.keyboard.press("Enter")
    expect(page.locator("#room-name")).to_have_text("Keys only")
    expect(ada.field).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator("#room-name")).to_have_text("general")

    server.notify("Ada", title="Closed by Escape", kind="error")
    expect(ada.toasts).to_have_count(1)
    page.keyboard.press("Escape")
    expect(ada.toasts).to_have_count(0)
    go_to(page, "bell")
    page.keyboard.press("Space")
    expect(page.locator("#notice-list")).to_contain_text("Closed by Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#notices")).to_be_hidden()
    expect(page.locator("#bell")).to_be_focused()
    go_to(page, "about-button")
    page.keyboard.press("Enter")
    expect(page.locator("#try-talk")).to_contain_text(server.url.replace("http", "ws") + "ws")
    page.keyboard.press("Escape")
    go_to(page, "sign-out")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your name")).to_be_focused()


def go_to(page: Page, element_id: str) -> None:
    """Press Tab until the element has the focus; every stop on the way shows that it has it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const { activeElement: element, body } = document;
                const style = getComputedStyle(element);
                const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                return { id: element.id, shown: element === body || ring || element.id === "composer-input" };
            }"""
        )
        assert stop["shown"], f"{stop['id']} has the focus, and nobody can see it"
        if stop["id"] == element_id:
            return
    raise AssertionError(f"Tab never came to {element_id}")


def test_without_development_mode_a_token_is_asked_for(somebody: Somebody, own_server: Callable[..., Server]) -> None:
    server = own_server("--no-dev", secret=SECRET)
    ada = somebody(at=server)
    ada.forgive(r"404 \(Not Found\)")  # that is how the page learns of it
    field = ada.page.get_by_label("Token")
    expect(field).to_be_focused()
    expect(ada.page.get_by_label("Your name")).to_be_hidden()
    expect(ada.page.locator("#login-help")).to_contain_text("hubbub token USER")
    field.fill("not.a.token")
    field.press("Enter")
    expect(ada.page.locator("#login-error")).to_contain_text("You were signed out")
    field.fill(server.token("Ada"))
    field.press("Enter")
    ada.is_online()
    expect(ada.page.locator("#me-name")).to_have_text("Ada")
    ada.say("with a token")
    ada.page.reload()
    ada.is_online()
    expect(ada.bubble("with a token")).to_be_visible()


def test_two_devices_of_one_user_and_reduced_motion(somebody: Somebody) -> None:
    desk, phone = somebody("Ada"), somebody("Ada", reduced_motion="reduce", color_scheme="dark")
    desk.make_room("Devices", "devices")
    phone.enter("devices")
    desk.say("on both")
    expect(phone.row("on both")).to_have_class(re.compile("own"))
    expect(phone.people).to_have_text(["Ada"])
    desk.field.press_sequentially("my own typing")
    phone.say("is not told to me")
    expect(desk.bubble("is not told to me")).to_be_visible()
    expect(phone.page.locator("#typing")).not_to_have_class(re.compile(r"\bon\b"))
    assert phone.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 26)"


def test_the_address_names_the_room(somebody: Somebody, server: Server) -> None:
    ada = somebody("Ada")
    ada.make_room("Linked", "linked")
    expect(ada.page).to_have_url(server.url + "#linked")
    bob = somebody()
    bob.page.goto(server.url + "#linked")
    bob.log_in("Bob")
    expect(bob.page.locator("#room-name")).to_have_text("Linked")
    expect(ada.people).to_have_text(["Ada", "Bob"])
