"""What becomes of `format`."""

from engine.grammar.schema.faults import Unfollowable
from engine.grammar.schema.values import Schema

_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_USER = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*"
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)"
_AUTHORITY = rf"//(?:{_USER}@)?{_HOST}(?::[0-9]*)?"
_SEGMENT_WITHOUT_COLON = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})+"
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_IRI_CHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?\u00A0-\uD7FF\uF900-\uFDCF\uFDF0-\uFFEF]|%[0-9A-Fa-f]{2})"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
"""From 0001 on: RFC 3339 has a year 0000, which Python's dates and many others have not."""
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    f"|{_LEAP_YEAR}-02-29)"
)
_OFFSET = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FRACTION = r"(?:\.[0-9]{1,9})?"
_TIME = f"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]{_FRACTION}{_OFFSET}"
_LEAP_SECOND = f"23:59:60{_FRACTION}[Zz]"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_LAST_32 = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join(
    [f"(?:{_GROUP}:){{6}}{_LAST_32}", f"::(?:{_GROUP}:){{5}}{_LAST_32}"]
    + [f"(?:(?:{_GROUP}:){{0,{4 - left}}}{_GROUP})?::(?:{_GROUP}:){{{left}}}{_LAST_32}" for left in (4, 3, 2, 1, 0)]
    + [f"(?:(?:{_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}", f"(?:(?:{_GROUP}:){{0,6}}{_GROUP})?::"]
)
"""RFC 3986, section 3.2.2, which says in one rule each how many groups may stand on either side of `::`."""
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
MAX_HOSTNAME = 253
"""Characters of a host's name (RFC 1123, section 2.1, and RFC 1035, section 2.3.4, whose 255 octets count two more)."""
_ATOM = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+"
_HEX = "[0-9A-Fa-f]"
_TIME_PARTS = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DATE_PARTS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"

PATTERNS = {
    # RFC 3339, appendix A
    "duration": f"^P(?:{_DATE_PARTS}(?:T{_TIME_PARTS})?|T{_TIME_PARTS}|[0-9]+W)$",
    # RFC 5321, section 4.1.2, without quoted local parts and comments
    "email": rf"^{_ATOM}(?:\.{_ATOM})*@(?:{_HOSTNAME}|\[{_IPV4}\])$",
    "hostname": f"^{_HOSTNAME}$",  # RFC 1123, section 2.1
    "ipv4": f"^{_IPV4}$",  # RFC 2673, section 3.2
    "ipv6": f"^(?:{_IPV6})$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",  # RFC 9562, section 4
    # RFC 3986, section 3
    "uri": (rf"^[A-Za-z][A-Za-z0-9+\-.]*:(?:{_AUTHORITY}(?:/{_PCHAR}*)*|(?:/?{_PCHAR}+(?:/{_PCHAR}*)*|/)?){_TAIL}$"),
    # RFC 3339, section 5.6, and appendix C for leap years; a leap second is at the end of June or December, in UTC
    "date": f"^{_DATE}$",
    "time": f"^(?:{_TIME}|{_LEAP_SECOND})$",
    "date-time": f"^(?:{_DATE}[Tt]{_TIME}|{_YEAR}-(?:06-30|12-31)[Tt]{_LEAP_SECOND})$",
    # RFC 3986, section 4.1: URI / relative-ref
    "uri-reference": (
        rf"^(?:(?:[A-Za-z][A-Za-z0-9+\-.]*:)?{_AUTHORITY}(?:/{_PCHAR}*)*"
        rf"|[A-Za-z][A-Za-z0-9+\-.]*:(?:/?{_PCHAR}+(?:/{_PCHAR}*)*|/)?"
        rf"|/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?|{_SEGMENT_WITHOUT_COLON}(?:/{_PCHAR}*)*|){_TAIL}$"
    ),
    # RFC 3987, section 2.2, without its planes above the first and with authority and path as one run of characters
    "iri": rf"^[A-Za-z][A-Za-z0-9+\-.]*:{_IRI_CHAR}*(?:#{_IRI_CHAR}*)?$",
    "json-pointer": f"^{_POINTER}$",  # RFC 6901, section 3
    "relative-json-pointer": rf"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
}

SHAPES = {
    "date-time": r"^\d{4}-\d\d-\d\d[Tt ]",
    "time": r"^\d\d:\d\d:\d\d",
    "date": r"^\d{4}-\d\d-\d\d$",
    "duration": "^P",
    "email": "@",
    "hostname": r"^[A-Za-z0-9.\-]*$",
    "ipv4": r"^[0-9.]*$",
    "ipv6": r"^[0-9A-Fa-f:.]*$",
    "uuid": r"^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$",
    "uri": r"^[A-Za-z][A-Za-z0-9+\-.]*:",
}
"""What is surely not of a format: text in which its shape is not found."""

REFUSED = frozenset({"idn-email", "idn-hostname", "iri-reference", "uri-template", "regex"})
"""Formats of the standard that nothing here can hold an answer to. Any other name is an annotation, as the standard
says of names it does not define (JSON Schema 2020-12 validation, section 7.2.3)."""


def said_format(name: str, at: str) -> Schema:
    """The `format` of a schema at a pointer as a pattern; nothing where it is a remark. Raises `Unfollowable`."""
    if name in REFUSED:
        raise Unfollowable(at, "format", f"{name!r} is not supported")
    length = {"maxLength": MAX_HOSTNAME} if name == "hostname" else {}
    return {"pattern": PATTERNS[name], **length} if name in PATTERNS else {}
