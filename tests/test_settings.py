"""Settings: from the environment and from code, and readable sentences where they make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubbub import ConfigurationError, Settings
from hubbub.settings import ChannelOptions, load_settings
from tests.support import SECRET, settings_for


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("HUBBUB_")]:
        monkeypatch.delenv(name)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HUBBUB_SECRET": SECRET,
        "HUBBUB_API_KEYS": " key-number-one-0001 , key-number-two-0002,",
        "HUBBUB_ORIGINS": "https://a.example,https://b.example",
        "HUBBUB_MAX_CONNECTIONS": "0",
        "HUBBUB_RATE_LIMIT": "2.5",
        "HUBBUB_DEV": "yes",
        "HUBBUB_DATA_DIR": "/tmp/x",
        "HUBBUB_DEFAULT_ROOMS": "",
        "HUBBUB_CHANNELS": '{"ticks:*": {"history_size": 1, "slow": "conflate"}}',
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == SECRET
    assert settings.api_keys == ("key-number-one-0001", "key-number-two-0002")
    assert settings.origins == ("https://a.example", "https://b.example")
    assert (settings.max_connections, settings.rate_limit, settings.dev) == (0, 2.5, True)
    assert settings.data_dir == Path("/tmp/x")
    assert settings.default_rooms == ()
    assert settings.channels == {"ticks:*": ChannelOptions(history_size=1, slow="conflate")}
    assert load_settings(rate_limit=7).rate_limit == 7, "code wins over the environment"


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(settings_for()) + str(settings_for())


WRONG: list[tuple[str, str, str]] = [
    ("MAX_CONNECTIONS", "-1", "greater than or equal to 0"),
    ("MAX_CONNECTIONS", "many", "integer"),
    ("RATE_LIMIT", "nan", "finite"),
    ("RATE_LIMIT", "inf", "finite"),
    ("RATE_LIMIT", "-1", "greater"),
    ("AUTH_TIMEOUT", "nan", "finite"),
    ("CLOSE_TIMEOUT", "0", "greater than 0"),
    ("SECRET", "short", "at least 32 bytes"),
    ("API_KEYS", "short", "at least 16 characters"),
    ("DEFAULT_ROOMS", "a b", "no room id"),
    ("METRICS", "maybe", "open"),
    ("LOG_LEVEL", "loud", "debug"),
    ("DEV", "perhaps", "boolean"),
    ("CHANNELS", '{"a": {"slow": "never"}}', "disconnect"),
    ("CHANNELS", '{"a": {"history_siez": 1}}', "Extra inputs"),
    ("CHANNELS", '{"a": {"history_ttl": 0}}', "greater than or equal"),
    ("CHANNELS", "{", "CHANNELS"),
    ("TURN_FRAMES", "0", "greater"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_what_makes_no_sense_is_one_readable_sentence(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"HUBBUB_{name}", value)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    sentence = str(refused.value)
    assert sentence.startswith(f"HUBBUB_{name}")
    assert words.lower() in sentence.lower()
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    assert name not in ("SECRET", "API_KEYS") or value not in sentence.split()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heartbeat_timeout": 0}, "HUBBUB_HEARTBEAT_TIMEOUT must be above 0"),
        ({"rate_burst": 0}, "HUBBUB_RATE_BURST must be at least 1"),
        ({"user_rate_burst": 0}, "HUBBUB_USER_RATE_BURST must be at least 1"),
        ({"control_rate_burst": 0}, "HUBBUB_CONTROL_RATE_BURST must be at least 1"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings_for(**values)


def test_several_faults_are_all_told() -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings_for(rate_limit=-1, max_connections=-1)
    assert "HUBBUB_RATE_LIMIT" in str(refused.value)
    assert "HUBBUB_MAX_CONNECTIONS" in str(refused.value)


def test_unknown_settings_in_code_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="MAX_CONECTIONS"):
        settings_for(max_conections=1)


def test_everything_can_be_switched_off() -> None:
    names = """
        max_connections max_connections_per_user max_connections_per_address max_channels_per_session max_channels
        max_rooms max_rooms_per_user max_message_size max_fragments max_text_length rate_limit user_rate_limit
        abuse_limit control_rate_limit handshake_timeout auth_timeout message_timeout heartbeat_interval
        handler_timeout outbox_seconds tcp_user_timeout
    """
    off = dict.fromkeys(names.split(), 0)
    settings = settings_for(**off)
    assert settings.message_limit == 1 << 30


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
