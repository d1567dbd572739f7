"""Make the pictures of docs/images, of a running server: `python -m tests.server.playground.pictures URL`."""

import json
import sys
from typing import Any

from playwright.sync_api import Page, expect

from tests.places import ROOT
from tests.server.playground.browser import Watched, chromium, messages, say

IMAGES = ROOT / "docs" / "images"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SHORT_QUESTION = "Who was Ada Lovelace? Answer in two sentences."
QUESTION = "Explain recursion to a beginner, with a short Python example."

CODE = (
    "A `Counter` does it in one pass over the text:\n\n```python\nfrom collections import Counter\nimport re\n\n\n"
    'def count_words(text: str) -> Counter[str]:\n    """How often each word stands in a text."""\n'
    '    return Counter(re.findall(r"\\w+", text.lower()))\n\n\n'
    'counts = count_words("The sea, the sky, the sea again")\nfor word, count in counts.most_common(2):\n'
    '    print(f"{word}: {count}")  # the: 3, sea: 2\n```\n\n'
    "| Step | What it does |\n| --- | --- |\n| `lower()` | *The* and *the* are one word |\n"
    "| `findall` | leaves out commas and spaces |\n"
)
FORMULAS = (
    "From **completing the square**. Divide $ax^2 + bx + c = 0$ by $a \\neq 0$ and add what is missing:\n\n"
    "$$\nx^2 + \\frac{b}{a}x + \\left(\\frac{b}{2a}\\right)^2 = \\left(\\frac{b}{2a}\\right)^2 - \\frac{c}{a}\n$$\n\n"
    "The left side is a square now, so with the discriminant $D = b^2 - 4ac$\n\n"
    "$$\n\\left(x + \\frac{b}{2a}\\right)^2 = \\frac{D}{4a^2}\n\\quad\\Longrightarrow\\quad\n"
    "x_{1,2} = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}\n$$\n\n"
    "- If $D > 0$ there are two real roots, if $D = 0$ one.\n- Their sum is $x_1 + x_2 = -\\tfrac{b}{a}$, their "
    "product $x_1 x_2 = \\tfrac{c}{a}$.\n\nA book on it costs $5 or $10: prices stay prices.\n"
)


def answered(page: Page) -> None:
    """Wait for the figures of the last answers."""
    for column in page.locator("section.column").all():
        expect(column.locator("article").last.locator("dl")).to_be_visible(timeout=600_000)
    page.wait_for_timeout(2500)


def ask(page: Page, text: str, **params: Any) -> None:
    """Set parameters, and ask."""
    for name, value in params.items():
        page.get_by_label(name, exact=True).fill(str(value))
    say(page, text)


def conversation(page: Page) -> None:
    """A conversation beside the parameters."""
    ask(page, SHORT_QUESTION, max_tokens=200, seed=7)
    answered(page)
    say(page, QUESTION)
    page.wait_for_timeout(500)
    answered(page)


def tokens(page: Page) -> None:
    """An answer by its tokens."""
    page.get_by_role("button", name="See how sure it is").click()
    answered(page)
    page.get_by_role("tab", name="Tokens").click()
    page.locator(".token-text .step-3, .token-text .step-4").first.hover()


def compared(page: Page) -> None:
    """Two temperatures side by side, with their differences."""
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("temperature", exact=True).fill("0.6")
    page.get_by_label("seed", exact=True).fill("3")
    page.get_by_label("max_tokens", exact=True).fill("120")
    page.get_by_label("Answer in turn").check()
    say(page, "Write two sentences about the sea.")
    answered(page)
    page.get_by_role("button", name="Differences").click()


def server(page: Page) -> None:
    """The server at work."""
    for _ in range(2):
        page.get_by_role("button", name="Compare").click()
    say(page, "Write a long story about a lighthouse.")
    page.wait_for_timeout(14_000)
    page.locator(".server-chip").click()
    page.wait_for_timeout(6000)


def opened(page: Page, question: str, answer: str) -> None:
    """A conversation that is pasted, since a small model's answers are not worth a picture of code or formulas."""
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("A curl command or a JSON body").fill(json.dumps({"messages": said, "temperature": 0.3}))
    page.get_by_role("button", name="Open as a conversation").click()
    expect(messages(page)).to_have_count(2)
    page.get_by_role("button", name="Dismiss").click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)


def code(page: Page) -> None:
    """Code in an answer, and the request as a program."""
    opened(page, "Count the words of a text in Python, and show how it is used.", CODE)
    page.locator(".panel").evaluate("(element) => element.scrollTo(0, 0)")


def formulas(page: Page) -> None:
    """Formulas in an answer, and the prompt as the model reads it."""
    opened(page, "Where does the quadratic formula come from?", FORMULAS)
    page.get_by_role("tab", name="Prompt").click()
    expect(page.locator(".rendered")).to_be_visible()
    page.wait_for_timeout(1000)


def main() -> None:
    """Make them all."""
    IMAGES.mkdir(exist_ok=True)
    wanted = {
        "playground-light": (conversation, "light", WIDE),
        "playground-dark": (conversation, "dark", WIDE),
        "playground-tokens": (tokens, "light", WIDE),
        "playground-compare": (compared, "light", WIDE),
        "playground-server": (server, "dark", WIDE),
        "playground-code": (code, "dark", WIDE),
        "playground-math": (formulas, "light", WIDE),
        "playground-phone": (None, "light", PHONE),
    }
    with chromium() as browser:
        for name, (play, scheme, size) in wanted.items():
            if len(sys.argv) > 2 and name not in sys.argv[2:]:
                continue
            watch = Watched(browser, sys.argv[1], color_scheme=scheme, viewport=size)
            page = watch.page()
            expect(page.locator(".model-button .dot.ready")).to_be_visible()
            if play is None:
                page.get_by_label("Message", exact=True).fill(SHORT_QUESTION)
                page.get_by_role("button", name="Send").click()
                expect(messages(page).last.locator("dl")).to_be_visible(timeout=600_000)
                page.wait_for_timeout(500)
            else:
                play(page)
            page.screenshot(path=str(IMAGES / f"{name}.png"))
            watch.context.close()


if __name__ == "__main__":
    main()
