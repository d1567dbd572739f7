"""The header that names what was left out: ASCII, bounded, and to be taken apart again."""

from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from engine.constraint import Relaxed
from server.answer.relaxed import MAX_HEADER_CHARS, relaxed_header

NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)


def test_as_it_is_documented() -> None:
    assert relaxed_header(Relaxed.of(["/tools/0/function/parameters/$defs/a~1b/pattern"])) == (
        b"/tools/0/function/parameters/$defs/a~1b/pattern"
    )
    assert relaxed_header(Relaxed.of(["/a b,c/\u00e9\n%", "/d"])) == b"/a%20b%2Cc/%C3%A9%0A%25, /d"
    assert relaxed_header(Relaxed(5, ("/a", "/b"))) == b"/a, /b, +3 more"


@given(st.lists(NAMES, min_size=1, max_size=150))
def test_whatever_names_it_holds(names: list[str]) -> None:
    pointers = [f"/{name}/pattern" for name in names]
    value = relaxed_header(Relaxed.of(pointers))
    assert len(value) <= MAX_HEADER_CHARS + 20 and all(32 <= byte < 127 for byte in value)
    *shown, last = value.decode().split(", ")
    if not last.startswith("+"):
        shown.append(last)
    else:
        assert last == f"+{len(pointers) - len(shown)} more"
    assert [unquote(pointer) for pointer in shown] == pointers[: len(shown)]
    assert len(shown) == len(pointers) or last.startswith("+")
