"""Which keywords of a schema are said in which way, as `Rewriter` goes through them."""

COPIED = frozenset({"type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
                    "minLength", "maxLength", "pattern", "minItems", "maxItems", "required", "minProperties",
                    "maxProperties"})  # fmt: skip
"""They stay as they are."""
UNEVALUATED = frozenset({"unevaluatedProperties", "unevaluatedItems"})
BESIDE_REFERENCES = frozenset({*COPIED, "properties", "patternProperties", "additionalProperties", "items",
                               "prefixItems", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas",
                               "dependencies", "dependentRequired", "const", "propertyNames", "contains", "format",
                               *UNEVALUATED})  # fmt: skip
"""With one of these beside it, a `$ref` is not all that a schema says."""
REFUSED = ("$dynamicRef", "$recursiveRef")
APPLIED = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "format"})
"""What they say is about the value itself."""
COUNTED = frozenset({"propertyNames", "contains", "uniqueItems", *UNEVALUATED})
"""What they say is about how many, or what kind of, members or items there are."""
CHOOSING = frozenset({*BESIDE_REFERENCES, *COUNTED, "$ref", *REFUSED}) - {"type", "enum", "const"}
"""They choose among listed values, besides `type`."""
JOINED = frozenset({*APPLIED, *COUNTED, "patternProperties", "required", "minProperties"})
"""Without them a schema has no parts to be joined and no names to be listed."""
IN_PLACE = frozenset({"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "not", "if"})
"""Beside them a schema need not be of the type that its other keywords speak of."""
