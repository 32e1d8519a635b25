"""Publishing without a server."""

from __future__ import annotations

from typing import assert_type

from hubbub import AsyncPublisher, ChannelOptions, Position, Publisher


def job() -> None:
    with Publisher("valkey://localhost", prefix="app", channels={"a:*": ChannelOptions()}, timeout=1.0) as hub:
        assert_type(hub.publish("a:1", {"n": 1}, key="k", idempotency_key="once", version=3), Position)
        assert_type(hub.notify(["alice", "bob"], "Title", "Text", "success", {"n": 1}), str)
        assert_type(hub.online("alice"), bool)
        hub.broadcast("Title", "Text", exclude_users={"alice"})
        hub.disconnect("alice", revoke=True, reason="gone")
        hub.notify("alice", "Title", "Text", "loud")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        hub.publish(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def service() -> None:
    async with AsyncPublisher() as hub:
        assert_type(await hub.publish("a:1", 1), Position)
        assert_type(await hub.notify("alice", "Title", "Text"), str)
        assert_type(await hub.online("alice"), bool)
        await hub.disconnect("alice")
