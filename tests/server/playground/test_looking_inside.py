"""Comparing, and looking into what happened: tokens, prompts, what crossed the wire, the server."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.clocks import PATIENCE
from tests.server.fakes import wait_until
from tests.server.playground.browser import done, last_text, messages, needs_browser, say, watched
from tests.server.playground.scripted import Scripted

pytestmark = [pytest.mark.slow, needs_browser]


def test_columns_are_asked_the_same_each_with_its_settings(page: Page, scripted: Scripted) -> None:
    page.get_by_role("button", name="Compare").click()
    columns = page.locator("section.column")
    expect(columns).to_have_count(2)
    columns.nth(1).get_by_role("button", name="large-model").click()
    page.get_by_role("button", name="scripted/small").click()
    page.get_by_label("temperature", exact=True).fill("1.5")
    expect(columns.nth(1).locator("header").first).to_contain_text("temperature 1.5")
    say(page, "one")
    for column in columns.all():
        expect(column.locator("article").last.locator(".content")).to_have_text("You said: one")
        expect(column.locator("article").last.locator("dl")).to_contain_text("First token")
    sent = sorted(scripted.requests, key=lambda body: body.get("temperature", 0))
    assert [body.get("temperature") for body in sent] == [None, 1.5]
    assert [body.get("model") for body in sent] == [None, "scripted/small"]
    page.wait_for_timeout(1500)  # it is saved within a second
    page.reload()
    expect(columns).to_have_count(2)
    expect(columns.nth(1).locator("header").first).to_contain_text("temperature 1.5")
    page.get_by_role("button", name="Remove column 1").click()
    expect(columns).to_have_count(1)
    expect(page.get_by_role("button", name="scripted/small")).to_be_visible()


def test_columns_answer_in_turn_where_that_is_wanted(page: Page, scripted: Scripted) -> None:
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Columns that share a device slow each other.")).to_be_visible()
    page.get_by_label("Answer in turn").check()
    say(page, "silence")
    wait_until(lambda: len(scripted.requests) == 1, PATIENCE)
    page.wait_for_timeout(300)
    assert len(scripted.requests) == 1, "the second waits for the first"
    scripted.gate.set()
    expect(page.get_by_text("At last.")).to_have_count(2)
    assert len(scripted.requests) == 2


def test_differences_are_shown_word_by_word(page: Page) -> None:
    say(page, "one")
    done(page)
    page.get_by_role("button", name="Compare").click()
    second = page.locator("section.column").nth(1)
    second.locator("article").last.get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the message").fill("You wrote: one thing")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(second.locator("dl")).to_have_count(0)  # the figures are none of a text that was typed
    page.get_by_role("button", name="Differences").click()
    expect(second.locator("del")).to_have_text("said")
    expect(second.locator("ins").first).to_have_text("wrote")
    expect(second.locator("ins").last).to_have_text(" thing")


def test_an_answer_forks_at_a_token(page: Page, scripted: Scripted) -> None:
    page.get_by_role("tab", name="Tokens").click()
    page.get_by_role("button", name="Ask for it from now on").click()
    say(page, "rivers")
    expect(last_text(page)).to_have_text("The Danube is long.")
    assert scripted.requests[-1]["logprobs"] is True and scripted.requests[-1]["top_logprobs"] == 5
    tokens = page.locator(".token-text button")
    expect(tokens).to_have_count(5)
    expect(tokens.nth(0)).to_have_class("token step-0")
    expect(tokens.nth(1)).to_have_class("token step-4")
    tokens.nth(1).focus()
    alternatives = page.get_by_role("region", name="Alternatives")
    expect(alternatives).to_contain_text("40.7 %")
    alternatives.get_by_role("button", name="Rhine").click()
    expect(last_text(page)).to_have_text("The Rhine and on.")
    request = scripted.requests[-1]
    assert request["messages"][-1] == {"role": "assistant", "content": "The Rhine"}
    assert request["continue_final_message"] is True
    expect(page.get_by_text("2 of 2")).to_be_visible()
    page.get_by_role("button", name="Version before").click()
    expect(last_text(page)).to_have_text("The Danube is long.")


def test_the_prompt_is_shown_as_the_model_reads_it(page: Page) -> None:
    say(page, "hello")
    done(page)
    page.get_by_role("tab", name="Prompt").click()
    rendered = page.get_by_role("region", name="Rendered prompt")
    expect(rendered.locator(".control").first).to_have_text("<|im_start|>")
    said = "3 tokens; the prefix cache holds the first 2 now, and the answer found 16 there"
    expect(page.get_by_text(said)).to_be_visible()
    expect(rendered.locator(".cached")).to_have_count(2)
    expect(rendered.locator(".cached").last).to_have_text("hello")
    page.get_by_role("button", name="Ids").click()
    expect(rendered.locator("small").first).to_have_text("0")


def test_what_crossed_the_wire_is_shown(page: Page) -> None:
    page.get_by_role("tab", name="Raw").click()
    page.get_by_label("Message", exact=True).fill("hello")
    expect(page.get_by_role("region", name="The next request")).to_contain_text('"content": "hello"')
    say(page, "hello")
    done(page)
    expect(page.get_by_role("region", name="Request", exact=True)).to_contain_text('"include_usage": true')
    expect(page.get_by_role("region", name="Headers of the answer")).to_contain_text("x-request-id: req-scripted")
    expect(page.locator("table.events")).to_contain_text("[DONE]")
    expect(page.get_by_text("7 events")).to_be_visible()


def test_the_server_is_seen_at_work(page: Page, scripted: Scripted) -> None:
    chip = page.locator(".server-chip")
    expect(chip).to_contain_text("2 running · 1 waiting · KV 40 %")
    chip.click()
    dialog = page.get_by_role("dialog", name="Server")
    expect(dialog).to_contain_text("tok/s")
    expect(dialog.get_by_role("row", name="scripted/large-model")).to_contain_text("29 %")
    expect(dialog.get_by_role("img", name="Tokens a second")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(chip).to_be_focused()


def test_keys_open_tabs_and_panes_and_walk_through_messages(page: Page) -> None:
    say(page, "hello")
    expect(messages(page)).to_have_count(2)  # an answer that comes later would be the last one
    done(page)
    page.keyboard.press("Alt+6")
    expect(page.get_by_role("tab", name="Raw")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Control+.")
    expect(page.get_by_role("tab", name="Raw")).to_have_count(0)
    page.keyboard.press("Control+b")
    expect(page.get_by_label("Conversations")).to_have_count(0)
    page.keyboard.press("Alt+ArrowUp")
    expect(messages(page).last).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect(messages(page).first).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(messages(page)).to_have_count(0)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_the_focus_stays_with_the_message_whatever_keys_do_to_it(page: Page) -> None:
    """What had the focus is gone each time; from the top of the page the way back would be some thirty keys long."""

    def press(name: str) -> None:
        button = page.locator("article:focus-within").get_by_role("button", name=name, exact=True)
        button.focus()
        page.keyboard.press("Enter")

    say(page, "hello")
    done(page)
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    press("Edit")
    expect(page.get_by_label("Text of the message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(messages(page).first).to_be_focused()
    press("Edit")
    page.keyboard.type("hello again")
    page.keyboard.press("Control+Enter")
    expect(messages(page).first).to_be_focused()
    done(page)
    for _ in range(2):
        press("Version before")
        expect(messages(page).first.get_by_role("button", name="Version before")).to_be_focused()
    press("Move down")
    expect(messages(page).last).to_be_focused()  # its button is gone, since nothing is below
    press("Move up")
    expect(messages(page).first).to_be_focused()
    press("Delete")
    expect(messages(page)).to_have_count(1)
    expect(messages(page).first).to_be_focused()
    page.get_by_role("button", name="Undo").focus()
    page.keyboard.press("Enter")
    expect(messages(page).first).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    press("Answer again")
    expect(messages(page).last).to_be_focused()


def test_everything_is_found_by_typing(page: Page) -> None:
    say(page, "hello")
    done(page)
    page.keyboard.press("Control+k")
    dialog = page.get_by_role("dialog", name="What can be done")
    expect(dialog.get_by_role("combobox", name="Search")).to_be_focused()
    expect(dialog.get_by_role("option", name="Inspector: Raw")).to_contain_text("Alt 6")
    page.keyboard.type("promp")
    expect(dialog.get_by_role("option")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("tab", name="Prompt")).to_have_attribute("aria-selected", "true")


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def test_on_a_phone_a_bar_at_the_foot_leads_to_all_parts(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url, **PHONE) as watch:
        page = watch.page()
        bar = page.get_by_role("navigation", name="Parts of the page")
        foot = bar.bounding_box()
        assert foot is not None and foot["y"] + foot["height"] == 740 and foot["width"] == 360
        box = page.get_by_label("Message", exact=True)
        box.fill("hello")
        page.get_by_role("button", name="Send").click()
        expect(last_text(page)).to_have_text("Hello there, friend.")
        for place, tabs in (("Settings", ["Settings", "Format", "Tools"]), ("Inspect", ["Tokens", "Prompt", "Raw"])):
            bar.get_by_role("button", name=place).tap()
            expect(bar.get_by_role("button", name=place)).to_have_attribute("aria-current", "true")
            expect(page.get_by_role("tab")).to_have_text(tabs)
            expect(box).to_be_hidden()  # what is covered is out of reach of keys and readers too
            page.get_by_role("tab").last.tap()
        bar.get_by_role("button", name="Code").tap()
        expect(page.get_by_role("region", name="The request as code,")).to_be_visible()
        bar.get_by_role("button", name="Inspect").tap()
        expect(page.get_by_role("tab", name="Raw")).to_have_attribute("aria-selected", "true")  # where one was
        bar.get_by_role("button", name="Chat").tap()
        expect(box).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.set_viewport_size({"width": 360, "height": 380})  # the keyboard is open
        expect(bar).to_be_hidden()
        expect(page.get_by_role("button", name="Open the inspector")).to_be_visible()


def test_on_a_phone_columns_are_tabs_that_answer_unseen_too(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url, **PHONE) as watch:
        page = watch.page()
        for _ in range(2):
            page.get_by_role("button", name="Open the history").tap()
            page.get_by_role("button", name="Compare").tap()
        tabs = page.get_by_role("tablist", name="Columns").get_by_role("tab")
        expect(tabs).to_have_text(["1 large-model", "2 large-model", "3 large-model"])
        expect(tabs.nth(2)).to_have_attribute("aria-selected", "true")
        expect(page.locator("section.column")).to_have_count(1)
        page.get_by_label("Message", exact=True).fill("stall")
        page.get_by_role("button", name="Send").tap()
        expect(last_text(page)).to_have_text("First")
        tabs.nth(0).tap()
        scripted.gate.set()
        for index in (0, 1, 2):
            tabs.nth(index).tap()
            expect(last_text(page)).to_have_text("First second.")
        tabs.nth(2).press("ArrowRight")
        expect(tabs.nth(0)).to_be_focused()
        expect(page.get_by_role("region", name="Column 1")).to_be_visible()
        assert len(scripted.requests) == 3
