"""Every limit, timeout and address, named once. Read from the environment (``HUBBUB_…``) or given in code.

Units are seconds, bytes and counts. Where ``0`` makes sense it means *off*; the field says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from hubbub.errors import ConfigurationError
from hubbub.messages import ROOM_ID

Seconds = Annotated[float, Field(ge=0, le=366 * 86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SlowPolicy = Literal["disconnect", "drop_oldest", "conflate"]
CommaList = Annotated[tuple[str, ...], NoDecode]

MIN_SECRET_BYTES = 32


class ChannelOptions(BaseModel):
    """How channels of one pattern behave.

    :param history_size: how many publications the broker keeps (0: no history, no offsets, no recovery).
    :param history_ttl: how long it keeps them, in seconds after their publication.
    :param presence: whether subscribers are listed, and joins and leaves told.
    :param slow: what a reader that cannot keep up gets once its outbox is full: ``disconnect`` (close 4408, come back
        and recover), ``drop_oldest`` (and a ``gap`` message), or ``conflate`` (only the newest publication per key).
    :param publish: who may publish from a client: ``grant`` (the token must allow the channel), ``subscribers``
        (whoever is subscribed), ``anyone`` (any signed-in user), ``server`` (only the server API).
    :param subscribe: who may subscribe: ``grant`` or ``anyone`` (any signed-in user).
    :param offline: what becomes of a publication while the engine (Valkey/Redis) is away: ``refuse`` (the publisher gets
        ``unavailable``) or ``local`` (this node's subscribers get it, and nobody else ever: without an offset).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_size: int = Field(default=1000, ge=0, le=1_000_000)
    history_ttl: float = Field(default=3600.0, ge=0.1, le=366 * 86_400)
    presence: bool = True
    slow: SlowPolicy = "disconnect"
    publish: Literal["grant", "subscribers", "anyone", "server"] = "grant"
    subscribe: Literal["grant", "anyone"] = "grant"
    offline: Literal["refuse", "local"] = "refuse"


class Settings(BaseSettings):
    """All settings. Immutable; the environment variable of a field is ``HUBBUB_`` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="HUBBUB_", frozen=True, extra="forbid", validate_default=True)

    # -- who may come in
    data_dir: Path = Field(default=Path(".hubbub"), description="Where the server keeps its files.")
    dev: bool = Field(
        default=False,
        description="Development mode: login by name, /ws/echo. Set by `hubbub serve` on a loopback host.",
    )
    secret: SecretStr | None = Field(default=None, description="HS256 key for tokens; at least 32 bytes.")
    public_key: str | None = Field(default=None, description="PEM public key, or a path to one: RS*/ES*/EdDSA tokens.")
    algorithms: CommaList = Field(
        default=(),
        description="Allowed algorithms; default HS256 with a secret, the key's own family with a public key.",
    )
    token_audience: str | None = Field(default=None, description="Required `aud` of tokens, if set.")
    token_issuer: str | None = Field(default=None, description="Required `iss` of tokens, if set.")
    token_leeway: Seconds = Field(default=2.0, description="Clock skew allowed when a token's times are checked.")
    cookie_name: str = Field(default="hubbub_token", description="Cookie that may carry the token.")
    api_keys: CommaList = Field(
        default=(), description="Keys of the server API, comma-separated; at least 16 characters each."
    )
    origins: CommaList = Field(
        default=(),
        description="Origins of browsers allowed besides the same origin, comma-separated (https://app.example); * allows all.",
    )

    # -- how many
    max_connections: Count = Field(default=100_000, description="WebSocket connections in all; 0 = off.")
    max_connections_per_user: Count = Field(
        default=50, description="Live sessions of one user, over all nodes; 0 = off."
    )
    max_connections_per_address: Count = Field(
        default=1000, description="Connections from one address (one /64 for IPv6); 0 = off."
    )
    max_channels_per_session: Count = Field(
        default=128, description="Subscriptions and joined rooms of one session; 0 = off."
    )
    max_channels: Count = Field(
        default=1_000_000, description="Channels with history that the memory broker keeps; 0 = off."
    )
    max_rooms: Count = Field(default=100_000, description="Rooms in all, but for direct ones; 0 = off.")
    max_rooms_per_user: Count = Field(default=100, description="Rooms that one user may create; 0 = off.")

    # -- how big
    max_message_size: int = Field(
        default=65_536, ge=0, le=1 << 30, description="Bytes of one incoming message; 0 = 1 GiB."
    )
    max_fragments: Count = Field(
        default=2048, description="Frames that one incoming message may be split into; 0 = off."
    )
    max_text_length: Count = Field(default=10_000, description="Characters of a chat message; 0 = off.")

    # -- how fast
    rate_limit: Rate = Field(default=20.0, description="Messages per second of one session; 0 = off.")
    rate_burst: Count = Field(default=60, description="Messages that a session may send at once before the rate holds.")
    user_rate_limit: Rate = Field(
        default=60.0, description="Messages per second of one user over all sessions; 0 = off."
    )
    user_rate_burst: Count = Field(default=180, description="Burst of one user over all sessions.")
    api_rate_limit: Rate = Field(default=0.0, description="HTTP requests per second of one API key; 0 = off.")
    api_rate_burst: Count = Field(default=200, description="Burst of one API key.")
    abuse_limit: Count = Field(
        default=30,
        description="Refusals for rate or shape within a minute before the session is closed with 4429; 0 = off.",
    )
    control_rate_limit: Rate = Field(default=20.0, description="Control frames per second of one connection; 0 = off.")
    control_rate_burst: Count = Field(default=100, description="Burst of control frames of one connection.")
    turn_bytes: int = Field(default=65_536, ge=1024, description="Bytes parsed per connection and loop turn.")
    turn_frames: int = Field(default=256, ge=1, description="Frames parsed per connection and loop turn.")

    # -- how long
    handshake_timeout: Seconds = Field(default=10.0, description="From connect to a complete request; 0 = off.")
    auth_timeout: Seconds = Field(default=10.0, description="From accept to a good token; 0 = off.")
    message_timeout: Seconds = Field(default=20.0, description="From the first byte of a message to its last; 0 = off.")
    close_timeout: Seconds = Field(default=5.0, description="From our close frame to abort().", gt=0)
    heartbeat_interval: Seconds = Field(default=30.0, description="Silence after which a peer is pinged; 0 = off.")
    heartbeat_timeout: Seconds = Field(default=10.0, description="Further silence after which it is aborted.")
    token_warning: Seconds = Field(default=30.0, description="How long before expiry `token_expiring` is sent.")
    presence_grace: Seconds = Field(default=3.0, description="From a user's last device going to `user_left`.")
    typing_timeout: Seconds = Field(default=5.0, description="How long a typing mark lasts without a new one.")
    drain_seconds: Seconds = Field(default=10.0, description="Over how long connections are closed at shutdown.")
    handler_timeout: Seconds = Field(default=30.0, description="How long a message handler may take; 0 = off.", ge=0)
    request_timeout: Seconds = Field(
        default=10.0,
        description="How long a client may take to answer a `request`, unless the app says otherwise.",
        gt=0,
    )

    # -- how much is kept for a reader
    outbox_bytes: int = Field(default=1 << 20, ge=1024, description="Bytes queued for a reader that does not keep up.")
    outbox_seconds: Seconds = Field(default=10.0, description="Age of the oldest byte queued for it; 0 = off.")
    max_handlers: Count = Field(
        default=10_000,
        description="Handlers of an app that may run at once, over all sessions; beyond: `busy`; 0 = off.",
    )
    max_requests: int = Field(default=16, ge=1, description="Requests to one session that may wait for an answer.")
    request_queue: int = Field(default=64, ge=1, description="Messages of a session that wait for a running handler.")

    # -- channels, rooms, presence
    channels: dict[str, ChannelOptions] = Field(
        default_factory=dict,
        description='Options per channel pattern as JSON: {"ticks:*": {"history_size": 1, "slow": "conflate"}}.',
    )
    history_bytes: int = Field(default=1 << 20, ge=1024, description="Bytes of history kept per channel.")
    history_total_bytes: int = Field(default=256 << 20, ge=1024, description="Bytes of history over all channels.")
    recovery_limit: int = Field(default=1000, ge=1, description="Publications that one recovery may return.")
    presence_limit: int = Field(
        default=200, ge=1, description="Users of a channel above which counts are sent instead of lists and events."
    )
    default_rooms: CommaList = Field(
        default=("general",), description="Rooms that exist from the start, comma-separated."
    )

    # -- many nodes
    valkey_url: str = Field(
        default="",
        repr=False,
        description="The engine that nodes share (Valkey >= 8 or Redis >= 7): `valkey://[user:password@]host:6379/0` (or "
        "`redis://`), `valkeys://` (TLS), `unix:///path`, `valkey+sentinel://host:26379,host:26379/service`, "
        "`valkey+cluster://host:6379,host:6379`. Default: none, this process is alone.",
    )
    valkey_prefix: str = Field(
        default="hubbub", pattern=r"^[^{}\s]{1,64}$", description="What the names of all keys in the engine begin with."
    )
    valkey_timeout: Seconds = Field(
        default=5.0, description="How long a publication may wait for the engine before it is refused.", gt=0, le=300
    )
    valkey_replicas: int = Field(
        default=0,
        ge=0,
        le=10,
        description="So many replicas of the engine must have a publication before it is acknowledged, so that a failover "
        "does not lose it; while fewer have it, publishers get `unavailable` after the timeout. 0 = none is waited for.",
    )
    valkey_queue: int = Field(
        default=20_000, ge=16, description="Publications that may wait for the engine; beyond: `busy`."
    )
    valkey_queue_bytes: int = Field(default=32 << 20, ge=1 << 16, description="Bytes of them.")
    shared_limits: bool = Field(
        default=True,
        description="Whether the limits per user and per API key hold over all nodes together (with an engine).",
    )
    ready_without_engine: bool = Field(
        default=False,
        description="Whether `/health/ready` stays 200 while the engine does not answer, or this node does not hear it.",
    )

    # -- the store
    database_url: str = Field(
        default="",
        repr=False,
        description="Where rooms and messages are kept: `sqlite:///path`, `postgresql://…`, or `sqlite://` (in memory: "
        "they end with the process). Default: `hubbub.db` in the data directory.",
    )
    store_sync: Literal["full", "normal"] = Field(
        default="full",
        description="SQLite: `full` writes each commit to the disk before it is answered; with `normal` a power cut (not a "
        "crash) may take the last ones back.",
    )
    store_queue: int = Field(
        default=10_000, ge=16, description="Changes that may wait for their commit; beyond: `busy`."
    )
    store_queue_bytes: int = Field(default=64 << 20, ge=1 << 20, description="Bytes of them.")
    store_timeout: Seconds = Field(
        default=10.0, description="How long a commit is tried again while the database is locked or away.", gt=0
    )
    store_readers: int = Field(default=2, ge=1, le=64, description="Connections to the database for reading.")
    store_shared: bool = Field(
        default=False,
        description="Processes of this machine share the SQLite file, each of them with this set, and take turns to write. "
        "`hubbub serve --workers` sets it.",
    )

    # -- chat
    default_kind: Literal["group", "large", "broadcast", "live"] = Field(
        default="group",
        description="Kind of rooms that are made without one. `live`: their messages are not stored (private rooms are "
        "`group` then).",
    )
    group_limit: int = Field(
        default=100,
        ge=2,
        description="Members up to which a `group` room has receipts; above it is like a `large` one.",
    )
    catch_up_limit: int = Field(
        default=1000, ge=1, le=10_000, description="Events that one recovery or catch-up of a room may return."
    )
    max_mentions: int = Field(
        default=50, ge=0, description="People that one message may mention; more are not notified."
    )
    max_members: Count = Field(default=100_000, description="Members of one room; 0 = off.")
    max_pins: int = Field(default=100, ge=0, description="Pinned messages of one room.")
    max_reactions: int = Field(default=50, ge=1, description="Different reactions to one message.")
    files: str = Field(
        default="",
        description="Where attachments are kept: a directory, or `s3://bucket/prefix`. Default: `files` in the data directory.",
    )
    max_file_size: Count = Field(default=10 << 20, description="Bytes of one attachment; 0: no attachments.")
    max_files_per_message: int = Field(default=10, ge=0, description="Attachments of one message.")
    user_file_bytes: Count = Field(default=1 << 30, description="Bytes of all attachments of one user; 0 = off.")
    audit_days: Count = Field(default=365, description="Days for which the audit log is kept; 0: for ever.")

    # -- the process
    tcp_user_timeout: Seconds = Field(default=20.0, description="TCP_USER_TIMEOUT: unacknowledged data; 0 = off.")
    gc_freeze: bool = Field(
        default=True, description="`hubbub serve`: freeze the heap after start, raise GC thresholds."
    )
    metrics: Literal["open", "loopback", "key", "off"] = Field(
        default="loopback", description="Who may read /metrics: open, loopback peers, an API key or admin token, off."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`hubbub serve`: the least important records that are logged."
    )

    @field_validator("api_keys", "origins", "default_rooms", "algorithms", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(
                f"must have at least {MIN_SECRET_BYTES} bytes; make one with: "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
            )
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_long_enough(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) < 16 for key in value):
            raise ValueError("every key must have at least 16 characters")
        return value

    @field_validator("default_rooms")
    @classmethod
    def _room_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for room in value:
            if not ROOM_ID.fullmatch(room):
                raise ValueError(f"{room!r} is no room id: 1 to 64 of A-Z a-z 0-9 . _ -")
        return value

    @model_validator(mode="after")
    def _sensible(self) -> Settings:
        if self.heartbeat_interval and not self.heartbeat_timeout:
            raise ValueError("HUBBUB_HEARTBEAT_TIMEOUT must be above 0 while HUBBUB_HEARTBEAT_INTERVAL is on")
        for rate in ("rate_limit", "user_rate_limit", "api_rate_limit"):
            burst = rate.replace("limit", "burst")
            if getattr(self, rate) and not getattr(self, burst):
                raise ValueError(f"HUBBUB_{burst.upper()} must be at least 1 while HUBBUB_{rate.upper()} is on")
        if self.control_rate_limit and not self.control_rate_burst:
            raise ValueError("HUBBUB_CONTROL_RATE_BURST must be at least 1 while HUBBUB_CONTROL_RATE_LIMIT is on")
        return self

    @property
    def database(self) -> str:
        """The URL of the store, with the default filled in."""
        url = self.database_url or f"sqlite:///{self.data_dir / 'hubbub.db'}"
        return f"{url}?shared=1" if self.store_shared and url.startswith("sqlite:///") else url

    @property
    def message_limit(self) -> int:
        """Bytes of one incoming message, with 0 resolved to the hard limit of 1 GiB."""
        return self.max_message_size or 1 << 30


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; ``overrides`` win over the environment.

    :raises ConfigurationError: one readable sentence per setting that makes no sense.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_sentences(error))) from None
    except SettingsError as error:
        name = str(error).partition('"')[2].partition('"')[0]
        raise ConfigurationError(f"HUBBUB_{name.upper()}: this is not valid JSON") from None


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for fault in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"HUBBUB_{path.upper()}: {text}" if path else text)
    return sentences
