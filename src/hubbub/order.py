"""Where a node is in a channel: what to do with a publication that is not simply the next one.

Sans-IO. While a channel's publications come in their order (nearly always), all that there is of this is the offset
of the next one. An :class:`Order` is made when one comes twice, early or not at all, and forgotten when all is in order
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from hubbub.messages import Position
from hubbub.stream import Publication, Recovery, related

NEVER: Final = -1
"""In place of the next offset: no publication has this one, so each is looked at."""
EARLY: Final = 1024
"""Early publications that are held for a channel; history has the others."""
EARLY_BYTES: Final = 4 << 20
"""Bytes of them."""
RECENT: Final = 1024
"""Delivered publications that are kept for who is just subscribing."""


class Question(NamedTuple):
    """What history is asked.

    :ivar since: what came after it?
    :ivar doubts: how often it was doubtful until then whether something was missed.
    """

    since: Position
    doubts: int


class Answer(NamedTuple):
    """What follows from what history said: first the gap (if any) is told, then the publications are delivered.

    :ivar filled: how many of the publications are history's.
    :ivar renewed: before the publications, it is told that positions are of another epoch from this one on, although nothing
        was missed.
    """

    publications: list[Publication]
    gap: Position | None = None
    filled: int = 0
    renewed: Position | None = None


class Order:
    """One channel's place on a node, while that is in doubt.

    :ivar epoch: of the offsets; "" while it is not known.
    :ivar next: the offset of the publication to deliver next; 0 while nobody has been told a position.
    :ivar top: the highest offset that came in this epoch.
    :ivar readers: how many are just subscribing.
    :ivar filling: somebody is asking history already. (For who asks; nothing here looks at it.)
    """

    __slots__ = (
        "_bytes",
        "_doubtful",
        "_doubts",
        "_early",
        "_holds",
        "_recent",
        "epoch",
        "filling",
        "next",
        "readers",
        "top",
    )

    def __init__(self, epoch: str, next_offset: int) -> None:
        self.epoch = epoch
        self.next = max(next_offset, 0)
        self.top = 0
        self.readers = 0
        self.filling = False
        self._doubtful = False
        self._doubts = 0
        self._holds = False
        self._bytes = 0
        self._early: dict[int, Publication] = {}
        self._recent: deque[Publication] = deque(maxlen=RECENT)

    @property
    def behind(self) -> bool:
        """True while a publication is missing before one that came."""
        return bool(self.next) and self.top >= self.next

    @property
    def doubtful(self) -> bool:
        """True while history is to be asked whatever comes; else what is missing may still come by itself."""
        return self._doubtful

    @property
    def wants(self) -> bool:
        """True while history is to be asked."""
        return bool(self.next) and (self._doubtful or self.top >= self.next)

    @property
    def settled(self) -> bool:
        """True when the next offset says all that there is to know."""
        return not self.readers and not self.wants

    def doubt(self) -> None:
        """Publications may have been missed, or the epoch be another: until history has said, all that comes is held."""
        self._doubtful = self._holds = True
        self._doubts += 1

    # -- publications

    def take(self, publication: Publication) -> list[Publication] | None:
        """What to deliver now that this one came: nothing while it is early, more than it when others waited for it.

        :returns: None: it was there already.
        """
        offset = publication.offset
        if offset < self.next:
            # once more; or the first of a new epoch, whose offsets begin again: history knows
            self._doubtful = True
            return None
        if offset != self.next or self._holds:
            if offset in self._early:
                return None
            self._hold(publication)
            return []
        return self._advance((publication,))

    def _hold(self, publication: Publication) -> None:
        self.top = max(self.top, publication.offset)
        if len(self._early) < EARLY and self._bytes + publication.size <= EARLY_BYTES:
            self._early[publication.offset] = publication
            self._bytes += publication.size

    def _advance(self, publications: Iterable[Publication]) -> list[Publication]:
        """Go past publications that begin at the next offset, and past the early ones that then are in turn."""
        passed = list(publications)
        if passed:
            self.next = passed[-1].offset + 1
            for publication in passed if self._early else ():
                self._drop(publication.offset)
        while not self._holds and (waited := self._drop(self.next)) is not None:
            passed.append(waited)
            self.next += 1
        if self.readers:
            self._recent.extend(passed)
        return passed

    def _drop(self, offset: int) -> Publication | None:
        publication = self._early.pop(offset, None)
        if publication is not None:
            self._bytes -= publication.size
        return publication

    # -- history

    def ask(self) -> Question:
        """What to ask history. Give what it says to :meth:`answer`, or say that it is :meth:`unanswered`."""
        self._doubtful = False
        return Question(Position(self.epoch, self.next - 1), self._doubts)

    def unanswered(self) -> None:
        """History did not answer: it is to be asked again."""
        self._doubtful = True

    def answer(self, question: Question, recovery: Recovery) -> Answer:
        """What history says."""
        since, position = question.since, recovery.position
        if since.epoch != self.epoch:
            self._doubtful = True  # the epoch changed while history was asked: this may be what was before
            return Answer([])
        if question.doubts == self._doubts:
            self._holds = False
        if recovery.recovered:
            renewed = None
            if position.epoch != self.epoch:
                self.epoch = position.epoch
                renewed = Position(position.epoch, self.next - 1)
                # what is held may be of before, and lost: history says what there is
                self._doubtful = self._doubtful or bool(self._early)
                self._forget()
            missing = [publication for publication in recovery.publications if publication.offset >= self.next]
            return Answer(self._advance(missing), None, len(missing), renewed)
        if position.epoch == self.epoch and position.offset >= since.offset:
            passed = self._advance(())
            if self.next > position.offset:
                return Answer(passed)  # they have come meanwhile
            if self.next > since.offset + 1:
                self._doubtful = True  # some have come meanwhile: the rest may be had
                return Answer(passed)
        fresh = recovery.fresh
        if fresh is not None and position.epoch != self.epoch and position.offset > fresh:
            self._doubtful = True  # what came after that is new to everybody, and history may still have it
            return self._jump(Position(position.epoch, fresh), since.offset)
        return self._jump(position, since.offset)

    def learn(self, position: Position) -> Answer:
        """What history says the position is, where the epoch was not known."""
        if position.offset < self.next - 1:
            return self._jump(position, self.next - 1)
        self.epoch = position.epoch
        return Answer([])

    def skip(self) -> Answer:
        """History does not have what is missing, although it should: go on with what came after it."""
        beyond = min(self._early) if self._early else self.top + 1
        return self._jump(Position(self.epoch, beyond - 1), 0)

    def _jump(self, position: Position, least: int) -> Answer:
        """Go on from a position, over what cannot be had.

        :param least: an offset that history had; below it, it has begun anew.
        """
        anew = position.epoch != self.epoch or position.offset < least
        self.epoch = position.epoch
        self.next = position.offset + 1
        self._recent.clear()
        if anew:
            # what is held may be of the old epoch or of the new one: history says what there is of that
            self._doubtful = self._doubtful or bool(self._early)
            self._forget()
            return Answer([], position)
        for offset in [offset for offset in self._early if offset < self.next]:
            self._drop(offset)
        return Answer(self._advance(()), position)

    def _forget(self) -> None:
        self._early.clear()
        self._bytes = self.top = 0

    # -- readers

    def join(self, asked: Position, since: Position | None, recovery: Recovery) -> tuple[Recovery | None, Answer]:
        """Fit what a new reader missed to where the node is, so that what is delivered next continues it.

        :param asked: where the node was when history was asked for the reader (:attr:`here`).
        :returns: what to tell the reader (None: ask again), and what follows for the others.
        """
        position = recovery.position
        nothing = Answer([])
        if not self.next:
            self.epoch, self.next = position.epoch, position.offset + 1
            for offset in [offset for offset in self._early if offset < self.next]:
                self._drop(offset)
            return recovery, nothing
        if asked.epoch != self.epoch:
            return None, nothing
        if not self.epoch:
            self.epoch = position.epoch
        if position.epoch != self.epoch and related(position.epoch, self.epoch):
            self._doubtful = True  # it may be the same past under another name: history says so, or that it is not
            return None, nothing
        if position.epoch != self.epoch or position.offset < asked.offset:
            return recovery, self._jump(position, asked.offset)
        here = self.next - 1
        if position.offset > here:
            self._doubtful = True  # others have not had that much: it is on its way, or was lost
        if since is None or not recovery.recovered:
            return Recovery(Position(self.epoch, here), [], False), nothing
        if position.offset > here:
            if since.offset > here:
                return None, nothing  # it was told more elsewhere: it must not get that again
            told = [publication for publication in recovery.publications if publication.offset <= here]
            return Recovery(Position(self.epoch, here), told, True), nothing
        if position.offset < here:
            if not self._recent or self._recent[0].offset > position.offset + 1:
                return None, nothing
            more = [publication for publication in self._recent if publication.offset > position.offset]
            return Recovery(Position(self.epoch, here), recovery.publications + more, True), nothing
        return recovery, nothing

    @property
    def here(self) -> Position:
        """The position of the last publication that was delivered (offset 0 while that is not known)."""
        return Position(self.epoch, max(self.next - 1, 0))

    def left(self) -> list[Publication]:
        """A reader is done subscribing. Returns what waited for the first one."""
        waited = self._advance(()) if self.next else []
        self.readers -= 1
        if not self.readers:
            self._recent.clear()
            if not self.next:
                self._forget()
        return waited
