"""The rules of an object: declared members once and in their order, then others, counted where a schema counts them.

What may follow depends on whether a member stands before it, which wants a comma, and on how many, which a rule carries
as its parameter (llguidance's parametric rules), so that nothing is offered behind which too few or too many are left.
"""

from collections import Counter
from collections.abc import Iterable

from engine.grammar.writing.nodes import Member, ObjectShape
from engine.grammar.writing.terminals import quoted
from engine.grammar.writing.texts import spelled

COMMA, COLON = '","', '":"'
MIN_USES, MIN_USES_OPTIONAL = 3, 2
"""Objects from which on a member that must be there, or one that may lack, is a rule of its own."""


class Rules:
    """Rules of a grammar, of which those that say the same are one."""

    def __init__(self, shapes: Iterable[ObjectShape]) -> None:
        """`shapes` are all objects there will be rules of."""
        self.lines: list[str] = []
        self._known: dict[str, str] = {}
        self._items: dict[str, str] = {}
        """What stands before the values of members, by name."""
        self._number = 0
        self._uses = Counter((member.name, member.node) for shape in shapes for member in shape.members)

    def fresh(self) -> str:
        """A name that no rule has."""
        self._number += 1
        return f"r{self._number}"

    def named(self, body: str, name: str = "", *, counts: bool = False) -> str:
        """The name of a rule with this body, `name` if there is none yet. With `counts` it has a parameter."""
        if body not in self._known:
            self._known[body] = name = name or self.fresh()
            self.lines.append(f"{name}{'::_ ' if counts else ''}:{body}")
        return self._known[body]

    def item(self, member: Member) -> str:
        """What a member is, without a comma."""
        known = self._items.get(member.name)
        if known is None:
            known = self._items[member.name] = f"{quoted(spelled(member.name))}{COLON}"
        return f"{known}{member.node.name}"

    def uses(self, member: Member) -> int:
        """In how many objects such a member may stand."""
        return self._uses[member.name, member.node]


class ObjectRules:
    """Writes the rules of one object under names of its own."""

    def __init__(self, shape: ObjectShape, rules: Rules) -> None:
        self._members = [member for member in shape.members if member.node.ends]
        self._rules = rules
        free = [f"{free.terminal}{COLON}{free.node.name}" for free in shape.free if free.node.ends]
        self._free = free[0] if len(free) == 1 else f"({'|'.join(free)})" if free else ""
        self._low, self._high = shape.least, shape.most
        self._required = sum(member.is_required for member in self._members)
        most = None if free else len(self._members)
        if self._high is None or (most is not None and most < self._high):
            self._high = most
        self._optional = len(self._members) - self._required
        too_few, too_many = self._low > self._required, self._high != most
        self._counts = (too_few or too_many) and self._optional > 0

    def body(self) -> str:
        """What stands for the object in another rule's body."""
        return f'"{{"{self._all_counted() if self._counts else self._all()}"}}"'

    def _all(self) -> str:
        """The members, none of which is counted, or none of which may lack.

        Those before the first that must be there are a chain: of each rule, what ends with a member, or before it.
        """
        first = next((at for at, member in enumerate(self._members) if member.is_required), len(self._members))
        chain = ""
        for member in self._members[:first]:
            one = self._rules.named(self._rules.item(member))
            chain = self._rules.named(f"{chain}|{chain}{COMMA}{one}|{one}") if chain else one
        if first < len(self._members):
            one = self._rules.item(self._members[first])
            begun = f"({chain}{COMMA}{one}|{one})" if chain else one
            return begun + self._rest(first + 1)
        if not chain:
            return self._only_free()
        return f"(({chain}|{self._free})({COMMA}{self._free})*)?" if self._free else f"({chain})?"

    def _all_counted(self) -> str:
        """The members by rules whose parameter is how many stand before."""
        size = len(self._members)
        first = next((at for at, member in enumerate(self._members) if member.is_required), size)
        behind: dict[int, str] = {}
        for at in range(size, 0, -1):
            own = self._rules.fresh()
            behind[at] = self._rules.named(self._counted(at, behind, own), own, counts=True)
        inner = self._only_free()
        for at in range(min(first, size - 1), -1, -1):
            inner = self._first(at, behind[at + 1], inner)
        return inner

    def _first(self, at: int, behind: str, rest: str) -> str:
        """Members from `at` on, none of which stands there yet; `rest` is what there is without this one."""
        member = self._members[at]
        begun = f"{self._rules.item(member)} {behind}::1"
        if member.is_required or not self._can_skip(at):
            return begun
        if not self._can_take(at):
            return rest
        return f"({begun}|{self._rules.named(rest)})" if rest else f"({begun})?"

    def _can_take(self, at: int) -> bool:
        later = sum(member.is_required for member in self._members[at + 1 :])
        return self._high is None or 1 + later <= self._high

    def _can_skip(self, at: int) -> bool:
        return bool(self._free) or len(self._members) - at - 1 >= self._low

    def _only_free(self) -> str:
        if not self._free or self._high == 0:
            return ""
        more = repeated(f"{COMMA}{self._free}", max(self._low - 1, 0), None if self._high is None else self._high - 1)
        return f"{self._free}{more}" if self._low > 0 else f"({self._free}{more})?"

    def _rest(self, at: int) -> str:
        """All members from `at` on, where some stand before them; none is counted, or none may lack."""
        rest = "".join(map(self._following, self._members[at:]))
        if not self._free:
            return rest
        high = None if self._high is None else self._high - self._required
        low = 0 if self._optional else max(self._low - self._required, 0)
        return rest + repeated(f"{COMMA}{self._free}", low, high)

    def _following(self, member: Member) -> str:
        """A member behind others. What stands in several objects is a rule, if that makes less of it."""
        one = f"{COMMA}{self._rules.item(member)}" if member.is_required else f"({COMMA}{self._rules.item(member)})?"
        few = MIN_USES if member.is_required else MIN_USES_OPTIONAL
        return one if self._rules.uses(member) < few else f" {self._rules.named(one)}"

    def _counted(self, at: int, behind: dict[int, str], own: str) -> str:
        """The body of the rule `own` of the member at `at` and those behind it, by how many stand before."""
        if at == len(self._members):
            return self._counted_free(own)
        rule = behind[at + 1]
        member = self._members[at]
        later = sum(other.is_required for other in self._members[at + 1 :])
        taken = f"{COMMA}{self._rules.item(member)} {rule}::incr(_)"
        if member.is_required:
            return taken
        if self._high is not None:
            taken += f" %if lt(_, {self._high - later})"
        short = 0 if self._free else self._low - (len(self._members) - at - 1)
        skipped = f"{rule}::_" + (f" %if ge(_, {short})" if short > 1 else "")
        return f"{taken}|{skipped}"

    def _counted_free(self, rule: str) -> str:
        parts = [f'"" %if ge(_, {self._low})']
        if self._free:
            item = f"{COMMA}{self._free}"
            limit = self._low if self._high is None else self._high
            if limit:
                parts.append(f"{item} {rule}::incr(_) %if lt(_, {limit})")
            if self._high is None:
                parts.append(f"({item})+ %if ge(_, {self._low})")
        return "|".join(parts)


def repeated(item: str, least: int, most: int | None) -> str:
    """An item of the grammar so many times."""
    if most is None:
        return f"({item})*" if least == 0 else f"({item}){{{least},}}"
    return f"({item}){{{least},{most}}}" if most > 0 else ""
