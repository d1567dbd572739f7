"""Keywords that are null: serialisers of schemas write them for what is not said."""

from typing import Any

_HOLD_NAMES = frozenset({"properties", "patternProperties", "dependentSchemas", "dependentRequired", "dependencies",
                         "$defs", "definitions"})  # fmt: skip
_HOLD_VALUES = frozenset({"const", "enum", "default", "examples", "example"})


def without_nulls(schema: Any, *, holds_names: bool = False) -> Any:
    """The schema without the keywords that are null, but for `const`, which says something of null.

    `holds_names` says that the keys of `schema` are names of members or definitions.
    """
    if isinstance(schema, list):
        return [without_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if holds_names:
        return {name: without_nulls(part) for name, part in schema.items()}
    return {
        name: value if name in _HOLD_VALUES else without_nulls(value, holds_names=name in _HOLD_NAMES)
        for name, value in schema.items()
        if value is not None or name == "const"
    }
