"""Where a token may be, which pages may connect, API keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from hubbub.admission import Token, api_key_matches, check_origins, find_token, origin_allowed
from hubbub.errors import ConfigurationError

unhurried = given_settings(deadline=None)  # other work on the machine is no failure


# -- where a token may be ------------------------------------------------------------------------------------------


def test_the_order_of_the_places() -> None:
    headers = [
        (b"host", b"x"),
        (b"cookie", b"a=1; hubbub_token=from-cookie; b=2"),
        (b"authorization", b"Bearer from-header"),
    ]
    query = b"format=msgpack&token=from-query"
    protocols = ["hubbub.msgpack", "bearer.from-protocol"]
    assert find_token(headers, query, protocols, "hubbub_token") == ("from-header", "header")
    assert find_token(headers[:2], query, protocols, "hubbub_token") == ("from-protocol", "subprotocol")
    assert find_token(headers[:2], query, [], "hubbub_token") == ("from-cookie", "cookie")
    assert find_token(headers[:1], query, [], "hubbub_token") == ("from-query", "query")
    assert find_token(headers[:1], b"format=msgpack", ["hubbub.json"], "hubbub_token") is None


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearerx", b"\xff\xff"])
def test_what_is_no_bearer_token_leaves_the_next_place(value: bytes) -> None:
    assert find_token([(b"authorization", value)], b"token=q", [], "c") == ("q", "query")


def test_spellings() -> None:
    assert find_token([(b"authorization", b"bearer   x.y.z ")], b"", [], "c") == ("x.y.z", "header")
    assert find_token([(b"cookie", b'c="quoted"')], b"", [], "c") == ("quoted", "cookie")
    assert find_token([(b"cookie", b"ac=1; xc=2"), (b"cookie", b"c=3; c=4")], b"", [], "c") == ("3", "cookie")
    assert find_token([(b"cookie", b"c")], b"", [], "c") is None
    assert find_token([(b"cookie", b";;=;\xff=\xff")], b"", [], "c") is None
    assert find_token([], b"token=a%2Eb&token=c", [], "c") == ("a.b", "query")
    assert find_token([], b"xtoken=a&token=&token=%ff", [], "c") == ("\ufffd", "query")
    assert find_token([], b"", ["bearer.", "Bearer.x", "bearer.x.y.z"], "c") == ("x.y.z", "subprotocol")


def test_a_found_token_does_not_show_itself() -> None:
    token = Token("eyJsecret", "query")
    assert "eyJ" not in f"{token!r} {token}"


# -- origins (threat table, row CSWSH) -----------------------------------------------------------------------------

LIST = ("https://app.example", "http://localhost:5173", "capacitor://localhost", "HTTPS://Upper.example:443")


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "good"),
    [
        # not a browser
        (None, b"app.example", "wss", True),
        (None, None, "ws", True),
        # the same origin
        (b"https://chat.example", b"chat.example", "wss", True),
        (b"http://chat.example", b"chat.example", "ws", True),
        (b"http://chat.example:8000", b"chat.example:8000", "ws", True),
        (b"https://chat.example", b"chat.example:443", "wss", True),
        (b"https://chat.example:443", b"chat.example", "wss", True),
        (b"http://chat.example", b"chat.example:80", "ws", True),
        (b"HTTPS://Chat.Example", b"CHAT.example", "wss", True),
        (b"http://127.0.0.1:8000", b"127.0.0.1:8000", "http", True),
        (b"http://[::1]:8000", b"[::1]:8000", "ws", True),
        # behind a TLS proxy: the server sees ws
        (b"https://chat.example", b"chat.example", "ws", True),
        (b"https://chat.example:8443", b"chat.example:8443", "ws", True),
        (b"https://chat.example", b"chat.example:80", "ws", False),
        (b"https://chat.example", b"chat.example:8000", "ws", False),
        # anybody on the network can write an http page
        (b"http://chat.example", b"chat.example", "wss", False),
        (b"http://chat.example:443", b"chat.example:443", "wss", False),
        (b"http://app.example", b"chat.example", "wss", False),
        # listed
        (b"https://app.example", b"chat.example", "wss", True),
        (b"https://app.example:443", b"chat.example", "wss", True),
        (b"https://APP.example", b"chat.example", "wss", True),
        (b"https://app.example", None, "ftp", True),
        (b"http://localhost:5173", b"localhost:8000", "ws", True),
        (b"capacitor://localhost", b"chat.example", "wss", True),
        (b"https://upper.example", b"chat.example", "wss", True),
        # foreign, and what looks a little like home
        (b"https://evil.example", b"chat.example", "wss", False),
        (b"null", b"chat.example", "wss", False),
        (b"null", b"null", "ws", False),
        (b"https://evil-app.example", b"chat.example", "wss", False),
        (b"https://evilapp.example", b"chat.example", "wss", False),
        (b"https://app.example.evil.com", b"chat.example", "wss", False),
        (b"https://sub.app.example", b"chat.example", "wss", False),
        (b"https://app.example:8443", b"chat.example", "wss", False),
        (b"https://chat.example:444", b"chat.example", "wss", False),
        (b"http://chat.example:8001", b"chat.example:8000", "ws", False),
        (b"http://localhost:8000", b"127.0.0.1:8000", "ws", False),
        (b"http://localhost", b"chat.example", "wss", False),
        (b"https://app.example@evil.com", b"chat.example", "wss", False),
        (b"https://evil.com/https://app.example", b"chat.example", "wss", False),
        (b"https://evil.com#https://app.example", b"chat.example", "wss", False),
        (b"https://chat.example.", b"chat.example", "wss", False),
        # malformed
        (b"", b"", "ws", False),
        (b"https://", b"", "wss", False),
        (b"chat.example", b"chat.example", "wss", False),
        (b"//chat.example", b"chat.example", "wss", False),
        (b"https://chat.example/", b"chat.example", "wss", False),
        (b"https://app.example/", b"chat.example", "wss", False),
        (b"https://chat.example ", b"chat.example", "wss", False),
        (b"https://chat.example\n", b"chat.example", "wss", False),
        (b"https://app.example, https://evil.example", b"chat.example", "wss", False),
        (b"https://app.example https://evil.example", b"chat.example", "wss", False),
        (b"https://chat.example:", b"chat.example", "wss", False),
        (b"https://chat.example:x", b"chat.example:x", "wss", False),
        (b"https://chat.example:999999", b"chat.example:999999", "wss", False),
        (b"https://\xff\xfe", b"\xff\xfe", "wss", False),
        (b"file://", b"", "ws", False),
        (b"https://a/b?c=", b"a/b?c=", "wss", False),
        (b"https://chat.example", None, "wss", False),
        (b"https://chat.example", b"", "wss", False),
        (b"https://chat.example", b"chat.example", "", False),
    ],
)
def test_origins(origin: bytes | None, host: bytes | None, scheme: str, good: bool) -> None:
    assert origin_allowed(origin, host, scheme, LIST) is good


def test_a_star_allows_all_and_null_cannot_be_listed() -> None:
    for origin in (b"https://evil.example", b"null", b"\xff"):
        assert origin_allowed(origin, b"chat.example", "wss", ("*",))
    assert not origin_allowed(b"null", b"chat.example", "wss", ("null",))
    assert not origin_allowed(b"https://app.example", b"chat.example", "wss", ())


@pytest.mark.parametrize(
    "entry", ["null", "app.example", "https://", "https://app.example/", "https://*.example", "**"]
)
def test_origins_that_could_never_match_stop_the_start(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="HUBBUB_ORIGINS"):
        check_origins((*LIST, "*", entry))


@unhurried
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_bytes_raise(origin: bytes, host: bytes) -> None:
    assert origin_allowed(origin, host, "wss", LIST) in (True, False)


# -- API keys ------------------------------------------------------------------------------------------------------


def test_api_keys() -> None:
    keys = ("first-key-of-some-length", "zweiter-schlüssel-läng")
    assert all(api_key_matches(key, keys) for key in keys)
    for wrong in (
        "",
        "first-key-of-some-lengt",
        "first-key-of-some-length ",
        "FIRST-KEY-OF-SOME-LENGTH",
        "\ud800",
        "é",
    ):
        assert not api_key_matches(wrong, keys)
    assert not api_key_matches("first-key-of-some-length", ())
    assert not api_key_matches("", ("",))
