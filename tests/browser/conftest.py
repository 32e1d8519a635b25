"""A real server in its own process, and a real Chromium: people at its page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, expect, sync_playwright

API_KEY = "key-of-the-browser-tests-0001"
SECRET = "a secret of the browser tests, long enough .."
DEADLINE = 8_000.0
"""Milliseconds that any wait on a page may take before it fails."""
BACK = 20_000.0
"""Milliseconds in which a page must have come back to a server that was restarted: some rounds of backoff."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HUBBUB = [sys.executable, "-m", "hubbub.cli"]
WATCH = """
    window.harm = [];
    addEventListener("securitypolicyviolation", (event) => window.harm.push(event.violatedDirective));
"""
"""Runs in every page before its own scripts: what the policy had to stop is noted."""


def chromium() -> str:
    """The path of a Chromium; `scripts/ensure-chromium` makes sure that there is one."""
    for name in (os.environ.get("HUBBUB_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    raise AssertionError("there is no Chromium: run scripts/ensure-chromium, or set HUBBUB_CHROMIUM to its path")


class Server:
    """`hubbub serve` in its own process, always on the same port."""

    def __init__(self, data_dir: Path, *arguments: str, **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.arguments = arguments
        self.url = f"http://127.0.0.1:{self.port}/"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")},
            "HUBBUB_DATA_DIR": str(data_dir),
            "HUBBUB_API_KEYS": API_KEY,
            "HUBBUB_PRESENCE_GRACE": "0.3",
            "HUBBUB_DRAIN_SECONDS": "1",
            "HUBBUB_CLOSE_TIMEOUT": "1",
            **{f"HUBBUB_{name.upper()}": value for name, value in settings.items()},
        }
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return once it takes requests."""
        command = [*HUBBUB, "serve", "--port", str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        stderr = self.process.stderr
        assert stderr is not None
        started = threading.Event()

        def read() -> None:
            for line in stderr:
                self.lines.append(line)
                if "startup complete" in line:
                    started.set()
            started.set()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        assert started.wait(20), "the server did not start in time"
        while self.process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port), 5):
                return  # it says that it has started a moment before it listens
        raise AssertionError("".join(self.lines))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by its process id."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.process = None

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """A call of the server API with the API key."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def notify(self, *user_ids: str, title: str, message: str = "", kind: str = "info", **metadata: Any) -> int:
        """Notify users; returns how many sessions it reached."""
        fields = {"title": title, "message": message, "notification_type": kind, "metadata": metadata}
        return int(self.post("api/notifications/send", user_ids=user_ids, **fields)["delivered"])

    def dev_token(self, user: str) -> str:
        """A token of the development login."""
        return str(self.post("api/dev/login", name=user)["token"])

    def token(self, user: str) -> str:
        """A token as the command line prints it."""
        command = [*HUBBUB, "token", user]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()


def exactly(text: str) -> re.Pattern[str]:
    return re.compile(rf"^{re.escape(text)}$")


class Person:
    """Somebody at the page, in a browser context of their own.

    :ivar console: what the browser complained of; a test fails at its end if there is anything not forgiven.
    :ivar dialogs: alerts and the like, which the page never opens.
    """

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.console: list[str] = []
        self.dialogs: list[str] = []
        self.forgiven: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        page.on("dialog", self._asked)
        page.goto(server.url + "#general")  # wherever the user was last

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.console.append(message.text)

    def _asked(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    # -- parts of the page

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def field(self) -> Locator:
        return self.page.locator("#composer-input")

    @property
    def rows(self) -> Locator:
        return self.page.locator("#messages .row")

    @property
    def people(self) -> Locator:
        return self.page.locator("#people-list .person-name")

    @property
    def toasts(self) -> Locator:
        return self.page.locator(".toast")

    @property
    def replies(self) -> Locator:
        """The rows of the open thread, without the message that began it."""
        return self.page.locator("#replies .row")

    @property
    def dialog(self) -> Locator:
        return self.page.locator("dialog[open]")

    @property
    def notice(self) -> Locator:
        """The calm word above the messages."""
        return self.page.locator("#room-notice")

    def bubble(self, text: str) -> Locator:
        """The bubbles of the room with exactly this text."""
        return self.page.locator("#messages .bubble").filter(has_text=exactly(text))

    def row(self, text: str) -> Locator:
        """The rows of the room that say this."""
        return self.rows.filter(has=self.page.locator(".bubble").filter(has_text=exactly(text)))

    def room_line(self, room_id: str) -> Locator:
        return self.page.locator(f'[data-room="{room_id}"]')

    def unread(self, room_id: str) -> Locator:
        """How much of a room is unread, as its line says."""
        return self.room_line(room_id).locator(".badge.unread")

    # -- what they do

    def log_in(self, name: str) -> Person:
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Come in").click()
        self.is_online()
        return self

    def is_online(self, timeout: float = DEADLINE) -> None:
        expect(self.status).to_have_attribute("data-state", "online", timeout=timeout)
        expect(self.page.locator("#room-sub")).to_contain_text("here")

    def say(self, text: str) -> None:
        """Say something, and see that the server has it."""
        self.field.fill(text)
        self.field.press("Enter")
        expect(self.row(text).last).to_have_attribute("data-state", "sent")

    def make_room(self, name: str, room_id: str = "", **choices: str) -> None:
        """Make a room; ``choices``: `visibility`, `kind`, `topic`."""
        self.page.get_by_role("button", name="New room").click()
        self.page.locator("#new-room-name").fill(name)
        if room_id:
            self.page.locator("#new-room-id").fill(room_id)
        for field, value in choices.items():
            place = self.page.locator(f"#new-room-{field}")
            if field == "topic":
                place.fill(value)
            else:
                place.select_option(value)
        self.page.get_by_role("button", name="Make room").click()
        expect(self.page.locator("#room-name")).to_have_text(name)
        expect(self.page.locator("#room-sub")).to_contain_text("here")

    def enter(self, room_id: str) -> None:
        """Open a room; if somebody has just made it, look for it first."""
        if not self.room_line(room_id).count():
            self.page.get_by_role("button", name="Refresh the list").click()
        self.room_line(room_id).click()
        expect(self.room_line(room_id)).to_have_attribute("aria-current", "page")
        expect(self.page.locator("#room-sub")).to_contain_text("here")

    def leave(self) -> None:
        """Leave the open room for good."""
        self.settings("You")
        self.dialog.get_by_role("button", name="Leave this room").click()
        expect(self.dialog).to_have_count(0)

    def settings(self, tab: str) -> Locator:
        """Open the settings of the room at a tab."""
        self.page.get_by_role("button", name="Room settings").click()
        self.dialog.get_by_role("tab", name=tab).click()
        return self.dialog

    def act(self, row: Locator, *names: str) -> None:
        """Press a button of a message, or an entry of its menu: ``act(row, "More", "Delete…")``."""
        row.hover()
        row.get_by_role("toolbar").get_by_role("button", name=names[0], exact=True).click()
        for name in names[1:]:
            self.page.get_by_role("menu").get_by_role("menuitem", name=name, exact=True).click()

    def look_away(self) -> None:
        """Another window has the focus, as far as the page can tell."""
        self.page.evaluate("document.hasFocus = () => false")

    def look_back(self) -> None:
        self.page.evaluate("delete document.hasFocus; dispatchEvent(new Event('focus'))")

    def forgive(self, pattern: str) -> None:
        """The browser itself writes some things to the console that a test brings about on purpose."""
        self.forgiven.append(pattern)

    def unharmed(self) -> None:
        """No script ran that is not the page's, the policy had nothing to stop, and the console is clean."""
        assert self.dialogs == []
        with contextlib.suppress(Exception):  # a page in the middle of a navigation has no answer
            assert self.page.evaluate("window.harm") == []
        bad = [text for text in self.console if not any(re.search(pattern, text) for pattern in self.forgiven)]
        assert bad == []


Somebody = Callable[..., Person]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # for this module only: while Playwright's loop lives in this thread, async tests could not run their own
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not end it."""
    server = Server(tmp_path_factory.mktemp("hubbub"), rate_limit="0", user_rate_limit="0", max_text_length="500")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Servers of a test's own: `own_server("--no-dev", secret=…)`."""
    started: list[Server] = []

    def start(*arguments: str, **settings: str) -> Server:
        server = Server(tmp_path / "data", *arguments, **settings)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def somebody(browser: Browser, server: Server, own_server: object) -> Iterator[Somebody]:
    """People, each in a context of their own; they are looked at for harm in the end, before any server is stopped."""
    people: list[Person] = []

    def come(name: str = "", at: Server = server, **options: Any) -> Person:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin", **options)
        context.set_default_timeout(DEADLINE)
        context.add_init_script(WATCH)
        person = Person(context.new_page(), at)
        people.append(person)
        return person.log_in(name) if name else person

    expect.set_options(timeout=DEADLINE)
    yield come
    try:
        for person in people:
            person.unharmed()
    finally:
        for person in people:
            person.page.context.close()
