"""Hubbub: a real-time server and toolkit for FastAPI.

>>> from fastapi import FastAPI
>>> from hubbub import Hubbub
>>> app = FastAPI()
>>> hub = Hubbub(app, secret="at least thirty-two bytes of your own")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hubbub.app import Hubbub as Hubbub
    from hubbub.app import create_app as create_app
    from hubbub.auth import Identity as Identity
    from hubbub.auth import issue_token as issue_token
    from hubbub.errors import ClientError as ClientError
    from hubbub.errors import CloseCode as CloseCode
    from hubbub.errors import ConfigurationError as ConfigurationError
    from hubbub.errors import ErrorCode as ErrorCode
    from hubbub.errors import HubbubError as HubbubError
    from hubbub.errors import RequestFailed as RequestFailed
    from hubbub.errors import SessionClosed as SessionClosed
    from hubbub.messages import Position as Position
    from hubbub.publisher import AsyncPublisher as AsyncPublisher
    from hubbub.publisher import Publisher as Publisher
    from hubbub.settings import ChannelOptions as ChannelOptions
    from hubbub.settings import Settings as Settings
    from hubbub.toolkit.router import HubRouter as HubRouter
    from hubbub.toolkit.session import Session as Session
    from hubbub.toolkit.topics import Topic as Topic

_WHERE = {
    "Hubbub": "hubbub.app",
    "HubRouter": "hubbub.toolkit.router",
    "Session": "hubbub.toolkit.session",
    "Topic": "hubbub.toolkit.topics",
    "create_app": "hubbub.app",
    "Identity": "hubbub.auth",
    "issue_token": "hubbub.auth",
    "ClientError": "hubbub.errors",
    "CloseCode": "hubbub.errors",
    "ConfigurationError": "hubbub.errors",
    "ErrorCode": "hubbub.errors",
    "HubbubError": "hubbub.errors",
    "RequestFailed": "hubbub.errors",
    "SessionClosed": "hubbub.errors",
    "Position": "hubbub.messages",
    "Publisher": "hubbub.publisher",
    "AsyncPublisher": "hubbub.publisher",
    "ChannelOptions": "hubbub.settings",
    "Settings": "hubbub.settings",
}
__all__ = [  # noqa: RUF022  # as _WHERE has them
    "Hubbub",
    "HubRouter",
    "Session",
    "Topic",
    "create_app",
    "Identity",
    "issue_token",
    "ClientError",
    "CloseCode",
    "ConfigurationError",
    "ErrorCode",
    "HubbubError",
    "RequestFailed",
    "SessionClosed",
    "Position",
    "Publisher",
    "AsyncPublisher",
    "ChannelOptions",
    "Settings",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'hubbub' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
