"""The playground over plain HTTP from another machine, where a browser leaves out what it keeps for secure origins, and
below a proxy's path."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.playground.browser import (
    LAN_HOST,
    Watched,
    done,
    last_text,
    messages,
    needs_browser,
    say,
    was_told,
    watched,
)
from tests.server.playground.scripted import Scripted, running_scripted
from tests.server.playground.test_keeping import address_of, kept

pytestmark = [pytest.mark.slow, needs_browser]


def address(scripted: Scripted) -> str:
    return f"http://{LAN_HOST}:{scripted.port}/"


def pasted(page: Page) -> str:
    """What the clipboard holds, by the keyboard, since no script may read it."""
    expect(page.get_by_role("dialog")).to_have_count(0)  # one that closes late takes the focus back
    box = page.get_by_label("Message", exact=True)
    box.fill("")
    box.focus()
    page.keyboard.press("Control+v")
    expect(box).not_to_have_value("")
    text = str(box.input_value())
    box.fill("")
    return text


def insecure(watch: Watched) -> Page:
    """A page that has none of what secure origins have."""
    page = watch.page()
    lacking = "[isSecureContext, typeof navigator.clipboard, typeof crypto.randomUUID, typeof crypto.subtle]"
    assert page.evaluate(lacking) == [False, "undefined", "undefined", "undefined"]
    return page


def test_a_conversation_is_had_copied_kept_and_taken_along(
    browser: Browser, scripted: Scripted, tmp_path: Path
) -> None:
    with watched(browser, address(scripted)) as watch:
        page = insecure(watch)
        say(page, "show")
        done(page)
        last_text(page).get_by_role("button", name="Copy code").click()
        expect(last_text(page).get_by_role("button", name="Copied")).to_be_visible()
        assert pasted(page).startswith("def fib(n):\n    a, b = 0, 1\n")
        messages(page).first.hover()
        messages(page).first.get_by_role("button", name="Copy message").click()
        assert pasted(page) == "show"
        page.get_by_role("tab", name="Code").click()
        region = page.get_by_role("region", name="The request as code,")
        expect(region).to_contain_text(address(scripted))
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_role("button", name="Copy a link").click()
        was_told(page, "Link copied")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export this conversation").click()
        download.value.save_as(tmp_path / "file.json")
        page.keyboard.press("Escape")
        link = pasted(page)
        assert link.startswith(address(scripted))
        page.reload()
        expect(messages(page)).to_have_count(2)
    with watched(browser, address(scripted)) as watch:
        page = watch.page(link.removeprefix(address(scripted)))
        expect(messages(page)).to_have_count(2)
    with watched(browser, address(scripted)) as watch:
        page = insecure(watch)
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_label("File to import").set_input_files(tmp_path / "file.json")
        expect(messages(page)).to_have_count(2)
        expect(last_text(page).get_by_role("heading", name="Fibonacci")).to_be_visible()


def test_branches_columns_and_two_tabs_work_there_too(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, address(scripted)) as watch:
        one = insecure(watch)
        say(one, "hello")
        done(one)
        one.get_by_role("button", name="Answer again").click()
        expect(one.get_by_text("2 of 2")).to_be_visible()
        done(one)
        kept(one, lambda found: [message["state"] for message in found] == ["done"] * 3)
        two = watch.page(address_of(one))
        expect(messages(two)).to_have_count(2)
        say(two, "more")
        expect(messages(one)).to_have_count(4)
        one.get_by_role("button", name="Compare").click()
        expect(one.locator("section.column")).to_have_count(2)


def test_it_works_below_a_path_with_a_key(browser: Browser, tmp_path: Path) -> None:
    """Nothing is asked for outside of the path; `watched` would say so."""
    with (
        running_scripted(prefix="/models/ours", key="secret") as server,
        watched(browser, server.url, refusals=(401,)) as watch,
    ):
        page = watch.page()
        page.get_by_role("textbox", name="API key").fill("secret")
        page.keyboard.press("Enter")
        say(page, "formulas")
        done(page)
        expect(last_text(page).locator("math").first).to_be_attached()
        for tab in ("Settings", "Format", "Tools", "Tokens", "Prompt", "Raw", "Code"):
            page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("region", name="The request as code,")).to_contain_text(f"{server.url}v1")
        expect(page.locator(".server-chip")).to_contain_text("running")
        kept(page, lambda found: [message["state"] for message in found] == ["done"] * 2)
        page.reload()
        expect(messages(page)).to_have_count(2)
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_role("button", name="Copy a link").click()
        was_told(page, "Link copied")
        assert page.evaluate("window.copied").startswith(f"{server.url}#share=")
