"""Who is it, and what may they do: tokens, and the grants in them.

Sans-IO: ``now`` (unix seconds) is an argument, nothing here reads a clock. PyJWT does the cryptography, with keys that
are prepared once; the compact serialisation (RFC 7515 section 7.1) and the claims (RFC 7519 section 4.1) are checked
here, because PyJWT prepares the key again and reads the clock on every call.
"""

from __future__ import annotations

import math
import re
import secrets
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
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
    """Turns tokens into identities, and remembers which were revoked (as far as this process knows).

    Every allowed algorithm is bound to its own key at the start, so a token's ``alg`` can only pick among them: a
    public key is never used as an HMAC secret (RFC 8725 sections 2.1 and 3.1).

    :raises ConfigurationError: keys, algorithms or origins in the settings make no sense; the sentence says which.
    """

    def __init__(self, settings: Settings) -> None:
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

    def revoke_token(self, jti: str, now: float, until: float) -> bool:
        """Refuse the token with this ``jti``; forget so ``leeway`` after ``until``, its ``exp`` (unix seconds).

        Returns whether it was good until now.
        """
        if until + self._leeway <= now:
            return False
        known = self._revoked_tokens.get(jti)
        self._revoked_tokens[jti] = until if known is None else max(until, known)
        return known is None

    def revoke_user(self, user_id: str, now: float) -> bool:
        """Refuse every token of this user issued before ``now``, or without ``iat``, for :data:`REVOCATION_MEMORY`.

        Returns whether some of them may have been good until now.
        """
        known = self._revoked_users.get(user_id)
        if known is not None and known >= now:
            return False
        self._revoked_users[user_id] = now
        return True

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the token behind an identity, or its user, has been revoked since it was issued."""
        if identity.token_id is not None and identity.token_id in self._revoked_tokens:
            return True
        since = self._revoked_users.get(identity.user_id)
        return since is not None and (identity.issued is None or identity.issued < since)

    def revoked(self, now: float) -> Iterator[tuple[str | None, str | None, float, float]]:
        """What is revoked at ``now``: (user, ``jti``, since, until) of each, in unix seconds; user or ``jti`` is None."""
        for jti, until in list(self._revoked_tokens.items()):
            if until > now:
                yield None, jti, 0.0, until
        for user, since in list(self._revoked_users.items()):
            if since + REVOCATION_MEMORY > now:
                yield user, None, since, since + REVOCATION_MEMORY

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
