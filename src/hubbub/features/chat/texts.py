"""What a message's text may be."""

from __future__ import annotations

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.asks import ChatMessage
from hubbub.settings import Settings


def check_message(message: ChatMessage, settings: Settings) -> None:
    """Refuse what cannot be said. (The others of its turn are written by the same statements.)

    :raises ClientError: ``too_large``, ``invalid_message``.
    """
    check_text(message.message, settings, may_be_empty=bool(message.files))
    if message.client_id is not None and "\x00" in message.client_id:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "there may be no NUL in it - at `$.client_id`")
    if message.files and any("\x00" in each for each in message.files):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "there may be no NUL in it - at `$.files`")


def check_text(text: str, settings: Settings, *, may_be_empty: bool = False) -> None:
    """Refuse a text that is too long, that says nothing, or that no database keeps.

    :param may_be_empty: the message has attachments.
    :raises ClientError: ``too_large``, ``invalid_message``.
    """
    limit = settings.max_text_length
    if limit and len(text) > limit:
        raise ClientError(ErrorCode.TOO_LARGE, f"a message has at most {limit} characters - at `$.message`")
    if "\x00" in text or not (may_be_empty or text.strip()):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a message has text, and no NUL in it - at `$.message`")
    if not text.isascii() and _has_surrogates(text):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a message has no lone surrogates - at `$.message`")


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
