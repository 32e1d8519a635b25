"""Logging for ``hubbub serve``: structlog's look over stdlib logging, one line an event, tokens never in it.

An app that embeds Hubbub keeps its own logging; nothing here runs then.
"""

from __future__ import annotations

import logging
import sys

import structlog

from hubbub.redaction import RedactTokens


def configure(level: str, *, pretty: bool) -> None:
    """Send the root logger's records to stderr.

    :param pretty: coloured lines for a person; otherwise a JSON object a line.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _drop_colour,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = _console() if pretty else structlog.processors.JSONRenderer()
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not pretty:
        last.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*last, renderer]))
    handler.addFilter(RedactTokens())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # hubbub.schema says what was migrated
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _console() -> structlog.typing.Processor:
    # plain tracebacks: the default shows local variables, and tokens and texts are among them
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _drop_colour(logger: object, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """uvicorn says everything twice, the second time with terminal colours."""
    event.pop("color_message", None)
    return event
