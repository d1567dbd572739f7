"""Pieces of a page, sent through every door by which texts of others come in: they stay texts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.playground.browser import done, last_text, messages, needs_browser, say, watched
from tests.server.playground.scripted import HOSTILE, MODELS, running_scripted

pytestmark = [pytest.mark.slow, needs_browser]

TITLE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """The playground of a server whose models and refusals are hostile as well."""
    with (
        running_scripted(names=(HOSTILE, MODELS[1]), refusal=HOSTILE) as server,
        watched(browser, server.url, refusals=(400,)) as watch,
    ):
        opened = watch.page()
        yield opened
        assert_inert(opened)


def assert_inert(page: Page) -> None:
    """Nothing of a text has become an element, an attribute that acts, or a link to elsewhere than the web."""
    found: dict[str, Any] = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("body *")];
          const names = ["IMG", "IFRAME", "STYLE", "OBJECT", "EMBED", "B", "I"];
          const made = all.filter((one) => names.includes(one.tagName));
          const acting = all.filter((one) => one.getAttributeNames().some((name) => name.startsWith("on")));
          const links = all.filter((one) => one.href).map((one) => new URL(one.href).protocol);
          const shown = getComputedStyle(document.body).display;
          return { made: made.map((one) => one.outerHTML), acting: acting.length, links, shown };
        }"""
    )
    assert found["made"] == [] and found["acting"] == 0
    assert set(found["links"]) <= {"http:", "https:", "mailto:", "blob:"}
    assert found["shown"] != "none" and page.title() == "Headrace"


def test_the_names_of_models(page: Page) -> None:
    expect(page.locator(".model-button")).to_contain_text("<")
    page.locator(".model-button").click()
    expect(page.get_by_role("dialog", name="Model")).to_contain_text("<script>")
    assert_inert(page)
    page.keyboard.press("Escape")
    page.locator(".server-chip").click()
    expect(page.get_by_role("dialog", name="Server")).to_contain_text("<script>")
    assert_inert(page)


def test_what_a_server_says_of_an_error(page: Page) -> None:
    say(page, "refuse")
    expect(messages(page).last.get_by_role("alert")).to_contain_text("<script>")


def test_tokens_alternatives_and_calls_with_their_results(page: Page) -> None:
    page.get_by_label("logprobs", exact=True).select_option("true")
    say(page, "everything")
    done(page)
    call = page.locator("section.call")
    expect(call.locator("header")).to_contain_text("<script>")
    expect(call.locator("pre")).to_contain_text("<script>")
    assert_inert(page)
    call.get_by_label("Result").fill(HOSTILE)
    page.get_by_role("button", name="Send result").click()
    expect(last_text(page)).to_have_text("It is warm.")
    expect(messages(page).nth(2)).to_contain_text("<script>")
    assert_inert(page)
    messages(page).nth(1).get_by_role("button", name="Look inside").click()
    page.get_by_role("tab", name="Tokens").click()
    page.locator(".token-text button").first.focus()
    expect(page.get_by_role("region", name="Alternatives")).to_contain_text(TITLE.replace(" ", "␣"))


@pytest.mark.parametrize("tab", ["Prompt", "Raw", "Code"])
def test_a_conversation_in_each_tab_and_in_the_history(page: Page, tab: str) -> None:
    say(page, HOSTILE)
    done(page)
    expect(page.locator(".entry").first).to_contain_text("<")
    page.get_by_role("tab", name=tab).click()
    expect(page.get_by_role("tabpanel")).to_contain_text("onerror")
    if tab == "Code":
        for target in page.get_by_label("Language").locator("option").all_inner_texts():
            page.get_by_label("Language").select_option(target)
            expect(page.get_by_role("tabpanel")).to_contain_text("onerror")
            assert_inert(page)


def test_titles_of_schemas_and_descriptions_of_tools(page: Page) -> None:
    page.get_by_role("tab", name="Format").click()
    page.get_by_label("The answer is").select_option("json_schema")
    editor = page.get_by_role("textbox", name="JSON Schema")
    editor.fill(json.dumps({"title": TITLE, "type": "object", "format": "not-supported"}))
    expect(page.get_by_role("alert")).to_be_visible()
    assert_inert(page)
    page.get_by_role("tab", name="Tools").click()
    panel = page.get_by_role("tabpanel")
    function = {"name": TITLE, "description": TITLE}
    panel.get_by_role("textbox").first.fill(json.dumps([{"type": "function", "function": function}]))
    say(page, "hello")
    done(page)


def test_names_of_presets_and_files(page: Page) -> None:
    page.get_by_label("temperature", exact=True).fill("1")
    page.get_by_role("button", name="Save as…").click()
    page.get_by_label("Name of the preset").fill(TITLE)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Preset", exact=True)).to_contain_text(TITLE)


def test_a_pasted_command_that_is_refused(page: Page) -> None:
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("A curl command or a JSON body").fill("curl x -d '{\"" + TITLE.replace('"', "") + "\": '")
    expect(page.get_by_role("alert")).to_be_visible()
