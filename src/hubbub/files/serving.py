"""What a file is served as, so that it does no harm: its type, its name, its headers, a part of it."""

from __future__ import annotations

import codecs
import re
from urllib.parse import quote

from hubbub.errors import HubbubError
from hubbub.files.port import HEAD

NAME_LENGTH = 200
UNKNOWN = "application/octet-stream"
_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), types)
    for pattern, *types in (
        (rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (rb"\xff\xd8\xff[\xc0-\xfe]", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBPVP8[ LX]", "image/webp"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"ID3[\x02-\x04][\0-\xfe].[\0-\x7f]{4}", "audio/mpeg"),
        (rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]", "audio/mpeg"),
        (rb"OggS\0[\0-\x07].{20}", "audio/ogg", "video/ogg"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypM4[AB] ", "audio/mp4"),
        (rb"....ftyp(?:iso[m2-9]|mp4[12]|avc1|M4V |dash|MSNV)", "video/mp4", "audio/mp4"),
        (rb"\x1aE\xdf\xa3.{1,60}?B\x82\x84webm", "video/webm", "audio/webm"),
        (rb"%PDF-[12]\.[0-9]", "application/pdf"),
    )
)
"""How a file of each type begins. Of several types, the one that is claimed, or the first."""
SERVED = frozenset(kind for _, types in _MAGIC for kind in types) | {"text/plain"}
INLINE = frozenset(kind for kind in SERVED if kind.startswith(("image/", "audio/", "video/")))
_SAME = {
    "image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "audio/mp3": "audio/mpeg", "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav", "audio/vnd.wave": "audio/wav", "audio/m4a": "audio/mp4", "audio/x-m4a": "audio/mp4",
    "application/ogg": "audio/ogg", "audio/opus": "audio/ogg", "video/x-m4v": "video/mp4",
    "text/markdown": "text/plain", "text/csv": "text/plain", "application/json": "text/plain",
}  # fmt: skip
_ACTIVE = re.compile(r"(?:[sx]?html?|xht|mht(?:ml)?|hta|svgz?|xml|xslt?|rdf|rss|atom|[cm]?jsx?|swf)", re.IGNORECASE)
"""Ends of names that a browser or a desktop takes for markup or programs."""
_MARKUP = re.compile(r"\ufeff?\s*<[a-z!?/]", re.IGNORECASE)
_NOT_TEXT = re.compile(r"[\0-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")


class RangeNotSatisfiable(HubbubError):
    """The range begins behind the file's end: answer 416 with ``Content-Range: bytes */size``."""


def media_type_of(head: bytes, claimed: str, name: str) -> str:
    """What a file is served as: one of :data:`SERVED`, if its bytes are that and its sender does not say otherwise.

    Everything else is ``application/octet-stream``; so is what a browser could run: HTML, SVG, XML, JavaScript.

    :param head: its first 512 bytes, or all of it.
    :param claimed: what its sender says: a media type, perhaps with parameters, or nothing.
    :param name: what its sender calls it.
    """
    if _ACTIVE.fullmatch(clean_name(name).rpartition(".")[2]):
        return UNKNOWN
    types = next((types for pattern, types in _MAGIC if pattern.match(head)), None)
    if types is None:
        types = ["text/plain"] if _is_text(head) else [UNKNOWN]
    kind = plain_type(claimed)
    if kind in ("", UNKNOWN):
        return types[0]
    return kind if kind in types else UNKNOWN


def plain_type(media_type: str) -> str:
    """A media type without parameters, by the name that is used here."""
    kind = media_type.partition(";")[0].strip().lower()
    return _SAME.get(kind, kind)


def _is_text(head: bytes) -> bool:
    try:  # a character may be cut in two where the head ends
        text = codecs.getincrementaldecoder("utf-8")().decode(head[:HEAD], final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return not _NOT_TEXT.search(text) and not _MARKUP.match(text)


_UNWANTED = re.compile(
    r"[/\\\"'`:*?<>|\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Not in names: what paths, quotes and Windows use, controls, what turns the direction of writing, half characters."""
_ENDS = re.compile(r"\A[\s.]+|[\s.]+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def clean_name(name: str) -> str:
    """A name that is only a name: no path, 1 to 200 characters, no dot first, nothing that hides or turns what is shown."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    clean = _ENDS.sub("", _UNWANTED.sub("", base))
    if len(clean) > NAME_LENGTH:
        dot, kind = clean.rpartition(".")[1:]
        tail = dot + kind if len(kind) <= 16 else ""
        clean = _ENDS.sub("", clean[: NAME_LENGTH - len(tail)]) + tail
    return clean or "file"


def serving_headers(media_type: str, name: str, size: int, sha256: str) -> dict[str, str]:
    """The headers of a whole file: shown in place if it is an image, sound or film, saved otherwise, run never.

    :param media_type: from :func:`media_type_of`; one that is not in :data:`SERVED` becomes ``application/octet-stream``.
    :raises ValueError: ``sha256`` is not 64 hex digits.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError("the SHA-256 of a file is 64 hex digits")
    kind = media_type if media_type in SERVED else UNKNOWN
    clean = clean_name(name)
    # RFC 6266 appendix D: no "%" in the plain form, which some read as an escape
    plain = "".join(c if " " <= c <= "~" and c != "%" else "_" for c in clean)
    shown = "inline" if kind in INLINE else "attachment"
    return {
        "Content-Type": "text/plain; charset=utf-8" if kind == "text/plain" else kind,
        "Content-Length": str(size),
        "Content-Disposition": f"{shown}; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, max-age=31536000, immutable",
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
    }


_RANGE = re.compile(r"[ \t]*bytes=[ \t]*([0-9]{0,30})-([0-9]{0,30})[ \t]*", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that a ``Range`` header asks for, as ``(start, end)`` without ``end`` (RFC 9110, 14.1.2 and 14.2).

    None means to send it all: no header, a malformed one, several ranges, or the last bytes of an empty file.

    :raises RangeNotSatisfiable: there is no such byte.
    """
    found = _RANGE.fullmatch(header or "")
    first, last = found.groups() if found else ("", "")
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        if int(last) == 0:
            raise RangeNotSatisfiable("the last 0 bytes are nothing")
        return (size - length, size) if size else None
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable(f"there are only {size} bytes")
    return int(first), min(int(last) + 1, size) if last else size
