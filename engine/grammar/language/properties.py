"""Properties of Unicode in patterns (`\\p{L}`) as sets of characters, for what the library cannot be asked for."""

import unicodedata
from collections.abc import Callable
from functools import cache
from sys import maxunicode

from engine.grammar.language.sets import ALL, Ranges, ranges, without

_NAMES = {
    "letter": "L", "casedletter": "LC", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt",
    "modifierletter": "Lm", "otherletter": "Lo", "mark": "M", "combiningmark": "M", "nonspacingmark": "Mn",
    "spacingmark": "Mc", "enclosingmark": "Me", "number": "N", "decimalnumber": "Nd", "digit": "Nd",
    "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P", "connectorpunctuation": "Pc",
    "dashpunctuation": "Pd",
    "openpunctuation": "Ps", "closepunctuation": "Pe", "initialpunctuation": "Pi", "finalpunctuation": "Pf",
    "otherpunctuation": "Po", "symbol": "S", "mathsymbol": "Sm", "currencysymbol": "Sc", "modifiersymbol": "Sk",
    "othersymbol": "So", "separator": "Z", "spaceseparator": "Zs", "lineseparator": "Zl", "paragraphseparator": "Zp",
    "other": "C", "control": "Cc", "cntrl": "Cc", "format": "Cf", "surrogate": "Cs", "privateuse": "Co",
    "unassigned": "Cn",
}  # fmt: skip
"""Long names of general categories (Unicode's PropertyValueAliases.txt), without what is left out in comparing."""
_PICTURES = (
    "a9 ae 203c 2049 2122 2139 2194-2199 21a9-21aa 231a-231b 2328 23cf 23e9-23f3 23f8-23fa 24c2 25aa-25ab 25b6 25c0 "
    "25fb-25fe 2600-2604 260e 2611 2614-2615 2618 261d 2620 2622-2623 2626 262a 262e-262f 2638-263a 2640 2642 "
    "2648-2653 265f-2660 2663 2665-2666 2668 267b 267e-267f 2692-2697 2699 269b-269c 26a0-26a1 26a7 26aa-26ab "
    "26b0-26b1 26bd-26be 26c4-26c5 26c8 26ce-26cf 26d1 26d3-26d4 26e9-26ea 26f0-26f5 26f7-26fa 26fd 2702 2705 "
    "2708-270d 270f 2712 2714 2716 271d 2721 2728 2733-2734 2744 2747 274c 274e 2753-2755 2757 2763-2764 2795-2797 "
    "27a1 27b0 27bf 2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 3030 303d 3297 3299 1f004 1f02c-1f02f 1f094-1f09f "
    "1f0af-1f0b0 1f0c0 1f0cf-1f0d0 1f0f6-1f0ff 1f170-1f171 1f17e-1f17f 1f18e 1f191-1f19a 1f1ae-1f1e5 1f201-1f20f "
    "1f21a 1f22f 1f232-1f23a 1f23c-1f23f 1f249-1f25f 1f266-1f321 1f324-1f393 1f396-1f397 1f399-1f39b 1f39e-1f3f0 "
    "1f3f3-1f3f5 1f3f7-1f3fa 1f400-1f4fd 1f4ff-1f53d 1f549-1f54e 1f550-1f567 1f56f-1f570 1f573-1f57a 1f587 "
    "1f58a-1f58d 1f590 1f595-1f596 1f5a4-1f5a5 1f5a8 1f5b1-1f5b2 1f5bc 1f5c2-1f5c4 1f5d1-1f5d3 1f5dc-1f5de 1f5e1 "
    "1f5e3 1f5e8 1f5ef 1f5f3 1f5fa-1f64f 1f680-1f6c5 1f6cb-1f6d2 1f6d5-1f6e5 1f6e9 1f6eb-1f6f0 1f6f3-1f6ff "
    "1f7da-1f7ff 1f80c-1f80f 1f848-1f84f 1f85a-1f85f 1f888-1f88f 1f8ae-1f8af 1f8bc-1f8bf 1f8c2-1f8cf 1f8d9-1f8ff "
    "1f90c-1f93a 1f93c-1f945 1f947-1f9ff 1fa58-1fa5f 1fa6e-1faff 1fc00-1fffd "
)
"""Extended_Pictographic, of Unicode 17's emoji-data.txt."""
_PICTURE_PARTS = "23 2a 30-39 200d 20e3 fe0f 1f1e6-1f1ff 1f3fb-1f3ff 1f9b0-1f9b3 e0020-e007f"
"""Emoji_Component, of the same."""


@cache
def property_chars(name: str) -> Ranges | None:
    """The characters that have a property, as it stands behind `\\p`; None for one that is not known here."""
    kind, _, value = name.strip("{}").rpartition("=")
    plain = value.replace("_", "").replace(" ", "").replace("-", "").lower()
    if kind.replace("_", "").lower() in ("", "generalcategory", "gc"):
        category = _NAMES.get(plain, plain[:1].upper() + plain[1:])
        if category == "LC":
            return ranges(pair for one in ("Lu", "Ll", "Lt") for pair in _categories()[one])
        found = [pair for one, chars in _categories().items() if one.startswith(category) for pair in chars]
        if found and len(category) in (1, 2):
            return ranges(found)
    if kind:
        return None
    match plain:
        case "any":
            return ALL
        case "ascii":
            return ((0, 127),)
        case "assigned":
            return without(_categories()["Cn"])
        case "lowercase" | "lower":
            return _where(str.islower)
        case "uppercase" | "upper":
            return _where(str.isupper)
        case "extendedpictographic" | "extpict":
            return _read(_PICTURES)
        case "emojicomponent" | "ecomp":
            return _read(_PICTURE_PARTS)
    return None


@cache
def _categories() -> dict[str, Ranges]:
    found: dict[str, list[tuple[int, int]]] = {}
    began, last = 0, unicodedata.category("\0")
    for code in range(1, maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category != last:
            found.setdefault(last, []).append((began, code - 1))
            began, last = code, category
    found.setdefault(last, []).append((began, maxunicode))
    return {category: tuple(chars) for category, chars in found.items()}


def _where(holds: Callable[[str], bool]) -> Ranges:
    return ranges((code, code) for code in range(maxunicode + 1) if holds(chr(code)))


def _read(text: str) -> Ranges:
    """Ranges in hexadecimal."""
    ends = (part.split("-") for part in text.split())
    return ranges((int(pair[0], 16), int(pair[-1], 16)) for pair in ends)
