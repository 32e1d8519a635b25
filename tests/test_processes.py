"""Whether a server was asked for several workers."""

from __future__ import annotations

import pytest

from hubbub.processes import workers


@pytest.mark.parametrize(
    ("words", "concurrency", "count"),
    [
        ("uvicorn main:app --workers 4", "", 4),
        ("uvicorn main:app --workers=4", "", 4),
        ("gunicorn -w 3 main:app", "", 3),
        ("gunicorn -w3 main:app", "", 3),
        ("uvicorn main:app", "2", 2),
        ("uvicorn main:app --workers 1", "2", 1),
        ("uvicorn main:app --reload", "", 1),
        ("uvicorn main:app --workers", "", 1),
        ("uvicorn main:app --workers many", "", 1),
        ("pytest -warnings", "", 1),
    ],
)
def test_how_many_workers_there_are(words: str, concurrency: str, count: int) -> None:
    assert workers(words.split(), {"WEB_CONCURRENCY": concurrency}) == count
