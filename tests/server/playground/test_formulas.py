"""Formulas: where Markdown has them and where it has prices, and that what draws them makes nothing else."""

import gzip
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from server.playground.assets import load_assets
from tests.server.playground.browser import done, last_text, messages, needs_browser, say
from tests.server.playground.node import in_node, needs_node
from tests.server.playground.scripted import HOSTILE_FORMULAS

FOUND = """
const { Marked } = await load("../vendor/marked.js");
const { reading } = await load("text/delimiters.js");
const marked = new Marked({ gfm: true }, reading);
out = given.map((text) => {
  const found = [];
  marked.walkTokens(marked.lexer(text), (token) => {
    if (token.type === "formula") found.push((token.display ? "D " : "I ") + token.text);
  });
  return found;
});
"""


@needs_node
@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 or $10.",
        "$5-$10, US$7 and A$8",
        "$5 (US$) is not $5 (CA$)",
        "between $5 and 10$",
        "from $100 million to 200 million$",
        r"\$a$ b$",
        "`$a$` and ``\\(b\\)``",
        "```sh\n$$\necho $HOME\n$$\n```",
        "    $$a$$",
        "$HOME/bin:$PATH",
        "set $a and `$b`",
        "a $ b $ c",
        "$x\ny$",
        "$$",
        "$$$$",
        r"\\(a\\)",
        "$" + "x" * 3000 + "$",
        "$$\nnever closed",
        "\\[ never closed",
    ],
)
def test_what_is_no_formula_stays_text(text: str) -> None:
    assert in_node(FOUND, [text]) == [[]]


@needs_node
@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("$a$", ["I a"]),
        ("($a$), $b$.", ["I a", "I b"]),
        (r"$\$5 + x$", [r"I \$5 + x"]),
        (r"\(a\) and \[b\]", ["I a", "D b"]),
        ("words $$a$$ words", ["D a"]),
        ("$$\na\n$$", ["D a"]),
        ("words\n$$\na\n$$\nwords", ["D a"]),
        ("\\[\na \\\\ b\n\\]\n", ["D a \\\\ b"]),
        ("1. $a$\n   $$b$$\n2. c", ["I a", "D b"]),
        ("**$a_1$** and *x* $b_2$", ["I a_1", "I b_2"]),
        ("> $$a$$", ["D a"]),
        ("| f |\n|---|\n| $a$ |", ["I a"]),
        ("# $a$", ["I a"]),
        ("words\n$$\na\n=\nb\n$$", ["D a\n=\nb"]),
        ("$5$ apples, $2 x$ pears", ["I 5", "I 2 x"]),
    ],
)
def test_what_stands_between_clear_delimiters_is_a_formula(text: str, formulas: list[str]) -> None:
    assert in_node(FOUND, [text]) == [formulas]


OPENED = r"""
const { Marked } = await load("../vendor/marked.js");
const { reading } = await load("text/delimiters.js");
const marked = new Marked({ gfm: true }, reading);
out = given.map((text) => {
  const found = [];
  marked.walkTokens(marked.lexer(text), (token) => { if (token.type === "opened") found.push(token.text); });
  return found;
});
"""


@needs_node
@pytest.mark.parametrize(
    ("before", "opening", "body", "close"),
    [
        ("", "$$\n", r"f(x) = \{ x \mid x > 0 \} \\" + "\n= \\frac{1", "\n$$"),
        ("Words:\n\n", r"\[", r" a_{1} \, b \\ c", r"\]"),
        ("Words:\n", "$$\n", "a \\\\\n- b \\\\\n=", "\n$$"),
        ("so ", r"\(", r"\{a, b\} \; c", r"\)"),
        ("so ", "$$", r"\{a\} * b * c", "$$"),
        ("so ", "$", r"x \in \{1, 2", "$"),
        ("- ", "$$", r"\left\{ a", "$$"),
    ],
)
def test_what_has_begun_stays_as_it_is_written_until_it_ends(before: str, opening: str, body: str, close: str) -> None:
    """At every length that a stream shows it in, with no backslash eaten and nothing taken for a list or a heading."""
    first = len(body) if opening == "$" else body.index("\\") + 2
    texts = [before + opening + body[:length] for length in range(first, len(body) + 1)]
    found = in_node(OPENED, texts)
    assert found == [[(opening + body[:length]).strip()] for length in range(first, len(body) + 1)]
    whole = before + opening + body + close
    assert in_node(OPENED, [whole]) == [[]] and len(in_node(FOUND, [whole])[0]) == 1


@needs_node
@pytest.mark.parametrize(
    "text",
    [
        "$$ is slang, **and** so on",
        "It costs $5\\, or so",
        r"see \(the note",
        "$HOME\\bin `and` more",
        "$$a$$ and $b$",
        r"\[x\]: y",
        "$$\n" + "a \\\\ " * 600,
    ],
)
def test_what_has_not_begun_as_a_formula_is_read_as_ever(text: str) -> None:
    assert in_node(OPENED, [text]) == [[]]


@needs_node
def test_long_texts_full_of_openings_are_read_quickly() -> None:
    """Each opening looks but so far ahead: twice the text, twice the time, and no more than that."""
    script = """
    const { Marked } = await load("../vendor/marked.js");
    const { reading } = await load("text/delimiters.js");
    const marked = new Marked({ gfm: true }, reading);
    const least = (text) => Math.min(...[1, 2, 3].map(() => {
      const begun = performance.now();
      marked.lexer(text);
      return performance.now() - begun;
    }));
    out = given.map(([unit, count]) => [least(unit.repeat(count)), least(unit.repeat(8 * count))]);
    """
    units = [["$$ \n", 2000], ["\\[ ", 1000], ["a\n$$", 1000], ["a\n$$\\{", 1000], ["\\(\\{ ", 1000], ["$a\\{ ", 1000]]
    for (unit, _), (short, long) in zip(units, in_node(script, units), strict=True):
        assert long <= 40 * short + 50, f"{unit!r}: {short} ms and {long} ms"


def test_what_draws_formulas_is_no_part_of_the_first_view() -> None:
    page = gzip.decompress(load_assets().page.compressed or b"").decode()
    assert "app/main.js" in page
    assert "temml" not in page and "math.js" not in page and "math.css" not in page


@pytest.mark.slow
@needs_browser
def test_formulas_become_elements_and_prices_stay(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    say(page, "show")
    done(page)
    assert not any("temml" in url for url in asked), "an answer without formulas needs nothing that draws them"
    say(page, "formulas")
    done(page)
    content = last_text(page)
    expect(content.locator("math")).to_have_count(5)
    expect(content.locator("math.tml-display")).to_have_count(2)
    expect(content.locator("mfrac").first).to_be_visible()
    assert content.locator("math").first.evaluate("(math) => math.namespaceURI").endswith("MathML")
    assert content.locator("math").first.get_attribute("alttext") == "ax^2 + bx + c = 0"
    expect(content).to_contain_text("cost $5 or $10, $5-$10 or US$7")
    expect(content.locator("code.formula")).to_have_text([r"$\nonsense{x$", r"$$\frac{1$$"])
    fraction = content.locator("math.tml-display mfrac").first.bounding_box()
    word = content.locator("p").first.bounding_box()
    assert fraction and word and fraction["height"] > 25, "a fraction is two lines, one above the other"
    assert sum("temml.js" in url for url in asked) == 1


@pytest.mark.slow
@needs_browser
def test_no_formula_leads_elsewhere_or_lies_over_the_page(page: Page) -> None:
    say(page, "trap")
    done(page)
    content = last_text(page)
    expect(content.locator("math").first).to_be_attached()
    made: dict[str, Any] = content.evaluate(
        """(content) => {
          const all = [...content.querySelectorAll("*")];
          const box = content.getBoundingClientRect();
          const names = [...new Set(all.map((one) => one.localName))];
          const attributes = [...new Set(all.flatMap((one) => one.getAttributeNames()))];
          const seen = [...content.querySelectorAll("span.formula")].map((one) => one.getBoundingClientRect());
          const wide = seen.filter((one) => one.right > box.right + 2 || one.left < box.left - 2 || one.height > 600);
          const fixed = all.filter((one) => getComputedStyle(one).position === "fixed").length;
          return { names, attributes, wide: wide.length, fixed };
        }"""
    )
    forbidden = {"a", "img", "image", "script", "style", "iframe", "annotation-xml", "maction", "svg", "form"}
    assert not forbidden & set(made["names"]), made["names"]
    assert not {"href", "src", "id", "xlink:href", "actiontype"} & set(made["attributes"]), made["attributes"]
    assert not [name for name in made["attributes"] if name.startswith("on")]
    assert (made["wide"], made["fixed"]) == (0, 0)
    for written in (r"$\href{javascript:", r"$\raisebox{-9999em}", r"$\def\a", r"$\color{url("):
        assert written in HOSTILE_FORMULAS and content.locator("code.formula", has_text=written).count() == 1, written
    assert page.title() == "Headrace"
    expect(messages(page)).to_have_count(2)
