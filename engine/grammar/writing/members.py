"""The rules of an object: declared members once and in their order, then others, counted where a schema counts them.

What may follow depends on whether a member stands before it, which wants a comma, and on how many, which a rule carries
as its parameter (llguidance's parametric rules), so that nothing is offered behind which too few or too many are left.
"""

from engine.grammar.writing.nodes import Member, ObjectShape
from engine.grammar.writing.terminals import Terminals
from engine.grammar.writing.texts import spelled

COMMA, COLON = '","', '":"'


class Rules:
    """Rules of a grammar, of which those that say the same are one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._known: dict[str, str] = {}

    def named(self, name: str, body: str, *, counts: bool = False) -> str:
        """The name of a rule with this body, `name` if it is new. With `counts` it has a parameter."""
        if body not in self._known:
            self._known[body] = name
            self.lines.append(f"{name}{'::_ ' if counts else ''}: {body}")
        return self._known[body]


class ObjectRules:
    """Writes the rules of one object under names of its own."""

    def __init__(self, shape: ObjectShape, name: str, terminals: Terminals, rules: "Rules") -> None:
        self._members = [member for member in shape.members if member.node.ends]
        self._name = name
        self._rules = rules
        self._terminals = terminals
        free = [f"{free.terminal} {COLON} {free.node.name}" for free in shape.free if free.node.ends]
        self._free = free[0] if len(free) == 1 else f"({' | '.join(free)})" if free else ""
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
        size = len(self._members)
        first = next((at for at, member in enumerate(self._members) if member.is_required), size)
        last = size if self._counts else min(first + 1, size)
        behind: dict[int, str] = {}
        for at in range(last, 0, -1):
            body = self._counted(at, behind) if self._counts else self._rest(at, behind)
            behind[at] = self._rules.named(f"{self._name}b{at}", body, counts=self._counts)
        inner = self._only_free()
        for at in range(min(first, size - 1), -1, -1):
            inner = self._first(at, behind[at + 1], inner)
        return f'"{{" {inner} "}}"'

    def _first(self, at: int, behind: str, rest: str) -> str:
        """Members from `at` on, none of which stands there yet; `rest` is what there is without this one."""
        member = self._members[at]
        begun = f"{self._item(member)} {behind}{'::1' if self._counts else ''}"
        if member.is_required or not self._can_skip(at):
            return begun
        if not self._can_take(at):
            return rest
        if not rest:
            return f"({begun})?"
        return f"({begun} | {self._rules.named(f'{self._name}a{at + 1}', rest)})"

    def _can_take(self, at: int) -> bool:
        later = sum(member.is_required for member in self._members[at + 1 :])
        return self._high is None or 1 + later <= self._high

    def _can_skip(self, at: int) -> bool:
        return bool(self._free) or len(self._members) - at - 1 >= self._low

    def _only_free(self) -> str:
        if not self._free or self._high == 0:
            return ""
        more = repeated(f"{COMMA} {self._free}", max(self._low - 1, 0), None if self._high is None else self._high - 1)
        return f"{self._free} {more}" if self._low > 0 else f"({self._free} {more})?"

    def _rest(self, at: int, behind: dict[int, str]) -> str:
        """All members from `at` on, where some stand before them; none is counted, or none may lack."""
        parts = []
        for member in self._members[at : at + 1 if behind else None]:
            item = f"{COMMA} {self._item(member)}"
            parts.append(item if member.is_required else f"({item})?")
        if behind:
            return f"{parts[0]} {behind[at + 1]}"
        if self._free:
            high = None if self._high is None else self._high - self._required
            low = 0 if self._optional else max(self._low - self._required, 0)
            parts.append(repeated(f"{COMMA} {self._free}", low, high))
        return " ".join(part for part in parts if part) or '""'

    def _counted(self, at: int, behind: dict[int, str]) -> str:
        """The member at `at` and those behind it, by how many stand before."""
        if at == len(self._members):
            return self._counted_free(f"{self._name}b{at}")
        rule = behind[at + 1]
        member = self._members[at]
        later = sum(other.is_required for other in self._members[at + 1 :])
        taken = f"{COMMA} {self._item(member)} {rule}::incr(_)"
        if member.is_required:
            return taken
        if self._high is not None:
            taken += f" %if lt(_, {self._high - later})"
        short = 0 if self._free else self._low - (len(self._members) - at - 1)
        skipped = f"{rule}::_" + (f" %if ge(_, {short})" if short > 1 else "")
        return f"{taken} | {skipped}"

    def _counted_free(self, rule: str) -> str:
        parts = [f'"" %if ge(_, {self._low})']
        if self._free:
            item = f"{COMMA} {self._free}"
            limit = self._low if self._high is None else self._high
            if limit:
                parts.append(f"{item} {rule}::incr(_) %if lt(_, {limit})")
            if self._high is None:
                parts.append(f"({item})+ %if ge(_, {self._low})")
        return " | ".join(parts)

    def _item(self, member: Member) -> str:
        return f"{self._terminals.literal(spelled(member.name))} {COLON} {member.node.name}"


def repeated(item: str, least: int, most: int | None) -> str:
    """An item of the grammar so many times."""
    if most is None:
        return f"({item})*" if least == 0 else f"({item}){{{least},}}"
    return f"({item}){{{least},{most}}}" if most > 0 else ""
