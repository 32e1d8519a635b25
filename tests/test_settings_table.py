"""The tables that scripts/settings-table makes read as sentences (that they are up to date: ``test_docs.py``)."""

from __future__ import annotations

from pathlib import Path

TABLES = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()


def test_what_0_means_is_taken_out_with_its_punctuation() -> None:
    cells = [line.rstrip(" |").rpartition("| ")[2] for line in TABLES.splitlines() if line.startswith("| `HUBBUB_")]
    assert len(cells) > 50
    for cell in cells:
        assert not cell.endswith(("..", ";.", ",.", " .")), cell
