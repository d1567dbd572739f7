"""Whole ways through the page by keys alone: everything is reached in few steps, and the focus is never lost."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.playground.browser import done, last_text, messages, needs_browser, tab_to
from tests.server.playground.scripted import Scripted
from tests.server.playground.test_code_tab import PASTED

pytestmark = [pytest.mark.slow, needs_browser]


def type_and_send(page: Page, text: str) -> None:
    """From wherever the focus is."""
    page.keyboard.press("Alt+ArrowDown")
    for _ in range(6):
        if page.get_by_label("Message", exact=True).evaluate("one => one === document.activeElement"):
            break
        page.keyboard.press("Alt+ArrowDown")
    before = messages(page).count()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_count(before + 2)
    done(page)


def command(page: Page, words: str) -> None:
    """Do what is found by these words."""
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox", name="Search")).to_be_focused()
    page.keyboard.type(words)
    page.keyboard.press("Enter")


@pytest.fixture
def ready(page: Page) -> Page:
    """A page whose model can answer."""
    expect(page.locator(".model-button .dot.ready")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    return page


def test_an_answer_is_forked_at_a_token(ready: Page, scripted: Scripted) -> None:
    page = ready
    page.keyboard.press("Alt+4")
    tab_to(page, page.get_by_role("button", name="Ask for it from now on"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("tabpanel")).to_be_focused()  # the button is gone
    type_and_send(page, "rivers")
    tab_to(page, page.locator(".token-text button").first)
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token-text button").nth(1)).to_be_focused()
    page.keyboard.press("Tab")  # past all other tokens
    alternatives = page.get_by_role("region", name="Alternatives")
    expect(alternatives.get_by_role("button", name="Rhine")).to_be_focused()
    page.keyboard.press("Enter")
    expect(last_text(page)).to_have_text("The Rhine and on.")
    expect(page.locator(".token-text button").nth(1)).to_be_focused()
    expect(page.locator(".token-text button").nth(1)).to_have_text("Rhine")
    for key, at in (("End", 1), ("Home", 0), ("ArrowDown", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(page.locator(".token-text button").nth(at)).to_be_focused()


def test_formats_and_tools_are_set_and_a_call_is_answered(ready: Page, scripted: Scripted) -> None:
    page = ready
    page.keyboard.press("Alt+2")
    tab_to(page, page.get_by_label("The answer is"))
    page.keyboard.press("j")  # further letters count only if they come within a second
    expect(page.get_by_label("The answer is")).to_have_value("json_schema")
    expect(page.get_by_text("The server takes it")).to_be_visible()
    tab_to(page, page.get_by_role("textbox", name="JSON Schema"), most=2)
    page.keyboard.press("Control+a")
    page.keyboard.type('{"type": "integer"}')
    page.keyboard.press("Alt+3")
    expect(page.get_by_role("tabpanel", name="Tools")).to_be_focused()  # what was typed into is no longer shown
    tab_to(page, page.get_by_role("button", name="Begin with an example"), most=5)
    page.keyboard.press("Enter")
    expect(page.get_by_text("The server takes it")).to_be_visible()
    tab_to(page, page.get_by_label("tool_choice", exact=True), most=4)
    page.keyboard.type("required")
    tab_to(page, page.get_by_role("button", name="Reset tool_choice"), key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("tool_choice", exact=True)).to_be_focused()
    type_and_send(page, "call")
    sent = scripted.requests[-1]
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "integer"} and "tool_choice" not in sent
    page.keyboard.press("Alt+ArrowUp")
    results = page.get_by_label("Result")
    tab_to(page, results.first)
    page.keyboard.type("21")
    tab_to(page, results.last, most=3)
    page.keyboard.type("noon")
    tab_to(page, page.get_by_role("button", name="Send results"), most=2)
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_count(5)
    expect(messages(page).last).to_be_focused()
    done(page)
    assert [one["content"] for one in scripted.requests[-1]["messages"][2:]] == ["21", "noon"]


def test_a_command_is_pasted_and_files_go_out_and_in(ready: Page, scripted: Scripted, tmp_path: Path) -> None:
    page = ready
    page.on("filechooser", lambda _: None)  # from now on, so that none comes before the browser is asked to tell of it
    page.keyboard.press("Alt+7")
    tab_to(page, page.get_by_label("A curl command or a JSON body"))
    page.keyboard.insert_text(PASTED)
    tab_to(page, page.get_by_role("button", name="Open as a conversation"), most=2)
    page.keyboard.press("Enter")
    expect(messages(page)).to_have_count(2)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.press("Enter")  # runs what stands there
    expect(messages(page)).to_have_count(3)
    done(page)
    assert scripted.requests[-1]["temperature"] == 0.25
    command(page, "share")
    dialog = page.get_by_role("dialog", name="Share and keep")
    tab_to(page, dialog.get_by_role("button", name="Export this conversation"))
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    download.value.save_as(tmp_path / "file.json")
    assert len(json.loads((tmp_path / "file.json").read_text())["talks"]) == 1
    tab_to(page, dialog.get_by_role("button", name="Import a file"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "file.json")
    expect(dialog).to_have_count(0)
    expect(page.locator(".entry")).to_have_count(2)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_columns_come_and_go_and_the_box_for_messages_keeps_the_focus(ready: Page) -> None:
    page = ready
    message = page.get_by_label("Message", exact=True)
    columns = page.locator("section.column")
    tab_to(page, page.get_by_role("button", name="Compare: add a column"), most=30, key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(columns).to_have_count(2)
    expect(message).to_be_focused()
    command(page, "compare")
    expect(columns).to_have_count(3)
    expect(message).to_be_focused()
    tab_to(page, page.get_by_role("button", name="Column", exact=True), key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(columns).to_have_count(4)
    expect(message).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Hello there, friend.")).to_have_count(4)
    done(page)
    tab_to(page, page.get_by_role("button", name="Remove column 4"), most=40, key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(columns).to_have_count(3)
    expect(message).to_be_focused()
