"""axe finds nothing to say about the page: in its states, light and dark, on a phone and on a wide screen."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from scripts import check_pages
from tests.clocks import PATIENCE
from tests.server.fakes import wait_until
from tests.server.playground.browser import messages, needs_browser, say, watched
from tests.server.playground.scripted import HALF_A_FORMULA, Scripted, running_scripted

pytestmark = [pytest.mark.slow, needs_browser]

PLACES = {"Settings": "Settings", "Format": "Settings", "Tools": "Settings", "Code": "Code"} | dict.fromkeys(
    ("Tokens", "Prompt", "Raw"), "Inspect"
)
"""By tab: what leads to it from the bar at a phone's foot."""
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def axe() -> str:
    if not check_pages.install():
        pytest.skip("axe-core comes from npm, which is missing or reaches no registry")
    return (check_pages.NODE / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with running_scripted() as running:
        yield running


def faults(page: Page, axe: str) -> list[str]:
    """What axe objects to, with the elements."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{one['id']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]]


def is_phone(page: Page) -> bool:
    """By the width: the bar at a phone's foot is read behind the first view, so that it may not be there yet."""
    size = page.viewport_size
    assert size is not None
    return size["width"] < 768


def tab(page: Page, name: str) -> None:
    """Open a tab of the inspector, which lies over the conversation on small screens."""
    if is_phone(page):
        page.get_by_role("navigation", name="Parts of the page").get_by_role("button", name=PLACES[name]).click()
    elif (opener := page.get_by_role("button", name="Open the inspector")).count():
        opener.click()
    page.get_by_role("tab", name=name).click()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()
    expect(messages(page).last.locator(".outcome")).to_be_visible()


def failed(page: Page) -> None:
    ask(page, "broken")
    expect(messages(page).last.get_by_role("alert")).to_be_visible()


def writing(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill("stall")
    page.get_by_role("button", name="Send").click()
    expect(messages(page).last).to_contain_text("First")


def stopped(page: Page) -> None:
    writing(page)
    page.get_by_role("button", name="Stop").click()
    expect(messages(page).last.get_by_text("Stopped")).to_be_visible()


def editing(page: Page) -> None:
    ask(page, "hello")
    messages(page).last.get_by_role("button", name="Edit").click()


def deleted(page: Page) -> None:
    ask(page, "hello")
    messages(page).last.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo")).to_be_visible()


def tokens(page: Page) -> None:
    tab(page, "Settings")
    page.get_by_label("logprobs", exact=True).select_option("true")
    if is_phone(page):
        page.get_by_role("button", name="Chat", exact=True).click()
    ask(page, "rivers")
    tab(page, "Tokens")
    page.locator(".token-text button").nth(1).focus()
    expect(page.get_by_role("region", name="Alternatives")).to_be_visible()


def compared(page: Page) -> None:
    if is_phone(page):
        page.get_by_role("button", name="Open the history").click()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("region", name="Column 2")).to_be_visible()
    ask(page, "hello")


def in_tab(name: str) -> Callable[[Page], None]:
    def open_it(page: Page) -> None:
        ask(page, "hello")
        tab(page, name)
        page.wait_for_timeout(300)

    return open_it


def format_of_a_schema(page: Page) -> None:
    tab(page, "Format")
    page.get_by_label("The answer is").select_option("json_schema")
    expect(page.get_by_text("The server takes it")).to_be_visible()


def code(page: Page) -> None:
    ask(page, "hello")
    tab(page, "Code")
    page.get_by_label("A curl command or a JSON body").fill("curl x -d '{'")
    expect(page.get_by_role("alert")).to_be_visible()


def formulas(page: Page) -> None:
    ask(page, "formulas")
    expect(messages(page).last.locator("math").first).to_be_attached()


def wide_formulas(page: Page) -> None:
    ask(page, "wide")
    last = messages(page).last
    expect(last.locator("math")).to_have_count(6)
    if is_phone(page):
        expect(last.locator('span.formula[tabindex="0"]')).to_have_count(6)
        formula = last.locator("span.formula").first
        formula.focus()
        page.keyboard.press("ArrowRight")
        wait_until(lambda: page.evaluate("document.activeElement.scrollLeft > 0"), PATIENCE)


def half_a_formula(page: Page) -> None:
    ask(page, "opened")
    expect(messages(page).last.locator("code.formula")).to_have_text(HALF_A_FORMULA)


STATES: dict[str, Callable[[Page], None]] = {
    "empty": lambda page: page.wait_for_timeout(300),
    "markdown": lambda page: ask(page, "show"),
    "formulas": formulas,
    "wide formulas": wide_formulas,
    "half a formula": half_a_formula,
    "thought": lambda page: ask(page, "think"),
    "calls": lambda page: ask(page, "call"),
    "writing": writing,
    "stopped": stopped,
    "failed": failed,
    "editing": editing,
    "deleted": deleted,
    "settings": lambda page: tab(page, "Settings"),
    "format": format_of_a_schema,
    "tools": lambda page: tab(page, "Tools"),
    "tokens": tokens,
    "prompt": in_tab("Prompt"),
    "raw": in_tab("Raw"),
    "code": code,
    "compared": compared,
    "models": lambda page: page.locator(".model-button").click(),
    "palette": lambda page: page.keyboard.press("Control+k"),
    "server": lambda page: page.locator(".server-chip").click(),
}


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_in_any_state(browser: Browser, server: Scripted, axe: str, size: dict[str, int]) -> None:
    found: dict[str, list[str]] = {}
    for name, reach in STATES.items():
        # Without motion, so that no colour is measured on its way to another.
        with watched(browser, server.url, viewport=size, reduced_motion="reduce") as watch:
            page = watch.page()
            expect(page.get_by_label("Message", exact=True)).to_be_visible()
            expect(page.locator(".model-button .dot.ready")).to_be_visible()
            reach(page)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                if wrong := faults(page, axe):
                    found.setdefault(name, []).extend(f"{scheme}: {one}" for one in wrong)
            if page.evaluate("document.documentElement.scrollWidth") > size["width"]:
                found.setdefault(name, []).append("the page is wider than the screen")
    assert not found, "\n".join(f"{name}: {one}" for name, wrong in found.items() for one in wrong)


def test_streaming_text_stands_in_no_live_region_and_the_end_is_told_once(page: Page, scripted: Scripted) -> None:
    say(page, "stall")
    expect(page.get_by_role("status").first).to_have_text("Generating")
    log = page.get_by_role("log")
    expect(log).to_have_attribute("aria-busy", "true")
    expect(log).to_have_attribute("aria-live", "off")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    scripted.gate.set()
    expect(page.get_by_role("status").first).to_have_text("Answer complete, 1 token")
    expect(log).to_have_attribute("aria-busy", "false")
