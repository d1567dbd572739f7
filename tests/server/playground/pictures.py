"""Make the pictures of docs/images, of a running server: `python -m tests.server.playground.pictures URL`."""

import sys
from typing import Any

from playwright.sync_api import Page, expect

from tests.places import ROOT
from tests.server.playground.browser import Watched, chromium, messages, say

IMAGES = ROOT / "docs" / "images"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SHORT_QUESTION = "Who was Ada Lovelace? Answer in two sentences."
QUESTION = "Explain recursion to a beginner, with a short Python example."


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
    page.get_by_label("temperature", exact=True).fill("1.2")
    page.get_by_label("seed", exact=True).fill("3")
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


def main() -> None:
    """Make them all."""
    IMAGES.mkdir(exist_ok=True)
    wanted = {
        "playground-light": (conversation, "light", WIDE),
        "playground-dark": (conversation, "dark", WIDE),
        "playground-tokens": (tokens, "light", WIDE),
        "playground-compare": (compared, "light", WIDE),
        "playground-server": (server, "dark", WIDE),
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
