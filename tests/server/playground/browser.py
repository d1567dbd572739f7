"""A real browser for the tests of the playground, and what no page may do in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.clocks import PATIENCE
from tests.server.fakes import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
LAN_HOST = "headrace.lan"
"""This machine by a name that is no secure origin over plain HTTP, as others of a network see it."""
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    f"--host-resolver-rules=MAP {LAN_HOST} 127.0.0.1",
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here (Debian's package of that name)")
PATIENCE_MS = PATIENCE * 1000
STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
"""What the page sets by itself in each request."""

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.violatedDirective} by ${event.blockedURI} at ${event.sourceFile}`);
});
"""

_NOTE_NOTICES = """
window.told = [];
new MutationObserver(() => {
  for (const { textContent: text } of document.querySelectorAll(".notice span")) {
    if (!told.includes(text)) told.push(text);
  }
}).observe(document, { childList: true, subtree: true, characterData: true });
"""
"""A notice stays for seconds, in which a busy machine may not look."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


class Watched:
    """A context whose pages may raise no error, violate no policy and ask no other origin."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.faults: list[str] = []
        self.refusals: list[int] = []
        """Statuses of the answers that were errors; the browser's console tells them too."""
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.add_init_script(_REPORT_VIOLATIONS)
        self.context.add_init_script(_NOTE_NOTICES)

    def page(self, fragment: str = "") -> Page:
        """A page of the playground, loaded."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", lambda request: self._see(request.url))
        page.on("response", lambda response: response.status >= 400 and self.refusals.append(response.status))
        page.goto(self.url + fragment)
        return page

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.faults.append(f"console: {text}")

    def _see(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"foreign request: {url}")


@contextmanager
def watched(browser: Browser, url: str, *, refusals: tuple[int, ...] = (), **options: Any) -> Iterator[Watched]:
    """A watched context, which is judged at its end. `refusals` are the only statuses of errors that may come."""
    watch = Watched(browser, url, **options)
    try:
        yield watch
    finally:
        watch.context.close()
    assert not watch.faults, watch.faults
    assert set(watch.refusals) <= set(refusals), watch.refusals


def say(page: Page, text: str) -> None:
    """Type a message and send it, once the model can answer; its answer has begun when this returns."""
    answers = page.locator("article.message.assistant")
    before = answers.count()
    page.get_by_label("Message", exact=True).fill(text)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(answers.nth(before)).to_be_attached()


def was_told(page: Page, text: str) -> None:
    """Wait until a notice has said so, be it gone again or not."""
    wait_until(lambda: any(text in told for told in page.evaluate("told")), PATIENCE)


def messages(page: Page) -> Any:
    """The messages that are shown."""
    return page.locator("article.message")


def last_text(page: Page) -> Any:
    """What the last message says."""
    return messages(page).last.locator(".content")


def done(page: Page) -> None:
    """Wait until what was asked for last is answered, and no answer is under way.

    What a click or key begins is there two frames later, so that the answer before it is not taken for its own.
    """
    page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    expect(messages(page).last).to_have_class("message assistant")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    expect(page.locator('[role="log"][aria-busy="true"]')).to_have_count(0)


def tab_to(page: Page, wanted: Any, most: int = 12, key: str = "Tab") -> None:
    """Go to an element by a key that leads from one to the next, in so many steps at most."""
    for _ in range(most):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press(key)
    expect(wanted).to_be_focused(timeout=1)


def shot(page: Page, path: Path) -> None:
    """A picture for people, written where it is wanted."""
    page.screenshot(path=str(path))
