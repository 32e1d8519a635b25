"""The pages of one's own app: the echo example's, and the description of its messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Server

pytestmark = pytest.mark.browser


def test_the_echo_page_echoes_and_the_description_reads_well(
    browser: Browser, own_server: Callable[..., Server]
) -> None:
    server = own_server("--app", "examples.echo:app")
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(server.url)
    page.fill("#text", "hello <b>you</b>")
    page.get_by_role("button").click()
    expect(page.locator("li")).to_have_text("Message received: hello <b>you</b>")
    page.goto(server.url + "asyncapi")
    expect(page.get_by_role("heading", name="Echo", exact=False).first).to_be_visible()
    expect(page.locator("#echo, [id*=echo]").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not faults
    page.close()
