"""One schema document: what its references point to, and its keywords in one dialect, that of 2020-12."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from engine.grammar.schema.faults import SchemaFault, Unfollowable, escape
from engine.grammar.schema.values import ALL_TYPES, NUMBER, Schema, identity

_NAMES = ALL_TYPES - NUMBER | {"integer", "number"}
_SCHEMAS = ("not", "if", "then", "else", "additionalProperties", "propertyNames", "contains", "items",
            "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
           "minContains", "maxContains")  # fmt: skip
MAX_NESTING = 1000
"""Objects and lists inside each other, whether they are schemas or not."""
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


class Document:
    """A schema document. References to other documents are refused: nothing is ever fetched."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._ids: dict[str, tuple[Schema, str]] = {"": (root, "")}
        self._bases: dict[int, str] = {}
        self._index(root)

    def resolve(self, holder: dict[str, Any], at: str) -> tuple[Schema, str]:
        """What the `$ref` of an object of this document points to, and the pointer to that.

        Raises `SchemaFault`, of the kind `Unfollowable` for a reference to another document.
        """
        reference = holder["$ref"]
        if not isinstance(reference, str):
            raise SchemaFault(f"{at}/$ref", "'$ref' must be a string")
        base, fragment = urldefrag(urljoin(self._bases.get(id(holder), ""), reference))
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
        stack: list[tuple[Any, str, str, int]] = [(root, "", "", 0)]
        while stack:
            node, path, base, depth = stack.pop()
            if depth > MAX_NESTING:  # the pointers of all that is nested grow with the square of its depth
                raise SchemaFault("", f"it is nested deeper than {MAX_NESTING}")
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
                stack += [(child, f"{path}/{escape(name)}", base, depth + 1) for name, child in node.items()
                          if name not in ("enum", "const", "default", "examples")]  # fmt: skip
            elif isinstance(node, list):
                stack += [(child, f"{path}/{number}", base, depth + 1) for number, child in enumerate(node)]


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

    `type` becomes a frozenset of names from `ALL_TYPES`, `const` an `enum`; `dependencies` are taken apart, a list of
    `items` becomes `prefixItems`, true for `exclusiveMinimum` the number beside it. Raises `SchemaFault`.
    """
    if not isinstance(schema, dict):
        raise SchemaFault(at, f"a schema must be an object or a boolean, not {str(schema)[:100]!r}")
    keys = dict(schema)
    _modernise(keys)
    for name in keys.keys() & {*_COUNTS, *_NUMBERS}:
        value = keys[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SchemaFault(f"{at}/{name}", f"{name!r} must be a number")
        if name in _COUNTS:
            if value < 0 or value != int(value):
                raise SchemaFault(f"{at}/{name}", f"{name!r} must be a count, not {value}")
            keys[name] = int(value)
    if keys.get("multipleOf", 1) <= 0:
        raise SchemaFault(f"{at}/multipleOf", f"'multipleOf' must be above 0, not {keys['multipleOf']}")
    for names, kind, what in ((_LISTS, list, "a list of schemas"), (_MAPS, dict, "an object of schemas")):
        for name in names:
            if name in keys and not isinstance(keys[name], kind):
                raise SchemaFault(f"{at}/{name}", f"{name!r} must be {what}")
    for name in _SCHEMAS:
        if name in keys and not isinstance(keys[name], bool | dict):
            raise SchemaFault(f"{at}/{name}", f"{name!r} must be a schema")
    if "type" in keys:
        keys["type"] = _types(keys["type"], at)
    for name in ("enum", "required"):
        if name in keys and not isinstance(keys[name], list):
            raise SchemaFault(f"{at}/{name}", f"{name!r} must be a list")
    if not all(isinstance(name, str) for name in keys.get("required", ())):
        raise SchemaFault(f"{at}/required", "'required' must hold names")
    for name in ("pattern", "format"):
        if name in keys and not isinstance(keys[name], str):
            raise SchemaFault(f"{at}/{name}", f"{name!r} must be a string")
    return keys


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
    names = value if isinstance(value, list) else [value]
    found: set[str] = set()
    for name in names:
        if not isinstance(name, str) or name not in _NAMES:
            raise SchemaFault(f"{at}/type", f"'type' {str(name)[:100]!r} is none of {', '.join(sorted(_NAMES))}")
        found |= NUMBER if name == "number" else {name}
    return frozenset(found)
