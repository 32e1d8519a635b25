"""Brokers: where publications are kept, and how they reach every node. Chosen by the settings, imported late."""

from __future__ import annotations

from hubbub.brokers.memory import MemoryBroker
from hubbub.errors import ConfigurationError
from hubbub.ports import Broker, Clock
from hubbub.settings import Settings


def broker_for(settings: Settings, clock: Clock) -> Broker:
    """The broker that the settings ask for: over HUBBUB_VALKEY_URL, or this process's memory.

    :raises ConfigurationError: the URL makes no sense, or the extra is not installed.
    """
    if not settings.valkey_url:
        return MemoryBroker(settings, clock)
    try:
        from hubbub.brokers.valkey.broker import ValkeyBroker
    except ImportError as error:
        raise ConfigurationError(
            f"HUBBUB_VALKEY_URL is set, and {error.name or 'a package'} is not installed: pip install 'hubbub[valkey]'"
        ) from None
    return ValkeyBroker(settings, clock)
