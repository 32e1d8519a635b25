"""Who is it, and what may they do: tokens, grants, origins and API keys; and keeping tokens out of the logs.

Sans-IO: ``now`` (unix seconds) is an argument, nothing here reads a clock. PyJWT does the cryptography, with keys that
are prepared once; the compact serialisation (RFC 7515 section 7.1) and the claims (RFC 7519 section 4.1) are checked
here, because PyJWT prepares the key again and reads the clock on every call.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import secrets
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn
from urllib.parse import unquote
from weakref import WeakValueDictionary

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm

from hubbub.errors import AuthenticationFailed, ConfigurationError
from hubbub.patterns import Patterns
from hubbub.settings import Settings

MAX_TOKEN_LENGTH: Final = 8192
MAX_USER_ID_LENGTH: Final = 128
MAX_INFO_BYTES: Final = 1024
MAX_TIME: Final = 253_402_300_799.0
"""The last second of the year 9999: an ``exp`` beyond it is clamped, so that it can always be written as a date."""
REVOCATION_MEMORY: Final = 30 * 86_400.0
"""Seconds for which the revocation of a user is remembered. Tokens should not live longer."""
RESERVED: Final = ("user:", "room:", "doc:")
"""Channels of the features: no pattern of a token opens them, only their feature does, or ``admin``."""

REASONS: Final = frozenset(
    {"malformed", "signature", "algorithm", "expired", "not_yet", "audience", "issuer", "claims", "revoked"}
)
"""Every ``reason`` of an :class:`AuthenticationFailed` from here: labels of a metric."""


# -- grants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Grants:
    """What a token allows. Patterns are exact names, or have ``*`` for any characters.

    :param subscribe: channels that may be read, besides those open to anyone.
    :param publish: channels that may be written to from a client.
    :param rooms: rooms that may be joined; None: every public room.
    :param admin: everything, and the server API.
    """

    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    rooms: tuple[str, ...] | None = None
    admin: bool = False
    _subscribe: Patterns = field(init=False, repr=False, compare=False)
    _publish: Patterns = field(init=False, repr=False, compare=False)
    _rooms: Patterns | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_subscribe", Patterns(self.subscribe))
        object.__setattr__(self, "_publish", Patterns(self.publish))
        object.__setattr__(self, "_rooms", None if self.rooms is None else Patterns(self.rooms))

    def may_subscribe(self, channel: str) -> bool:
        """Whether the token opens this channel for reading. Never a reserved one (:data:`RESERVED`), unless admin."""
        return self.admin or (not channel.startswith(RESERVED) and self._subscribe(channel))

    def may_publish(self, channel: str) -> bool:
        """Whether the token opens this channel for writing. Never a reserved one (:data:`RESERVED`), unless admin."""
        return self.admin or (not channel.startswith(RESERVED) and self._publish(channel))

    def may_join(self, room_id: str) -> bool:
        """Whether the token lets its user into this room, as far as tokens decide (the room may be private)."""
        return self.admin or self._rooms is None or self._rooms(room_id)


DEFAULT_GRANTS: Final = Grants()


class Identity(msgspec.Struct, frozen=True, gc=False):
    """A signed-in user, as one token says. Small: thousands live at a time, and equal grants are one object.

    :param user_id: ``sub``: 1 to 128 characters, no control characters.
    :param expires: ``exp`` in unix seconds, without the leeway that :meth:`TokenVerifier.verify` adds to it.
    :param token_id: ``jti``.
    :param grants: what the token allows.
    :param info: what presence shows of the user: at most 1 KiB as JSON.
    :param issued: ``iat`` in unix seconds.
    """

    user_id: str
    expires: float
    token_id: str | None = None
    grants: Grants = DEFAULT_GRANTS
    info: dict[str, Any] | None = None
    issued: float | None = None


# -- tokens --------------------------------------------------------------------------------------------------------


class _Header(msgspec.Struct):
    """Only these are looked at: jwk, jku, kid, x5u and x5c never choose a key (RFC 8725 section 3.10)."""

    alg: str
    crit: object = None
    b64: object = True


class _GrantClaim(msgspec.Struct, forbid_unknown_fields=True):
    # unknown fields are refused: a misspelt restriction ("room" for "rooms") would otherwise open more than was meant
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    rooms: tuple[str, ...] | None = None
    admin: bool = False
    info: dict[str, Any] | None = None


class _Claims(msgspec.Struct):
    sub: str
    exp: float
    iat: float | None = None
    nbf: float | None = None
    jti: str | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    hubbub: _GrantClaim | msgspec.UnsetType = msgspec.UNSET


_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)")
_NOT_IN_USER_ID = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CANONICAL_END = {0: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}
_HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512")
_PSS = ("PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}
_ASYMMETRIC = (*_RSA, *_PSS, *_CURVES.values(), "EdDSA")

_decode_header = msgspec.json.Decoder(_Header).decode
_decode_claims = msgspec.json.Decoder(_Claims).decode


class TokenVerifier:
    """Turns tokens into identities, and remembers which were revoked (in this process).

    Every allowed algorithm is bound to its own key at the start, so a token's ``alg`` can only pick among them: a
    public key is never used as an HMAC secret (RFC 8725 sections 2.1 and 3.1).

    :raises ConfigurationError: keys, algorithms or origins in the settings make no sense; the sentence says which.
    """

    def __init__(self, settings: Settings) -> None:
        check_origins(settings.origins)
        self._keys = _prepare_keys(settings)
        self._audience = settings.token_audience
        self._issuer = settings.token_issuer
        self._leeway = settings.token_leeway
        self._interned: WeakValueDictionary[tuple[Any, ...], Grants] = WeakValueDictionary()
        self._revoked_tokens: dict[str, float] = {}
        self._revoked_users: dict[str, float] = {}

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that tokens may be signed with."""
        return tuple(self._keys)

    def verify(self, token: str, now: float) -> Identity:
        """Check a token at ``now`` (unix seconds).

        :raises AuthenticationFailed: with one of :data:`REASONS`. No other exception, whatever the token is.
        """
        claims = self._signed_claims(token)
        self._check_times(claims, now)
        self._check_parties(claims)
        if not valid_user_id(claims.sub):
            _fail(
                "claims", f"the token's `sub` must be 1 to {MAX_USER_ID_LENGTH} characters without control characters"
            )
        grants, info = DEFAULT_GRANTS, None
        if claims.hubbub is not msgspec.UNSET:
            grants, info = self._grants(claims.hubbub), claims.hubbub.info
            if info is not None and not _info_fits(info):
                _fail("claims", f"the token's `hubbub.info` must be at most {MAX_INFO_BYTES} bytes of plain JSON")
        identity = Identity(claims.sub, min(claims.exp, MAX_TIME), claims.jti, grants, info, claims.iat)
        if self.is_revoked(identity):
            _fail("revoked", "the token was revoked")
        return identity

    def _signed_claims(self, token: str) -> _Claims:
        if len(token) > MAX_TOKEN_LENGTH or (parts := _COMPACT.fullmatch(token)) is None:
            _fail("malformed", "the token is no signed JWT in compact form, or is longer than 8 KiB")
        try:
            header = _decode_header(_base64url(parts[1]))
            payload, signature = _base64url(parts[2]), _base64url(parts[3])
        except (ValueError, RecursionError):
            _fail("malformed", "the token is no signed JWT in compact form")
        algorithm, key = self._keys.get(header.alg, (None, None))
        if algorithm is None:
            _fail("algorithm", "the token is signed with an algorithm that is not allowed here")
        if header.crit is not None or header.b64 is not True:
            _fail("algorithm", "the token requires an extension that is not understood here")  # RFC 7515 section 4.1.11
        try:
            good = algorithm.verify(token[: parts.end(2)].encode("ascii"), key, signature)
        except (jwt.PyJWTError, ValueError, TypeError):
            good = False
        if not good:
            _fail("signature", "the token's signature is wrong")
        try:
            return _decode_claims(payload)
        except (ValueError, RecursionError) as error:
            _fail("claims", f"the token's claims are wrong: {error}"[:200])

    def _check_times(self, claims: _Claims, now: float) -> None:
        if now >= claims.exp + self._leeway:
            _fail("expired", "the token has expired")
        latest = now + self._leeway
        if (claims.nbf is not None and claims.nbf > latest) or (claims.iat is not None and claims.iat > latest):
            _fail("not_yet", "the token is not valid yet")

    def _check_parties(self, claims: _Claims) -> None:
        if self._issuer is not None and claims.iss != self._issuer:
            _fail("issuer", "the token is from another issuer")
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        # a token that names its audience is not for those who are not in it (RFC 7519 section 4.1.3): so also where
        # no audience is configured, or any application's token from a shared issuer would open this server
        if (audience or self._audience is not None) and self._audience not in (audience or ()):
            _fail("audience", "the token is for another audience")

    def _grants(self, claim: _GrantClaim) -> Grants:
        fields = (claim.subscribe, claim.publish, claim.rooms, claim.admin)
        if fields == ((), (), None, False):
            return DEFAULT_GRANTS
        grants = self._interned.get(fields)
        if grants is None:
            self._interned[fields] = grants = Grants(*fields)
        return grants

    # -- revocation

    def revoke_token(self, jti: str, now: float, until: float) -> None:
        """Refuse the token with this ``jti``; forget so ``leeway`` after ``until``, its ``exp`` (unix seconds)."""
        if until + self._leeway > now:
            self._revoked_tokens[jti] = max(until, self._revoked_tokens.get(jti, until))

    def revoke_user(self, user_id: str, now: float) -> None:
        """Refuse every token of this user issued before ``now``, or without ``iat``, for :data:`REVOCATION_MEMORY`."""
        self._revoked_users[user_id] = max(now, self._revoked_users.get(user_id, now))

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the token behind an identity, or its user, has been revoked since it was issued."""
        if identity.token_id is not None and identity.token_id in self._revoked_tokens:
            return True
        since = self._revoked_users.get(identity.user_id)
        return since is not None and (identity.issued is None or identity.issued < since)

    def sweep(self, now: float) -> None:
        """Forget revocations that can no longer matter. O(revocations): call it about once a minute."""
        for jti in [jti for jti, until in self._revoked_tokens.items() if until + self._leeway <= now]:
            del self._revoked_tokens[jti]
        for user in [user for user, since in self._revoked_users.items() if since + REVOCATION_MEMORY <= now]:
            del self._revoked_users[user]


def issue_token(
    settings: Settings,
    user_id: str,
    *,
    now: float,
    ttl: float,
    admin: bool = False,
    subscribe: Sequence[str] = (),
    publish: Sequence[str] = (),
    rooms: Sequence[str] | None = None,
    info: dict[str, Any] | None = None,
    jti: str | None = None,
) -> str:
    """Make an HS256 token with ``settings.secret``, for the settings' audience and issuer.

    :param now: unix seconds, becomes ``iat``; not rounded, so that :meth:`TokenVerifier.revoke_user` is exact.
    :param ttl: seconds from ``now`` to ``exp``; above 0.
    :raises ConfigurationError: there is no secret, or HS256 is not among the allowed algorithms.
    :raises ValueError: the token would be refused when it comes back.
    """
    if settings.secret is None or "HS256" not in (settings.algorithms or ("HS256",)):
        raise ConfigurationError("tokens can be issued only with HUBBUB_SECRET set and HS256 allowed")
    if not valid_user_id(user_id):
        raise ValueError(f"a user id has 1 to {MAX_USER_ID_LENGTH} characters, none of them control characters")
    if not (math.isfinite(now) and math.isfinite(ttl) and ttl > 0):
        raise ValueError("the time to live must be above 0 seconds")
    if info is not None and not _info_fits(info):
        raise ValueError(f"info must be at most {MAX_INFO_BYTES} bytes of plain JSON")
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + ttl, "jti": jti or secrets.token_urlsafe(16)}
    grants = {"subscribe": subscribe, "publish": publish, "admin": admin, "info": info}
    grant_claim: dict[str, Any] = {name: value for name, value in grants.items() if value}
    if rooms is not None:
        grant_claim["rooms"] = rooms  # an empty list is not the same as none: it allows no room
    msgspec.convert(grant_claim, _GrantClaim)  # refuses, say, a string where a list of patterns belongs
    optional = {"aud": settings.token_audience, "iss": settings.token_issuer, "hubbub": grant_claim or None}
    claims.update({name: value for name, value in optional.items() if value is not None})
    token = jwt.PyJWS().encode(msgspec.json.encode(claims), settings.secret.get_secret_value().encode(), "HS256")
    if len(token) > MAX_TOKEN_LENGTH:
        raise ValueError("the grants make the token longer than 8 KiB")
    return token


def valid_user_id(user_id: str) -> bool:
    """1 to 128 characters, without control characters, line separators and surrogates."""
    return 0 < len(user_id) <= MAX_USER_ID_LENGTH and _NOT_IN_USER_ID.search(user_id) is None


def _fail(reason: str, message: str) -> NoReturn:
    # `from None`: the cause's text or locals may hold the token
    raise AuthenticationFailed(message, reason=reason) from None


def _base64url(segment: str) -> bytes:
    """RFC 7515 section 2: no padding, and only the one canonical spelling of the last character."""
    end = _CANONICAL_END.get(len(segment) % 4)
    if end is None or (end and segment[-1] not in end):
        raise ValueError("not base64url")
    return urlsafe_b64decode(segment + "==")


def _info_fits(info: dict[str, Any]) -> bool:
    try:
        msgspec.msgpack.encode(info)  # what JSON can say and MessagePack cannot would fail later, at others' expense
        return len(msgspec.json.encode(info)) <= MAX_INFO_BYTES
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False


def _prepare_keys(settings: Settings) -> dict[str, tuple[Algorithm, Any]]:
    if settings.secret is None and not settings.public_key:
        raise ConfigurationError("tokens cannot be checked: set HUBBUB_SECRET (HS256) or HUBBUB_PUBLIC_KEY (PEM)")
    secret = settings.secret.get_secret_value().encode() if settings.secret is not None else None
    public_key = _load_public_key(settings.public_key) if settings.public_key else None
    family = _family(public_key) if public_key is not None else ()
    names = settings.algorithms or (("HS256",) if secret is not None else ()) + family
    if public_key is not None and not any(name in _ASYMMETRIC for name in names):
        raise ConfigurationError(
            "HUBBUB_PUBLIC_KEY is set but HUBBUB_ALGORITHMS has none that uses it (a public key is no HS* secret); "
            f"list {' or '.join(family)}, or drop the key"
        )
    usable = (*_HMAC, *family, *(_PSS if family == _RSA else ()))
    return {name: _prepare_key(name, secret if name in _HMAC else public_key, usable) for name in names}


def _prepare_key(name: str, key: Any, usable: tuple[str, ...]) -> tuple[Algorithm, Any]:
    if name not in _HMAC and name not in _ASYMMETRIC:
        raise ConfigurationError(f"HUBBUB_ALGORITHMS: {name!r} is not one of {', '.join((*_HMAC, *_ASYMMETRIC))}")
    source = "HUBBUB_SECRET" if name in _HMAC else "HUBBUB_PUBLIC_KEY"
    if key is None:
        raise ConfigurationError(f"HUBBUB_ALGORITHMS: {name} needs {source}, which is not set")
    algorithm = jwt.get_algorithm_by_name(name)
    try:
        if name not in usable:
            raise TypeError
        prepared = algorithm.prepare_key(key)
    except (jwt.PyJWTError, TypeError, ValueError):
        message = f"HUBBUB_ALGORITHMS: the key in {source} is of another kind than {name} takes"
        raise ConfigurationError(message) from None
    if fault := algorithm.check_key_length(prepared):
        raise ConfigurationError(f"{source} is too weak for {name}: {fault}")
    return algorithm, prepared


def _load_public_key(value: str) -> Any:
    # the value is never quoted: it might be a private key in the wrong place
    pem = value.replace("\\n", "\n")
    if "-----BEGIN" not in pem:
        try:
            pem = Path(value).read_text("ascii")
        except (OSError, ValueError):
            raise ConfigurationError("HUBBUB_PUBLIC_KEY is neither PEM text nor the path of a readable file") from None
    if "PRIVATE KEY" in pem:
        raise ConfigurationError(
            "HUBBUB_PUBLIC_KEY holds a private key; give the server only the public one: "
            "openssl pkey -in key.pem -pubout"
        )
    try:
        return load_pem_public_key(pem.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("HUBBUB_PUBLIC_KEY is no PEM public key (-----BEGIN PUBLIC KEY-----)") from None


def _family(key: Any) -> tuple[str, ...]:
    if isinstance(key, RSAPublicKey):
        return _RSA
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return ("EdDSA",)
    raise ConfigurationError("HUBBUB_PUBLIC_KEY is of a kind that no JWT algorithm uses; use RSA, P-256 or Ed25519")


# -- the handshake: where a token may be, which pages and which keys may come in -----------------------------------


class Token(NamedTuple):
    """A token as it came, unverified, and where from. Its ``repr`` does not show it."""

    value: str
    source: Literal["header", "subprotocol", "cookie", "query"]

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


def find_token(
    headers: Iterable[tuple[bytes, bytes]], query_string: bytes, subprotocols: Iterable[str], cookie_name: str
) -> Token | None:
    """The token of an opening request, or None. Empty ones do not count.

    In this order: ``Authorization: Bearer …``, subprotocol ``bearer.…`` (never to be echoed in the reply), the
    cookie, ``?token=…``.

    :param headers: names in lower case, as ASGI has them.
    """
    cookie = ""
    wanted = cookie_name.encode("latin-1", "replace")
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer" and credentials.strip():
                return Token(credentials.strip(), "header")
        elif name == b"cookie" and not cookie:
            cookie = _cookie(value, wanted)
    for subprotocol in subprotocols:
        if subprotocol.startswith("bearer.") and len(subprotocol) > 7:
            return Token(subprotocol[7:], "subprotocol")
    if cookie:
        return Token(cookie, "cookie")
    for part in query_string.split(b"&"):
        if part.startswith(b"token=") and len(part) > 6:
            return Token(unquote(part[6:].decode("latin-1")), "query")
    return None


def _cookie(header: bytes, wanted: bytes) -> str:
    for pair in header.split(b";"):
        name, _, value = pair.partition(b"=")
        if name.strip() == wanted:
            return value.strip().strip(b'"').decode("latin-1")
    return ""


_AUTHORITY = r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?"
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rf"(https?)://{_AUTHORITY}")
_OTHER_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9_.:\[\]-]+")
_DEFAULT_PORT = {"http": 80, "https": 443}


def origin_allowed(origin: bytes | None, host: bytes | None, scheme: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of this origin may connect (against cross-site WebSocket hijacking, RFC 6455 section 10.2).

    Allowed: no ``Origin`` (not a browser: cookies of a victim are out of its reach), a listed origin, ``*``, and the
    same origin: host and port equal to the ``Host`` header's, where a port left out is the default one of the
    *origin's* scheme. An https page may reach a ``ws`` server, since behind a TLS proxy the server sees only ``ws``;
    it must be the same host and port still, and whoever serves https there owns the name. An http page may not reach
    a ``wss`` server: anybody on the network can put his script into such a page. (Where a proxy ends TLS, this last
    rule needs its ``X-Forwarded-Proto`` to be trusted, so that ``scheme`` is right.) ``null`` only passes with ``*``.

    :param scheme: of the request: ``ws``, ``wss``, ``http`` or ``https``. With any other only the list counts.
    """
    if origin is None or "*" in allowed:
        return True
    text = origin.decode("latin-1").lower()
    if _normal_origin(text) in _origins(allowed):
        return True
    page = _ORIGIN.fullmatch(text)
    place = _HOST.fullmatch(host.decode("latin-1").lower()) if host is not None else None
    if page is None or place is None or scheme not in ("ws", "wss", "http", "https"):
        return False
    if page[1] == "http" and scheme in ("wss", "https"):
        return False
    default = _DEFAULT_PORT[page[1]]
    return (page[2], int(page[3] or default)) == (place[1], int(place[2] or default))


def check_origins(allowed: Iterable[str]) -> None:
    """Refuse origins that could never match anything a browser sends.

    :raises ConfigurationError: names the first that is not ``scheme://host[:port]``.
    """
    for entry in allowed:
        if entry != "*" and _normal_origin(entry.lower()) is None:
            raise ConfigurationError(f"HUBBUB_ORIGINS: {entry!r} is no origin, write for instance https://app.example")


def _normal_origin(text: str) -> str | None:
    """An origin with its default port left out, as browsers write it (RFC 6454 section 6.1); None if it is not one."""
    if (match := _ORIGIN.fullmatch(text)) is None:
        return text if _OTHER_ORIGIN.fullmatch(text) else None  # an app's own scheme: capacitor://localhost
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{int(port)}" if port and int(port) != _DEFAULT_PORT[scheme] else "")


@lru_cache(maxsize=64)
def _origins(allowed: tuple[str, ...]) -> frozenset[str]:
    return frozenset(filter(None, (_normal_origin(entry.lower()) for entry in allowed)))


def api_key_matches(key: str, keys: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``keys``. Takes as long for a near miss as for a far one, and looks at every key."""
    given = key.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(given, known.encode("utf-8", "surrogatepass")) for known in keys]
    return bool(given) and any(matches)


# -- keeping tokens out of the logs --------------------------------------------------------------------------------

_HIDDEN = "[redacted]"
# possessive, and anchored where a match cannot fail after having looked far: the time is linear in the text
_BEARER = re.compile(r"(\bbearer(?: ++|\.|%20))[a-z0-9._~+/=%-]++", re.IGNORECASE)
_NAMED = re.compile(r"""(token(?:=|%3d|["']\s*+:\s*+["']))[^&\s"'<>;]++""", re.IGNORECASE)
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
