"""Brokers: where publications are kept, and how they reach every node. Chosen by the settings, imported late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubbub.brokers.memory import MemoryBroker
from hubbub.errors import ConfigurationError
from hubbub.ports import Broker, Clock
from hubbub.settings import Settings

if TYPE_CHECKING:
    from hubbub.brokers.valkey.counters import EngineCounters


def broker_for(settings: Settings, clock: Clock) -> Broker:
    """The broker that the settings ask for: over HUBBUB_VALKEY_URL, or this process's memory.

    :raises ConfigurationError: the URL makes no sense, or the extra is not installed.
    """
    if not settings.valkey_url:
        return MemoryBroker(settings, clock)
    try:
        from hubbub.brokers.valkey.broker import ValkeyBroker
    except ImportError as error:
        raise _not_installed(error) from None
    return ValkeyBroker(settings, clock)


def counters_for(settings: Settings) -> EngineCounters | None:
    """What counts for all nodes in the engine of the settings; None without one, or where limits are not shared.

    :raises ConfigurationError: the URL makes no sense, or the extra is not installed.
    """
    if not settings.valkey_url or not settings.shared_limits:
        return None
    try:
        from hubbub.brokers.valkey.counters import EngineCounters
    except ImportError as error:
        raise _not_installed(error) from None
    return EngineCounters(settings)


def _not_installed(error: ImportError) -> ConfigurationError:
    name = error.name or "a package"
    return ConfigurationError(f"HUBBUB_VALKEY_URL is set, and {name} is not installed: pip install 'hubbub[valkey]'")
