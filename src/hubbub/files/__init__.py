"""Where the bytes of attachments are kept, and how they are served so that they do no harm.

A key names one file and is used once; :func:`new_key` makes one. Here are keys and bytes only: whose file it is, and who
may read it, is the business of who keeps the key.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hubbub.errors import ConfigurationError
from hubbub.files.disk import DiskFiles
from hubbub.files.objects import ObjectFiles
from hubbub.files.port import FileMissing, Files, StoredFile, new_key
from hubbub.files.serving import RangeNotSatisfiable, clean_name, media_type_of, parse_range, serving_headers

__all__ = [
    "DiskFiles", "FileMissing", "Files", "ObjectFiles", "RangeNotSatisfiable", "StoredFile",
    "clean_name", "files_from", "media_type_of", "new_key", "parse_range", "serving_headers",
]  # fmt: skip


def files_from(place: str, data_dir: Path) -> Files:
    """The files at ``place``: a directory, ``file://…``, or a bucket (``s3://bucket/prefix``, ``gs://``, ``az://``).

    Nothing means ``files`` below the data directory; ``memory://`` is for tests.

    :raises ConfigurationError: the place is none of these, or obstore is not installed.
    """
    if not place:
        return DiskFiles(data_dir / "files")
    if "://" not in place:
        return DiskFiles(Path(place).expanduser())
    url = urlsplit(place)
    if url.scheme in ("s3", "gs", "az", "memory"):
        return ObjectFiles(place)
    if url.scheme != "file" or url.netloc not in ("", "localhost") or url.path in ("", "/"):
        raise ConfigurationError(
            f"files cannot be kept in {url.scheme}://…: set HUBBUB_FILES to a directory, file:///with/three/slashes, "
            "or a bucket: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
        )
    return DiskFiles(Path(url2pathname(url.path)))
