"""Why the engine cannot be used, in words for whoever has set it up."""

from __future__ import annotations

import ssl
from typing import Final

from hubbub.brokers.valkey.address import Address
from hubbub.brokers.valkey.wire import WireError

HOPELESS: Final = frozenset({"NOAUTH", "WRONGPASS", "NOPROTO", "NOPERM", "NODB", "UNSUPPORTED"})
"""Refusals that say that something is set up wrongly: trying again does not help."""
_HINTS: Final = {
    "NOAUTH": "it wants a password: valkey://user:password@host:6379 (valkey://:password@… without a user)",
    "WRONGPASS": "the user or the password is wrong, or the user is disabled",
    "NODB": "it has no such database (its `databases`): the number after the last / is too high",
    "NOPROTO": "it does not speak RESP3: Valkey 8, Redis 7 or newer are needed, and no proxy that speaks less",
}


def why(error: BaseException, address: Address | None) -> str:
    """A reason, beginning with where the engine was looked for. No password is in it."""
    at = f"the engine at {address}" if address is not None else "the engine"
    code = error.code if isinstance(error, WireError) else ""
    if hint := _HINTS.get(code):
        return f"{at}: {hint}"
    tls = address is not None and address.tls is not None
    if isinstance(error, ssl.SSLError):
        return f"{at}: {error} (does it speak TLS there? valkey:// is without)"
    if isinstance(error, TimeoutError) and not str(error):
        other = "valkeys:// is with TLS, and valkey:// without" if tls or (address and address.path is None) else ""
        return f"{at}: no answer in time{other and f' (is this the right port? {other})'}"
    return f"{at}: {error or type(error).__name__}"
