"""Links to attachments that need no token, for an hour: for pages whose images cannot send one. Sans-IO."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Final

from hubbub.errors import ClientError, ErrorCode
from hubbub.settings import Settings

LIFETIME: Final = 3600
"""Seconds for which a link is good."""
PURPOSE: Final = b"hubbub: links to files, 1"


class Links:
    """Signs links with HMAC-SHA256, by a key made from the server's secret.

    :ivar offered: False where the server has no secret, only a public key.
    """

    def __init__(self, settings: Settings) -> None:
        secret = settings.secret.get_secret_value().encode() if settings.secret is not None else None
        # not the secret itself: what is signed here must never pass for a token
        self._key = hmac.digest(secret, PURPOSE, "sha256") if secret is not None else None

    @property
    def offered(self) -> bool:
        return self._key is not None

    def sign(self, file_id: str, now: float) -> tuple[str, int]:
        """The query of a link, and when it ends (unix seconds).

        :raises ClientError: ``unavailable``.
        """
        expires = int(now) + LIFETIME
        return f"expires={expires}&signature={self._signature(file_id, expires)}", expires

    def check(self, file_id: str, expires: str, signature: str, now: float) -> None:
        """:raises ClientError: ``forbidden``: it is no link of this server's, or its time is over."""
        until = int(expires) if expires.isascii() and expires.isdigit() and len(expires) <= 12 else 0
        good = hmac.compare_digest(self._signature(file_id, until).encode(), signature.encode("utf-8", "replace"))
        if not good or now >= until:
            raise ClientError(ErrorCode.FORBIDDEN, "this link is not good any more: ask for a new one")

    def _signature(self, file_id: str, expires: int) -> str:
        if self._key is None:
            text = "links are signed with HUBBUB_SECRET, and this server has none: fetch the file with a token"
            raise ClientError(ErrorCode.UNAVAILABLE, text)
        signed = hmac.digest(self._key, f"{file_id}\n{expires}".encode("utf-8", "replace"), "sha256")
        return urlsafe_b64encode(signed).rstrip(b"=").decode()


__all__ = ["LIFETIME", "Links"]
