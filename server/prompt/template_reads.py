"""Which variables a chat template reads from outside, rather than from what it has set itself.

To Jinja a name that is set in a branch or a loop is undeclared as well. So the `role` of Gemma's template would pass as
a variable of a client's, and whatever a client gave for it would change nothing.
"""

from collections.abc import Iterable

from jinja2 import meta, nodes

Names = frozenset[str]


def outside_variables(tree: nodes.Template) -> Names:
    """The names that may be read before the template has set them. Where that is hard to tell, they may."""
    reader = _Reader()
    reader.run(tree.body, frozenset())
    return frozenset(reader.found) & meta.find_undeclared_variables(tree)


class _Reader:
    """Reads statements in order, and notes in `found` the names that are read while they are not known to be set."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def run(self, body: Iterable[nodes.Node], known: Names) -> Names | None:
        """The names that are set behind `body`; None if what follows it is never reached."""
        for node in body:
            after = self._statement(node, known)
            if after is None:
                return None
            known = after
        return known

    def _statement(self, node: nodes.Node, known: Names) -> Names | None:
        match node:
            case nodes.If():
                return self._branches(node, known)
            case nodes.For():
                self._loop(node, known)
            case nodes.Assign():
                self._reads(node.node, known)
                return known | _names(node.target)
            case nodes.AssignBlock():
                self.run(node.body, known)
                return known | _names(node.target)
            case nodes.Macro():
                for default in node.defaults:
                    self._reads(default, known)
                self.run(node.body, known.union(*map(_names, node.args)))
                return known | {node.name}
            case nodes.Break() | nodes.Continue():
                return None
            case _:
                self._reads(node, known)
                return None if _refuses(node) else known
        return known

    def _branches(self, node: nodes.If, known: Names) -> Names | None:
        ends = []
        for branch in (node, *node.elif_):
            self._reads(branch.test, known)
            ends.append(self.run(branch.body, known))
        ends.append(self.run(node.else_, known))
        reached = [end for end in ends if end is not None]
        return frozenset.intersection(*reached) if reached else None

    def _loop(self, node: nodes.For, known: Names) -> None:
        """What a loop sets is forgotten behind it."""
        self._reads(node.iter, known)
        inside = known | _names(node.target) | {"loop"}
        if node.test is not None:
            self._reads(node.test, inside)
        self.run(node.body, inside)
        self.run(node.else_, known)

    def _reads(self, node: nodes.Node, known: Names) -> None:
        self.found |= _names(node, "load") - known


def _names(node: nodes.Node, context: str | None = None) -> Names:
    """The names in a node, itself included."""
    found = [node] if isinstance(node, nodes.Name) else node.find_all(nodes.Name)
    return frozenset(name.name for name in found if context in (None, name.ctx))


def _refuses(node: nodes.Node) -> bool:
    """Whether it is `{{ raise_exception(...) }}`."""
    calls = [part.node for part in getattr(node, "nodes", ()) if isinstance(part, nodes.Call)]
    return any(isinstance(called, nodes.Name) and called.name == "raise_exception" for called in calls)
