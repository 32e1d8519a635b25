"""Two browsers whose pages are on two workers of one server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import BACK, Server, Somebody
from tests.workers_support import Workers, workers

pytestmark = pytest.mark.browser


class OnWorker(Server):
    """One worker, as a place where people's pages are."""

    def __init__(self, server: Workers, worker: int) -> None:
        self.url = server.url(worker) + "/"


@pytest.mark.slow
def test_two_browsers_on_two_workers(somebody: Somebody, tmp_path: Path) -> None:
    with workers(tmp_path, 2, "--dev") as server:
        ada, bob = (somebody(name, OnWorker(server, worker)) for worker, name in enumerate(("Ada", "Bob")))
        expect(ada.people).to_have_text(["Ada", "Bob"])
        expect(bob.people).to_have_text(["Bob", "Ada"])
        ada.say("Hello from the first worker")
        bob.say("Hello from the second one")
        for person in (ada, bob):
            expect(person.bubble("Hello from the first worker")).to_be_visible()
            expect(person.bubble("Hello from the second one")).to_be_visible()
        bob.field.press_sequentially("I am typ")
        expect(ada.page.locator("#typing")).to_contain_text("Bob")

        ada.forgive(r"WebSocket connection to .* failed")
        server.worker(0).kill()
        bob.field.fill("")
        bob.say("Are you still there?")
        server.until_said("a worker serves in its place")
        ada.is_online(BACK)
        expect(ada.bubble("Are you still there?")).to_have_count(1)
        expect(ada.bubble("Hello from the second one")).to_have_count(1)
        expect(ada.people).to_have_text(["Ada", "Bob"])
        ada.say("I am back")
        expect(bob.bubble("I am back")).to_have_count(1)
        expect(bob.rows.last).not_to_have_class(re.compile("own"))

        bob.page.close()
        expect(ada.people).to_have_text(["Ada"], timeout=BACK)
