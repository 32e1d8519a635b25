"""Tokens never appear in a log line."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from uvicorn.logging import AccessFormatter

from hubbub.redaction import RedactTokens, redact
from tests.test_auth import claims, forge

unhurried = given_settings(deadline=None)  # other work on the machine is no failure

# -- redaction (threat table, row token in URL) --------------------------------------------------------------------

JWT = forge(claims())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET /ws?token=abc&x=1 HTTP/1.1", "GET /ws?token=[redacted]&x=1 HTTP/1.1"),
        ("/ws?x=1&TOKEN=abc", "/ws?x=1&TOKEN=[redacted]"),
        ("/api/files/7?expires=9&signature=abc", "/api/files/7?expires=9&signature=[redacted]"),
        ("/ws?access_token=abc#f", "/ws?access_token=[redacted]"),
        ("cookie: hubbub_token=abc; b=2", "cookie: hubbub_token=[redacted]; b=2"),
        ("x=a.b.token=abc", "x=a.b.token=[redacted]"),
        ("next=%2Fws%3Ftoken%3Dabc", "next=%2Fws%3Ftoken%3D[redacted]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("(b'authorization', b'bearer  abc')", "(b'authorization', b'bearer  [redacted]')"),
        ("the bearer of news", "the bearer [redacted] news"),
        ("token=Bearer abc", "token=[redacted] [redacted]"),
        ("Sec-WebSocket-Protocol: hubbub.json, bearer.abc", "Sec-WebSocket-Protocol: hubbub.json, bearer.[redacted]"),
        ('{"type":"auth","token":"abc"}', '{"type":"auth","token":"[redacted]"}'),
        ("{'token': 'abc', 'a': 1}", "{'token': '[redacted]', 'a': 1}"),
        (f"what is {JWT}?", "what is [redacted]?"),
        (f"jwt:{JWT}", "jwt:[redacted]"),
        (f"_{JWT}", "[redacted]"),
        (f"app.example.{JWT}", "[redacted]"),
        (JWT.replace(".", "%2E"), "[redacted]"),
        (JWT.rpartition(".")[0], "[redacted]"),
        (f"{JWT} {JWT}", "[redacted] [redacted]"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "",
        '127.0.0.1:5 - "GET /ws?format=msgpack HTTP/1.1" 200',
        "the token has expired",
        "tokens: 7",
        "api.example.com 1.2.3.4 v1.2.3",
        "honey.money.example.com/eyJ",
        "hubbub.auth.TokenVerifier",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@unhurried
@given(st.text(), st.sampled_from([" ", "/", "?token=", "&", "=", '"', "Bearer ", "bearer."]), st.text())
def test_a_token_is_never_left_and_redaction_is_stable(before: str, between: str, after: str) -> None:
    clean = redact(f"{before}{between}{JWT} {after}")
    assert JWT not in clean
    assert JWT.split(".")[2] not in clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "unit",
    ["a", "a.", "-", ".", "eyJ", "eyJ-", "ey.", "token=", "token", 'token"', "bearer ", "bearer.", " ", "%2e", '":'],
)
def test_redaction_takes_linear_time(unit: str) -> None:
    for text in (unit * (200_000 // len(unit)), f'token"{" " * 200_000}', "bearer" + unit * 50_000):
        started = time.perf_counter()
        redact(text)
        assert time.perf_counter() - started < 1.0


def record(msg: Any, *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("test").makeRecord("test", logging.INFO, __file__, 1, msg, args, None)
    made.__dict__.update(extra)
    return made


def test_the_filter_leaves_other_records_alone() -> None:
    args = ("127.0.0.1:5", "GET", "/ws?format=msgpack", "1.1", 200)
    untouched = record('%s - "%s %s HTTP/%s" %d', *args)
    before = dict(untouched.__dict__)
    assert RedactTokens().filter(untouched)
    assert untouched.__dict__ == before
    assert untouched.args is before["args"]


def test_uvicorns_access_log_keeps_its_shape() -> None:
    access = record('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", f"/sse?a=1&token={JWT}&b=2", "1.1", 200)
    assert RedactTokens().filter(access)
    line = AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False).format(access)
    assert line == "127.0.0.1:5 GET /sse?a=1&token=[redacted]&b=2 HTTP/1.1 200 OK"


def test_uvicorns_websocket_log() -> None:
    accepted = record('%s - "WebSocket %s" [accepted]', "127.0.0.1:5", "/ws?token=opaque")
    assert RedactTokens().filter(accepted)
    assert accepted.getMessage() == '127.0.0.1:5 - "WebSocket /ws?token=[redacted]" [accepted]'
    assert accepted.args == ("127.0.0.1:5", "/ws?token=[redacted]")


class Url:
    def __str__(self) -> str:
        return "/ws?token=opaque"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("opaque")


@pytest.mark.parametrize(
    "leaky",
    [
        record("token=%s", "opaque"),
        record("/ws?token=opaque"),
        record("%s", Url()),
        record("%r", b"GET /ws?token=opaque"),
        record("%(url)s", {"url": "/?token=opaque"}),
        record("%s", {"token": "opaque"}),
        record("%s", [(b"authorization", b"Bearer opaque")]),
        record({"event": "refused", "token": "opaque", "url": "/?token=opaque", "n": 1}),
        record("%s", "a", stack_info="at ?token=opaque"),
        record("%s", "a", exc_text="at ?token=opaque"),
        record("token=%s", "opaque", color_message="token=%s in colour"),
        record("/?token=opaque", color_message="/?token=opaque"),
        record("%s %s", "?token=opaque"),
        record("%d", "?token=opaque"),
        record("?token=opaque %s", Broken()),
    ],
)
def test_no_record_leaks(leaky: logging.LogRecord, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactTokens())
    handler.handle(leaky)
    shown = stream.getvalue() + str(leaky.__dict__) + capsys.readouterr().err
    if leaky.args and not isinstance(leaky.msg, dict):
        shown += leaky.getMessage()
    assert "opaque" not in shown
    assert stream.getvalue().strip()
    assert "Logging error" not in shown


def test_an_event_dict_stays_a_dict() -> None:
    event = record({"event": "refused", "token": "opaque", "url": "/?token=opaque", "n": 1})
    assert RedactTokens().filter(event)
    assert event.msg == {"event": "refused", "token": "[redacted]", "url": "/?token=[redacted]", "n": 1}


def test_tracebacks_are_cleaned_only_where_they_must() -> None:
    for text, kept in (("nothing", True), ("bad url /ws?token=opaque", False)):
        try:
            raise ValueError(text)
        except ValueError:
            made = record("oops")
            made.exc_info = sys.exc_info()
        assert RedactTokens().filter(made)
        assert bool(made.exc_info) is kept
        shown = logging.Formatter().format(made)
        assert "ValueError" in shown
        assert "opaque" not in shown
