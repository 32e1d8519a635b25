"""Keeping tokens out of the logs."""

from __future__ import annotations

import logging
import re

_HIDDEN = "[redacted]"
# possessive, and anchored where a match cannot fail after having looked far: the time is linear in the text
_BEARER = re.compile(r"(\bbearer(?: ++|\.|%20))[a-z0-9._~+/=%-]++", re.IGNORECASE)
_NAMED = re.compile(r"""((?:token|signature)(?:=|%3d|["']\s*+:\s*+["']))[^&\s"'<>;]++""", re.IGNORECASE)
_DOTTED = re.compile(r"(?<![a-z0-9_-])[a-z0-9_-]++(?:(?:\.|%2e)[a-z0-9_-]*+)++", re.IGNORECASE)
_JWT_HEAD = re.compile(r"(?:ey[JAI]|ew[o0k])[A-Za-z0-9_-]{12}")  # base64 of a brace and what JSON may have after it


def redact(text: str) -> str:
    """``text`` without tokens: values of ``token=`` and ``"token":``, ``Bearer …``, ``bearer.…``, and whatever looks
    like a JWT. Rather a word too many (``the bearer of``); other text stays as it is. Linear time, and idempotent.
    """
    text = _NAMED.sub(rf"\1{_HIDDEN}", _BEARER.sub(rf"\1{_HIDDEN}", text))
    return _DOTTED.sub(lambda match: _HIDDEN if _JWT_HEAD.search(match[0]) else match[0], text)


class RedactTokens(logging.Filter):
    """Takes tokens out of log records; add it to *handlers* (a logger's filter does not see its children's records).

    A record without one is not touched. Arguments are cleaned one by one, since uvicorn's access formatter needs all
    five, and so are the values of an event dict (structlog); only where that is not enough (``"token=%s"``) is the
    message put together here.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            self._clean_message(record)
        except Exception:  # wrong format string, broken __str__: logging would print the raw arguments to stderr
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            record.msg, record.args = f"log record that cannot be formatted: {redact(template)}", ()
        for name in ("exc_text", "stack_info", "color_message"):
            text = getattr(record, name, None)
            if isinstance(text, str) and (clean := redact(text)) != text:
                setattr(record, name, clean)
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := redact(trace)) != trace:
                record.exc_text, record.exc_info = clean, None
        return True

    def _clean_message(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if redact(message) == message:
            return
        if isinstance(record.msg, dict):
            record.msg = {name: _clean_value(name, value) for name, value in record.msg.items()}
            return
        if isinstance(record.args, tuple):
            record.args = tuple(_clean_value("", value) for value in record.args)
        elif record.args:
            record.args = {name: _clean_value(name, value) for name, value in record.args.items()}
        message = record.getMessage()
        if redact(message) != message:
            record.msg, record.args = redact(message), ()
            if hasattr(record, "color_message"):  # uvicorn's coloured twin of msg, for the same arguments
                record.color_message = record.msg


def _clean_value(name: object, value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    if name == "token":
        return _HIDDEN
    return clean if (clean := redact(text)) != text else value
