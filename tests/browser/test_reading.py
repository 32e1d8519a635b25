"""Reading at the page: what is unread, rooms too long to be shown, what is found, what was missed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acting import asks, talk, two
from tests.browser.conftest import Server, Somebody

pytestmark = pytest.mark.browser


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
