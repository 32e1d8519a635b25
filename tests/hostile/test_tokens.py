"""Tokens are in no log line, at any level, whichever way they came and whatever became of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hostile.support import Server, frame, said, token


def bad(good: str) -> str:
    """The same token with another signature."""
    head, payload, signature = good.split(".")
    return f"{head}.{payload}.{signature[::-1]}"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_tokens_stay_out_of_the_log(serve: Callable[..., Server], level: str) -> None:
    server = serve(LOG_LEVEL=level)
    used = []
    for way in ("message", "header", "subprotocol", "cookie", "query"):
        for good in (True, False):
            made = token(f"holder-{way}-{good}")
            given = made if good else bad(made)
            used.append(given)
            path, headers = "/ws", []
            if way == "header":
                headers = [("Authorization", f"Bearer {given}")]
            elif way == "subprotocol":
                headers = [("Sec-WebSocket-Protocol", f"hubbub.json, bearer.{given}")]
            elif way == "cookie":
                headers = [("Cookie", f"other=1; hubbub_token={given}")]
            elif way == "query":
                path = f"/ws?token={given}"
            with server.peer(path, headers=headers) as peer:
                assert peer.status == 101
                assert given.encode() not in peer.head
                if way == "message":
                    peer.send(said("auth", token=given))
                if good:
                    peer.expect("auth_success")
                else:
                    assert peer.expect("error")["code"] == "authentication_failed"
                    assert peer.close_code() == 4401
    given = token("elsewhere")
    used.append(given)
    for path in (f"/ws/echo?token={given}", f"/nowhere?token={given}", f"/ws/chat/none?token={given}", f"/{given}"):
        server.peer(path)
    for path in (
        f"/health?token={given}",
        f"/?token={given}&x=1",
        f"/nowhere?a=b&token={given}",
        f"/api/rooms/{given}",
    ):
        server.get(path)
        server.get(path, bearer=given)
    server.request("POST", f"/api/publish?token={given}", b'{"channel":"c","data":1}', bearer=bad(given))
    server.request("POST", "/api/publish", f'{{"token":"{given}"}}'.encode(), bearer=given)
    with server.peer(headers=[("Authorization", f"Bearer {given}"), ("X-Forwarded-For", "1.2.3.4")]) as peer:
        peer.send(said("auth", token=given) + frame(1, f'{{"type":"auth","token":["{given}"]}}'.encode()))
        peer.expect("error")
    with server.peer("") as peer:  # not even HTTP
        peer.send(f"GET /ws?token={given} HTTP/9.9\r\nAuthorization: Bearer {given}\r\nBad\x0b: x\r\n\r\n".encode())
        assert peer.is_over()
    log = server.log()
    for secret in used:
        _, payload, signature = secret.split(".")
        assert payload not in log
        assert signature not in log
    assert server.complaints() == []
