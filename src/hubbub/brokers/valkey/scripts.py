"""The Lua scripts: the engine carries each out as one act, between everything else that it does."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Final


class Script:
    """A script beside this module.

    :ivar text: what is loaded.
    :ivar sha: how it is called (EVALSHA).
    """

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, *parts: str) -> None:
        folder = files(__package__)
        self.name = name
        self.text = "\n".join(folder.joinpath(part).read_text("utf-8") for part in (*parts, name)).encode()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest()


PUBLISH: Final = Script("publish.lua", "meta.lua")
READ: Final = Script("read.lua", "meta.lua")
FENCE: Final = Script("fence.lua")
