"""Takes tool calls out of the text of an answer as it comes: one parser for streamed and whole answers.

However the text is cut into pieces, the same calls come out and the contents add up to the same text. Held back is only
what could yet be the beginning of a call, which the frames bound to a few hundred characters. Behind a call's head, its
arguments are handed on as they come. White space next to calls at the beginning and the end of an answer is no content.

What opens a call here is what the grammar of `server.markup.grammar` has opened too, so its arguments are valid.
"""

import re
import secrets
import string
from collections.abc import Callable, Collection
from enum import Enum, auto

from server.markup.events import CallArguments, CallClosed, CallOpened, ContentText, Event
from server.markup.formats import BARE_NECK, FENCE_END, FENCE_MARK, CallFormat
from server.markup.frames import MAX_GAP, NAME, SPACE, Frame, Match, Undecided, match
from server.markup.json_text import ObjectEnd

_ALPHABET = string.ascii_letters + string.digits


def new_call_id() -> str:
    """An id nobody else has, of OpenAI's form."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


class _State(Enum):
    TEXT = auto()
    HEAD = auto()
    """Behind a marker."""
    ARGUMENTS = auto()
    TAIL = auto()


class CallParser:
    """The calls and the content of one answer."""

    def __init__(
        self,
        form: CallFormat,
        names: Collection[str],
        *,
        at_start: bool = True,
        recover: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`names` are the declared tools. `at_start`: bare JSON may open a call. Without `recover` only markers do."""
        self.num_calls = 0
        self._form = form
        self._names = frozenset(names)
        self._new_id = new_id
        self._recover = recover
        self._head: Frame = (*form.head, NAME, *form.neck)
        self._whole_bare: Frame = (*form.bare_head, NAME, *BARE_NECK)
        self._whole_fenced: Frame = (*form.fenced_head, NAME, *BARE_NECK)
        self._dropped = tuple(filter(None, (form.begin, form.end)))
        self._candidate = _candidates(form.marks, recover)
        self._state = _State.TEXT
        self._at_start = at_start and recover
        self._behind_fenced = False
        self._tail: Frame = ()
        self._held = ""
        self._base = 0
        """Where the held text begins in all that was given."""
        self._space: list[ContentText] = []
        self._wrote = False
        self._end = ObjectEnd()
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        """What is certain once `text` has come."""
        data, position, goes_on = self._held + text, 0, True
        while goes_on:
            position, goes_on = _STEPS[self._state](self, data, position)
        self._held = data[position:]
        self._base += position
        return self._take_events()

    @property
    def in_arguments(self) -> bool:
        """Whether what comes next belongs to the arguments of a call."""
        return self._state is _State.ARGUMENTS

    def finish(self, *, cut: bool = False) -> list[Event]:
        """The rest, once no more text will come. To be called once, last.

        The head of a call whose name never came is neither content nor a call, and is left out. So is, of an answer
        that was `cut`, what could yet have become one.
        """
        held, self._held = self._held, ""
        if self._state is _State.TEXT:
            fence = match(FENCE_END, held, 0) if self._behind_fenced else Undecided.NO
            start = fence.end if isinstance(fence, Match) else 0
            self._write(held, start, start if cut else len(held))
        if not self.num_calls:
            self._events += _joined(self._space)
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # Each step gives the position up to which the text is dealt with, and whether to go on from there.

    def _read_text(self, data: str, position: int) -> tuple[int, bool]:
        if self._at_start:
            found = self._match_head(self._whole_bare, data, position)
            if found is Undecided.MORE:
                return position, False
            self._at_start = False
            if isinstance(found, Match):
                return self._open(found, self._form.bare_tail), True
        if self._behind_fenced:
            found = match(FENCE_END, data, position)
            if found is Undecided.MORE:
                return position, False
            if isinstance(found, Match):
                # What closes one fence may, for all the grammar knows, open the next.
                again = self._match_head(self._whole_fenced, data, found.end - len(FENCE_MARK))
                if again is Undecided.MORE:
                    return position, False
                position = found.end if again is Undecided.NO else found.end - len(FENCE_MARK)
            self._behind_fenced = False
        return self._scan(data, position)

    def _scan(self, data: str, start: int) -> tuple[int, bool]:
        """Hand on text up to the next marker or fence that opens a call."""
        position = start
        while (candidate := self._candidate.search(data, position)) is not None:
            position = candidate.start()
            if data.startswith(self._form.marker, position):
                self._write(data, start, position)
                self._state = _State.HEAD
                return position + len(self._form.marker), True
            dropped = next((text for text in self._dropped if data.startswith(text, position)), None)
            if dropped is not None:
                self._write(data, start, position)
                return position + len(dropped), True
            found = self._match_head(self._whole_fenced, data, position) if self._recover else Undecided.NO
            if isinstance(found, Match):
                self._write(data, start, position)
                return self._open(found, self._form.bare_tail, fenced=True), True
            if found is Undecided.MORE or candidate.end() == len(data):
                self._write(data, start, position)
                return position, False
            position += 1
        self._write(data, start, len(data))
        return len(data), False

    def _read_head(self, data: str, position: int) -> tuple[int, bool]:
        found = self._match_head(self._head, data, position)
        if found is Undecided.MORE:
            return position, False
        if isinstance(found, Match):
            return self._open(found, self._form.tail), True
        self._write(self._form.marker, 0, len(self._form.marker), at=position - len(self._form.marker))
        self._state = _State.TEXT
        return position, True

    def _read_arguments(self, data: str, position: int) -> tuple[int, bool]:
        end = self._end.find(data, position)
        text = data[position:end]
        if text:
            self._events.append(CallArguments(self.num_calls - 1, text))
        if end is None:
            return len(data), False
        self._events.append(CallClosed(self.num_calls - 1))
        self._state = _State.TAIL
        return end, True

    def _read_tail(self, data: str, position: int) -> tuple[int, bool]:
        found = match(self._tail, data, position)
        if found is Undecided.MORE:
            return position, False
        self._state = _State.TEXT
        self._at_start = self._recover
        return (found.end if isinstance(found, Match) else position), True

    def _match_head(self, frame: Frame, data: str, position: int) -> Match | Undecided:
        """The frame of a call up to its arguments, which must be an object."""
        found = match(frame, data, position, self._names)
        if isinstance(found, Match) and not data.startswith("{", found.end):
            return Undecided.MORE if found.end == len(data) else Undecided.NO
        return found

    def _open(self, found: Match, tail: Frame, *, fenced: bool = False) -> int:
        self._events.append(CallOpened(self.num_calls, self._new_id(), found.name))
        self.num_calls += 1
        self._state, self._tail, self._end = _State.ARGUMENTS, tail, ObjectEnd()
        self._behind_fenced = fenced
        return found.end

    def _write(self, data: str, start: int, end: int, *, at: int | None = None) -> None:
        """Content, but for the white space at its end, which waits for what follows.

        It stands in `data` where it stands in what is held and pushed, unless `at` says where.
        """
        text = data[start:end]
        place = self._base + (start if at is None else at)
        solid = text.rstrip(SPACE)
        if solid:
            if self.num_calls and not self._wrote:
                shown = solid.lstrip(SPACE)
                self._events.append(ContentText(shown, place + len(solid) - len(shown)))
            else:
                self._events += _joined([*self._space, ContentText(solid, place)])
            self._wrote = True
            self._space.clear()
        if len(solid) < len(text):
            self._space.append(ContentText(text[len(solid) :], place + len(solid)))


def _joined(pieces: list[ContentText]) -> list[ContentText]:
    """The pieces, as one where there is no gap between them."""
    runs: list[list[ContentText]] = []
    for piece in pieces:
        if runs and runs[-1][-1].at + len(runs[-1][-1].text) == piece.at:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [ContentText("".join(piece.text for piece in run), run[0].at) for run in runs]


def _candidates(marks: Collection[str], fences: bool) -> re.Pattern[str]:
    """Where text may stop being content: a mark, a fence before an object, or the beginning of either at the end."""
    beginnings = {mark[:length] for mark in marks for length in range(1, len(mark))}
    whole = [re.escape(mark) for mark in marks]
    if fences:
        whole.append(rf"{FENCE_MARK}(?:json)?[{SPACE}]{{0,{MAX_GAP}}}(?:\{{|\Z)")
        beginnings |= {f"{FENCE_MARK}json"[:length] for length in range(1, len(FENCE_MARK) + 4)}
    partial = "|".join(map(re.escape, sorted(beginnings, key=len, reverse=True)))
    return re.compile(rf"{'|'.join(whole)}|(?:{partial})\Z")


_STEPS = {
    _State.TEXT: CallParser._read_text,
    _State.HEAD: CallParser._read_head,
    _State.ARGUMENTS: CallParser._read_arguments,
    _State.TAIL: CallParser._read_tail,
}
