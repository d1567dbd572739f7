"""A whole schema as a grammar in llguidance's form of Lark's notation."""

import json
from dataclasses import dataclass

from engine.grammar.language.writing import in_slashes
from engine.grammar.schema.faults import Budget
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import Schema
from engine.grammar.writing.extents import distinct_items
from engine.grammar.writing.kinds import Reader
from engine.grammar.writing.members import COMMA, ObjectRules, Rules, repeated
from engine.grammar.writing.nodes import ArrayShape, ItemsTaken, NamesTaken, Node, Nodes
from engine.grammar.writing.terminals import Terminals

WHITESPACE = r"[ ]?|\n[ ]{0,20}"
"""Between the tokens of JSON: enough for compact and indented text, too little for a model to run away in."""
_HEAD = f'%llguidance {{"ignore_once": true}}\n%ignore {in_slashes(WHITESPACE)}\n'
_OPTIONS = f'"x-guidance": {json.dumps({"whitespace_pattern": WHITESPACE})}'
DIFFERS = "\x01"
"""Allowed in an array whose items have to differ, at its beginning and behind each item, to be asked for (`taken`)."""
_DIFFERS = r"/\x01/"
MAX_ITEMS = 1_000_000
"""Beyond it the number of an array's items is not counted, which no answer reaches."""


@dataclass(frozen=True, slots=True)
class WrittenSchema:
    """The grammar of a schema."""

    text: str
    names: NamesTaken
    """Unless they are listed, the grammar cannot say of them that none comes twice."""
    items: ItemsTaken
    """Unless they are any, the grammar cannot say of them that they differ."""
    costly: tuple[str, ...]
    """Grammars of its terminals that may be too complex to be followed, though the whole seems not to be."""


def write_schema(
    root: Schema, definitions: dict[str, Schema], strings: Strings, *, narrows: bool = False
) -> WrittenSchema | None:
    """The grammar of a rewritten schema; None if it accepts no finite text. Raises `SchemaFault`.

    With `narrows` it may leave out texts that are costly to tell from others.
    """
    budget = Budget()
    terminals = Terminals(strings, narrows=narrows)
    nodes = Nodes(Reader(definitions, budget), strings, terminals, budget)
    start = nodes.made(root)
    items = distinct_items(nodes, terminals, strings)
    if not start.ends:
        return None
    made = [node for node in nodes.all if node.ends]
    rules = Rules(shape for node in made for shape in node.objects)
    lines = [f"{node.name}:{'|'.join(_choices(node, terminals, rules))}" for node in made]
    text = "\n".join([f"start:{start.name}", *lines, *rules.lines, *terminals.lines()])
    costly = tuple(f"start:T\n{lines}\n" for lines in terminals.costly())
    return WrittenSchema(f"{_HEAD}{text}\n", nodes.names, items, costly)


def _choices(node: Node, terminals: Terminals, rules: Rules) -> list[str]:
    found = [terminal.replace("%s", _OPTIONS) for terminal in node.terminals]
    found += [_array(shape, terminals) for shape in node.arrays]
    return [*found, *(ObjectRules(shape, rules).body() for shape in node.objects)]


def _array(shape: ArrayShape, terminals: Terminals) -> str:
    """Items one after the other; those that may lack stand inside what comes before them."""
    least, most, prefix = shape.least, shape.longest(), shape.prefix
    size = len(prefix)
    mark = f" {terminals.define(_DIFFERS)}? " if shape.differs and most != 1 else ""
    if most is not None and most <= size:
        size, body = most, ""
    else:
        low = max(least - size, 0)
        high = None if most is None or most > MAX_ITEMS else most - size
        item = f"{COMMA}{shape.items.name}{mark}"
        if size:
            body = repeated(item, low, high)
        else:
            more = repeated(item, max(low - 1, 0), None if high is None else high - 1)
            body = f"{shape.items.name}{mark}{more}" if low else f"({shape.items.name}{mark}{more})?"
    for at in range(size - 1, -1, -1):
        inner = f"{COMMA if at else ''}{prefix[at].name}{mark}{body}"
        body = inner if at < least else f"({inner})?"
    return f'"["{mark}{body}"]"'
