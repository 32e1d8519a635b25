"""What people type to find messages: read, made safe for both databases, and found again in a text.

Words, all of which must be there; "several words" next to one another; ``-word``: not there. The last word, if it stands
bare, may be cut short. Case does not matter, nor do accents on Latin letters.

Of what is typed only letters, digits and their marks go on, in quotes: nothing of it is ever syntax to a database. A word
is what stands between spaces and signs. So languages that are written without spaces are found from the beginning of what
stands between two signs, not from within.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final, NamedTuple
from unicodedata import category, normalize

from hubbub.errors import ClientError, ErrorCode

WORDS: Final = 16
"""Words of one query."""
WORD_LENGTH: Final = 200
"""Characters of one word: PostgreSQL refuses 2,047 bytes."""
MARKS: Final = 100
"""Places that are marked in one text."""
LONE: Final = "\u2e80"
"""From here on (CJK) one character is enough for the beginning of a word. Any one letter begins every tenth word."""

_TERMS: Final = re.compile(r'(-?)(?:"([^"]*)(?:"|\Z)|([^\s"]+))')
_QUOTES: Final = str.maketrans("“”„‟", '""""')
_JOINERS: Final = "\u200c\u200d"  # within words of Persian and of India
_ACCENTED: Final = re.compile("([A-Za-z])[\u0300-\u036f]+")
_ACCENTS: Final = "[\u0300-\u036f]*"
_LETTER: Final = r"[^\W_]"
_SIGNS: Final = r"[\W_]+"


class Term(NamedTuple):
    """Words next to one another, with single spaces between them: nothing but letters, digits and their marks.

    :ivar prefix: the last word may go on.
    """

    text: str
    excluded: bool = False
    prefix: bool = False

    @property
    def words(self) -> list[str]:
        return self.text.split(" ")


class Query(NamedTuple):
    """What is looked for: at least one term that is not excluded."""

    terms: tuple[Term, ...]

    def fts5(self) -> str:
        """For SQLite: the right side of a MATCH (sqlite.org/fts5.html, section 3)."""
        wanted = " ".join(f'"{term.text}"{" *" * term.prefix}' for term in self.terms if not term.excluded)
        return wanted + "".join(f' NOT "{term.text}"' for term in self.terms if term.excluded)

    def tsquery(self) -> str:
        """For PostgreSQL's ``to_tsquery``, to which several words in quotes are words next to one another."""
        return " & ".join(f"{'!' * term.excluded}'{term.text}'{':*' * term.prefix}" for term in self.terms)

    def marks(self, text: str) -> list[tuple[int, int]]:
        """Where the terms are in a text, in order: pairs of the first character and the one after the last."""
        folded = _fold(text)
        found: list[tuple[int, int]] = []
        for term in self.terms:
            if not term.excluded:
                found += (match.span() for match in islice(_pattern(term).finditer(folded), MARKS))
        return _joined(sorted(found))[:MARKS]


def parse(typed: str) -> Query:
    """Read a query.

    :raises ClientError: ``invalid_message``: there is no word to look for in it, or it is too long.
    """
    terms: list[Term] = []
    for minus, phrase, word in _TERMS.findall(plain(typed).translate(_QUOTES)):
        if words := _words(phrase or word):
            terms.append(Term(" ".join(words), excluded=bool(minus), prefix=bool(word and not minus)))
    if all(term.excluded for term in terms):
        raise _wrong("the query has no word to look for")
    if sum(len(term.words) for term in terms) > WORDS:
        raise _wrong(f"a query has at most {WORDS} words")
    if any(len(word) > WORD_LENGTH for term in terms for word in term.words):
        raise _wrong(f"a word of a query has at most {WORD_LENGTH} characters")
    end = terms.pop()
    last = end.words[-1]
    whole = [term._replace(prefix=False) for term in terms]
    return Query((*whole, end._replace(prefix=end.prefix and (len(last) > 1 or last >= LONE))))


def plain(text: str) -> str:
    """Without accents on Latin letters, and composed: ``tsv`` in ``tables.py`` and FTS5's tokenizer do the same."""
    return text if text.isascii() else normalize("NFC", _ACCENTED.sub(r"\1", normalize("NFD", text)))


def _wrong(reason: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_MESSAGE, f"{reason} - at `$.query`")


def _words(text: str) -> list[str]:
    """Split at whatever belongs to no word; so nothing that is left is syntax anywhere, or cannot be encoded."""
    spaced = "".join(each if each.isalnum() or each in _JOINERS or category(each)[0] == "M" else " " for each in text)
    return [word for word in spaced.split() if any(map(str.isalnum, word))]


# -- marking


class _Folding(dict[int, int]):
    """Characters as they are compared; one for one, so that places stay the same."""

    def __missing__(self, code: int) -> int:
        folded = plain(chr(code)).lower()
        self[code] = ord(folded) if len(folded) == 1 else code
        return self[code]


_folding: Final = _Folding()


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_folding)


def _pattern(term: Term) -> re.Pattern[str]:
    # accents may also stand for themselves, after their letter; signs, but nothing else, between two words
    words = ["".join(re.escape(each) + _ACCENTS for each in _fold(word)) for word in term.words]
    rest = f"{_LETTER}*" if term.prefix else ""
    return re.compile(f"(?<!{_LETTER}){_SIGNS.join(words)}{rest}(?!{_LETTER})")


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap made one."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
