"""One schema document: what its references point to, and its keywords in one dialect, that of 2020-12."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from engine.grammar.schema.faults import SchemaFault, Unfollowable, escape
from engine.grammar.schema.values import ALL_TYPES, NUMBER, Schema, identity

_TYPES = {name: NUMBER if name == "number" else frozenset({name}) for name in (*(ALL_TYPES - {"fraction"}), "number")}
_SCHEMAS = ("not", "if", "then", "else", "additionalProperties", "propertyNames", "contains", "items",
            "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
           "minContains", "maxContains")  # fmt: skip
_REMARKS = frozenset({"title", "description", "default", "examples", "example", "$comment", "$schema", "readOnly",
                      "writeOnly", "deprecated"})  # fmt: skip
_OWN_NAMES = frozenset({"$id", "id", "$anchor"})
_NO_SCHEMAS = frozenset({"enum", "const", "default", "examples"})
MAX_NESTING = 1000
"""Objects and lists inside each other, whether they are schemas or not."""
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTED = frozenset({*_COUNTS, *_NUMBERS})
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(_LISTS, (list, "a list of schemas")),
    **dict.fromkeys(_MAPS, (dict, "an object of schemas")),
    **dict.fromkeys(_SCHEMAS, ((bool, dict), "a schema")),
    **dict.fromkeys(("enum", "required"), (list, "a list")),
    **dict.fromkeys(("pattern", "format"), (str, "a string")),
}
"""What the values of keywords must be."""
_SIMPLE = frozenset({"type", "format", "pattern", "enum", "properties", "additionalProperties", "anyOf", "oneOf",
                     "allOf", "minLength", "maxLength", "minItems", "maxItems", "$ref"})  # fmt: skip
"""Keywords that all drafts have in the same words."""
_DEPENDENT = frozenset({"dependentSchemas", "dependentRequired", "dependencies"})


class Document:
    """A schema document. References to other documents are refused: nothing is ever fetched."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._ids: dict[str, tuple[Schema, str]] = {"": (root, "")}
        self._bases: dict[int, str] = {}
        self._resolved: dict[tuple[str, str], tuple[Schema, str]] = {}
        """What references point to, by the address around them."""
        self._keywords: dict[int, tuple[Schema, dict[str, Any]]] = {}
        """By the identity of a schema, which is kept with them."""
        if _has_names(root):
            self._index(root)

    def keywords(self, schema: Schema, at: str) -> dict[str, Any]:
        """What `keywords` finds, which is not to be changed: it is the same for a schema that is asked for again."""
        known = self._keywords.get(id(schema))
        if known is None:
            known = self._keywords[id(schema)] = schema, keywords(schema, at)
        return known[1]

    def resolve(self, holder: dict[str, Any], at: str) -> tuple[Schema, str]:
        """What the `$ref` of an object of this document points to, and the pointer to that.

        Raises `SchemaFault`, of the kind `Unfollowable` for a reference to another document.
        """
        reference = holder["$ref"]
        if not isinstance(reference, str):
            raise SchemaFault(f"{at}/$ref", "'$ref' must be a string")
        known = (self._bases.get(id(holder), ""), reference)
        if known not in self._resolved:
            self._resolved[known] = self._found(*known, at)
        return self._resolved[known]

    def _found(self, base: str, reference: str, at: str) -> tuple[Schema, str]:
        base, fragment = urldefrag(urljoin(base, reference))
        for address in (f"{base}#{fragment}", reference):
            if address in self._ids:
                return self._ids[address]
        start = self._ids.get(base)
        if start is None and (reference.startswith("#") or not base):
            start = (self._root, "")
        if start is None:
            raise Unfollowable(at, "$ref", f"{reference[:200]!r} is not in this schema, and none is fetched")
        if fragment and not fragment.startswith("/"):
            raise SchemaFault(f"{at}/$ref", f"'$ref' {reference[:200]!r} points to nothing")
        return self._walk(*start, fragment, f"{at}/$ref")

    def _walk(self, node: Schema, path: str, fragment: str, at: str) -> tuple[Schema, str]:
        for segment in unquote(fragment).split("/")[1:]:
            name = segment.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and len(name) < 10 and int(name) < len(node):
                node = node[int(name)]
            else:
                raise SchemaFault(at, f"'$ref' {fragment[:200]!r} points to nothing")
            path = f"{path}/{segment}"
        return node, path

    def _index(self, root: Schema) -> None:
        stack: list[tuple[Any, str, str]] = [(root, "", "")]
        while stack:
            node, path, base = stack.pop()
            if isinstance(node, dict):
                identifier = node.get("$id", node.get("id"))
                if isinstance(identifier, str):
                    address = urljoin(base, identifier)
                    self._ids.setdefault(address, (node, path))
                    base, fragment = urldefrag(address)
                    if not fragment:
                        self._ids.setdefault(base, (node, path))
                if isinstance(node.get("$anchor"), str):
                    self._ids.setdefault(f"{base}#{node['$anchor']}", (node, path))
                self._bases[id(node)] = base
                stack += [(child, f"{path}/{escape(name)}", base) for name, child in node.items()
                          if name not in _NO_SCHEMAS and isinstance(child, dict | list)]  # fmt: skip
            elif isinstance(node, list):
                stack += [(child, f"{path}/{number}", base) for number, child in enumerate(node)]


def _has_names(root: Schema) -> bool:
    """Whether a document or a part of it has a name of its own. Raises `SchemaFault` where it is nested too deeply."""
    level, depth, found = [root], 0, False
    while level:
        if depth > MAX_NESTING:  # the pointers of all that is nested grow with the square of its depth
            raise SchemaFault("", f"it is nested deeper than {MAX_NESTING}")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if not (found or _OWN_NAMES.isdisjoint(node)):
                    found = any(isinstance(node.get(name), str) for name in _OWN_NAMES)
                below += [child for name, child in node.items()
                          if isinstance(child, dict | list) and name not in _NO_SCHEMAS]  # fmt: skip
            elif isinstance(node, list):
                below += node
        level, depth = below, depth + 1
    return found


def parts(schema: Schema, at: str) -> Iterator[tuple[Schema, str]]:
    """The schemas that stand directly in one at the pointer `at`, with their own pointers."""
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name in _SCHEMAS and isinstance(value, dict | bool):
            yield value, f"{at}/{name}"
        elif name in (*_LISTS, "items") and isinstance(value, list):
            yield from ((part, f"{at}/{name}/{number}") for number, part in enumerate(value))
        elif name in (*_MAPS, "dependencies", "$defs", "definitions") and isinstance(value, dict):
            yield from ((part, f"{at}/{name}/{escape(key)}") for key, part in value.items())


def keywords(schema: Schema, at: str) -> dict[str, Any]:
    """The keywords of an object schema, older drafts' said in those of 2020-12, their shapes checked.

    Remarks are left out. `type` becomes a frozenset of names from `ALL_TYPES`, `const` an `enum`; `dependencies` are
    taken apart, a list of `items` becomes `prefixItems`, true for `exclusiveMinimum` the number beside it. Raises
    `SchemaFault`.
    """
    if not isinstance(schema, dict):
        raise SchemaFault(at, f"a schema must be an object or a boolean, not {str(schema)[:100]!r}")
    keys = {name: value for name, value in schema.items() if name not in _REMARKS}
    if keys.keys() - _SIMPLE:
        _modernise(keys)
    for name, value in keys.items():
        kind = _KINDS.get(name)
        if kind is not None and not isinstance(value, kind[0]):
            raise SchemaFault(f"{at}/{name}", f"{name!r} must be {kind[1]}")
        if name in _COUNTED:
            keys[name] = _number(name, value, at)
    if "type" in keys:
        keys["type"] = _types(keys["type"], at)
    if "required" in keys and not all(isinstance(name, str) for name in keys["required"]):
        raise SchemaFault(f"{at}/required", "'required' must hold names")
    return keys


def _number(name: str, value: Any, at: str) -> Any:
    """The value of a keyword that is a number or a count."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise SchemaFault(f"{at}/{name}", f"{name!r} must be a number")
    if name == "multipleOf" and value <= 0:
        raise SchemaFault(f"{at}/{name}", f"'multipleOf' must be above 0, not {value}")
    if name not in _COUNTS:
        return value
    if value < 0 or value != int(value):
        raise SchemaFault(f"{at}/{name}", f"{name!r} must be a count, not {value}")
    return int(value)


def _modernise(keys: dict[str, Any]) -> None:
    if "const" in keys:
        value = keys.pop("const")
        listed = keys.get("enum", [value])
        if isinstance(listed, list):
            keys["enum"] = [other for other in listed if identity(other) == identity(value)]
    if isinstance(keys.get("items"), list):
        keys["prefixItems"] = keys.pop("items")
        if "additionalItems" in keys:
            keys["items"] = keys["additionalItems"]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(keys.get(exclusive), bool) and keys.pop(exclusive) and bound in keys:
            keys[exclusive] = keys.pop(bound)
    if isinstance(keys.get("required"), bool):
        del keys["required"]  # draft 3 said it inside the property; later drafts give it no meaning there
    if _DEPENDENT.isdisjoint(keys):
        return
    schemas, required = dict(keys.get("dependentSchemas") or {}), dict(keys.pop("dependentRequired", None) or {})
    for name, needed in (keys.pop("dependencies", None) or {}).items():
        if isinstance(needed, str | list):
            required[name] = [needed] if isinstance(needed, str) else needed
        else:
            schemas[name] = needed
    for name, needed in required.items():
        schemas[name] = {"allOf": [schemas[name], {"required": needed}]} if name in schemas else {"required": needed}
    if schemas:
        keys["dependentSchemas"] = schemas


def _types(value: Any, at: str) -> frozenset[str]:
    if isinstance(value, str) and value in _TYPES:
        return _TYPES[value]
    names = value if isinstance(value, list) else [value]
    found: set[str] = set()
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise SchemaFault(f"{at}/type", f"'type' {str(name)[:100]!r} is none of {', '.join(sorted(_TYPES))}")
        found |= _TYPES[name]
    return frozenset(found)
