"""Regular expressions as they are written, to languages.

A pattern is searched for unless anchored, and means what ECMA-262 says of it (`engine.grammar.language.ecma`). Each of
its items is read as the texts that may stand from its place on to the end, given those that may follow the item
(`Rest`). So an assertion is an intersection: a lookahead with the texts that begin as it says, `$` with the empty one.
A lookbehind, `^` and `\\b` ask what has been read before, and a place knows as much of that as the pattern asks.
"""

from functools import partial
from itertools import count

from engine.grammar.language.before import Before, Place, Rest, State, kept
from engine.grammar.language.boundaries import without_boundaries
from engine.grammar.language.classes import WORD
from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.items import Boundary, Chars, Choice, Edge, Item, Items, Look, Repeat, parsed
from engine.grammar.language.narrowing import narrowed
from engine.grammar.language.node import Node
from engine.grammar.language.sets import ALL, Ranges, ranges

MAX_SPELLED = 100
"""Highest count of a repetition that is spelled out, as it must be where an assertion may look into it."""
_ANYTHING = Repeat(0, None, (Chars(ALL),))


class Reader:
    """Reads patterns into the languages of one `Languages`, each once."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._known: dict[tuple[str, bool], Node | LanguageError] = {}

    def read(self, pattern: str, *, whole: bool = False) -> Node:
        """The texts in which the pattern is found; with `whole`, those that it matches from first to last character.

        Raises `LanguageError`.
        """
        key = (pattern, whole)
        if key not in self._known:
            try:
                self._known[key] = self._read(pattern, whole)
            except RecursionError:
                self._known[key] = LanguageError("it is nested too deeply")
            except LanguageError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, LanguageError):
            raise known
        return known

    def learn(self, pattern: str, node: Node) -> None:
        """Note what a pattern means that was written of a language."""
        self._known[(pattern, False)] = node

    def _read(self, pattern: str, whole: bool) -> Node:
        items = narrowed(without_boundaries(parsed(pattern), searched=not whole))
        return _Reading(self._languages).texts(items, starts=whole, ends=whole)


class _Reading:
    """One pattern, an alternative of it, or what a lookbehind looks for."""

    def __init__(self, languages: Languages, *, is_behind: bool = False) -> None:
        self._languages = languages
        self._is_behind = is_behind
        self._before = Before(languages)
        self._numbers = count()

    def texts(self, items: Items, *, starts: bool, ends: bool) -> Node:
        """Texts that hold the items; with `starts` from their first character on, with `ends` up to their last.

        What looks back from the end is about the whole text, and so an intersection.
        """
        make = self._languages
        if len(items) == 1 and isinstance(items[0], Choice):
            readings = [(_Reading(make, is_behind=self._is_behind), part) for part in items[0].parts]
            return make.either(*(reading.texts(part, starts=starts, ends=ends) for reading, part in readings))
        about: list[Node] = []
        while items:
            match items[-1]:
                case Edge(is_end=True) if not self._is_behind:
                    ends = True
                case Look(ahead=False) | Boundary() as item if ends:
                    about.append(self._behind(item))
                case _:
                    break
            items = items[:-1]
        end = make.empty if ends else make.letters
        rest = self._sequence(items if starts else (_ANYTHING, *items), lambda _: end)
        return make.both(rest(self._before.start), *about)

    def _behind(self, item: Look | Boundary) -> Node:
        """The texts at whose end a lookbehind, or a boundary of words, holds."""
        found = self._ends_in_word() if isinstance(item, Boundary) else self._looked_for(item.items)
        return found if item.positive else self._languages.negation(found)

    def _ends_in_word(self) -> Node:
        """The texts whose last character is one of a word."""
        self._refuse_ahead()
        return self._languages.cat(self._languages.letters, self._languages.chars(WORD))

    def _looked_for(self, items: Items) -> Node:
        """The texts at whose end the items are found."""
        return _Reading(self._languages, is_behind=True).texts(items, starts=False, ends=True)

    def _refuse_ahead(self) -> None:
        if self._is_behind:
            raise LanguageError("a lookbehind that looks ahead is not supported")

    def _sequence(self, items: Items, rest: Rest) -> Rest:
        """The items, one after the other; those without assertions together."""
        run: Items = ()
        for item in reversed(items):
            if self._plain((item,)) is not None:
                run = (item, *run)
                continue
            rest = self._item(item, self._run(run, rest))
            run = ()
        return self._run(run, rest)

    def _run(self, items: Items, rest: Rest) -> Rest:
        """Items without assertions; taken one by one only where what follows depends on what they have read."""
        if not items:
            return rest
        make, node = self._languages, self._plain(items)
        assert node is not None
        one_by_one: list[Rest] = []

        def at(place: Place) -> Node:
            following = {id(after): after for after in map(rest, self._before.reachable(place))}
            if len(following) > 1:
                if not one_by_one:
                    one_by_one.append(rest)
                    for item in reversed(items):
                        one_by_one[0] = self._item(item, one_by_one[0])
                return one_by_one[0](place)
            (after,) = following.values()
            here = rest(place) if node.nullable else after
            if here is after:
                return make.cat(node, after)
            return make.either(here, make.cat(make.both(node, make.negation(make.empty)), after))

        return kept(at)

    def _plain(self, items: Items) -> Node | None:
        """What items without assertions match, one after the other; None if there are others among them."""
        make = self._languages
        node = make.empty
        for item in reversed(items):
            match item:
                case Chars(chars):
                    node = make.cat(make.chars(chars), node)
                case Choice(parts):
                    choices = [choice for part in parts if (choice := self._plain(part)) is not None]
                    if len(choices) < len(parts):
                        return None
                    node = make.cat(make.either(*choices), node)
                case Repeat(least, most, inner):
                    once = self._plain(inner)
                    if once is None:
                        return None
                    node = make.cat(make.repeat(once, least, most), node)
                case _:
                    return None
        return node

    def _item(self, item: Item, rest: Rest) -> Rest:
        make, before = self._languages, self._before
        match item:
            case Chars(chars):
                return self._char(chars, rest)
            case Choice(parts):
                choices = [self._sequence(part, rest) for part in parts]
                return kept(lambda place: make.either(*(choice(place) for choice in choices)))
            case Repeat():
                return self._repeat(item, rest)
            case Edge(is_end=True):
                self._refuse_ahead()
                return kept(lambda place: make.both(rest(place), make.empty))
            case Boundary():
                return self._boundary(item, rest)
            case Look(ahead=True):
                return self._ahead(item, rest)
        number = before.ask(self._looked_for(item.items) if isinstance(item, Look) else make.empty)
        holds = not isinstance(item, Look) or item.positive
        return lambda place: rest(place) if before.holds(place, number) is holds else make.none

    def _char(self, chars: Ranges, rest: Rest) -> Rest:
        make = self._languages

        def at(place: Place) -> Node:
            found: dict[int, tuple[Node, list[tuple[int, int]]]] = {}
            for part, after in self._before.moves(place, chars):
                following = rest(after)
                found.setdefault(id(following), (following, []))[1].extend(part)
            return make.either(*(make.cat(make.chars(ranges(part)), node) for node, part in found.values()))

        return kept(at)

    def _boundary(self, item: Boundary, rest: Rest) -> Rest:
        """A word before and none behind, or none before and one behind; or neither of these."""
        make = self._languages
        number = self._before.ask(self._ends_in_word())
        word = make.cat(make.chars(WORD), make.letters)
        others = make.negation(word)

        def at(place: Place) -> Node:
            is_word = self._before.holds(place, number)
            return make.both(rest(place), others if is_word is item.positive else word)

        return kept(at)

    def _ahead(self, item: Look, rest: Rest) -> Rest:
        make = self._languages
        self._refuse_ahead()
        found = self._sequence(item.items, lambda _: make.letters)

        def at(place: Place) -> Node:
            texts = found(Place(place.before))
            return make.both(rest(place), texts if item.positive else make.negation(texts))

        return kept(at)

    def _repeat(self, item: Repeat, rest: Rest) -> Rest:
        """A repetition that holds assertions, or behind which they look back."""
        if max(item.least, item.most or 0) > MAX_SPELLED:
            raise LanguageError(f"a count above {MAX_SPELLED} where an assertion looks into it is not supported")
        end = rest
        if item.most is None:
            rest = self._loop(item.items, rest)
        else:
            for _ in range(item.most - item.least):
                rest = self._optional(self._sequence(item.items, rest), end)
        for _ in range(item.least):
            rest = self._sequence(item.items, rest)
        return rest

    def _optional(self, once: Rest, end: Rest) -> Rest:
        return kept(lambda place: self._languages.either(end(place), once(place)))

    def _loop(self, items: Items, rest: Rest) -> Rest:
        """Any number of rounds. A round that reads nothing is none: it would lead to where it began."""
        make, number = self._languages, next(self._numbers)
        loops: dict[State, Node] = {}

        def again(place: Place) -> Node:
            if number in place.still:
                return make.none
            if place.before not in loops:
                loops[place.before] = make.loop(partial(once, place), nullable=rest(place).nullable)
            return loops[place.before]

        def once(place: Place) -> Node:
            return make.either(rest(place), body(Place(place.before, place.still | {number})))

        body = self._sequence(items, again)
        return kept(lambda place: once(place) if place.still else again(place))
