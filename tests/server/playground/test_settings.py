"""What is asked for beside the messages: parameters, formats, tools, presets."""

import pytest
from playwright.sync_api import Browser, Page, expect

from server.protocol.fields import field_table
from tests.server.playground.browser import last_text, needs_browser, say, watched
from tests.server.playground.scripted import Scripted

pytestmark = [pytest.mark.slow, needs_browser]

ELSEWHERE = {
    *("messages", "model", "stream", "stream_options", "add_generation_prompt", "continue_final_message"),
    *("tools", "functions", "function_call", "response_format", "grammar", "choice", "structured_outputs"),
    *("tool_choice", "parallel_tool_calls", "tool_prompt"),
}
"""Fields that the page fills in from its other parts."""


def test_every_field_of_the_contract_is_there_with_its_meaning_and_range(page: Page) -> None:
    expect(page.locator(".field").first).to_be_visible()
    for details in page.locator("details.group").all():
        details.evaluate("one => one.open = true")
    shown = page.locator(".field label code").all_inner_texts()
    assert sorted(shown) == sorted(row.name for row in field_table() if row.name not in ELSEWHERE)
    for row in field_table():
        if row.name in shown:
            field = page.locator(f'.field:has(label[for="field-{row.name}"])')
            expect(field).to_contain_text(row.range)


def test_only_what_is_set_is_sent_and_the_servers_defaults_are_shown(page: Page, scripted: Scripted) -> None:
    temperature = page.get_by_label("temperature", exact=True)
    expect(temperature).to_have_attribute("placeholder", "0.5 (default)")
    temperature.fill("0")
    page.get_by_label("seed", exact=True).fill("7")
    page.get_by_label("stop", exact=True).fill("a\nb")
    expect(page.get_by_text("3 set; only these are sent")).to_be_visible()
    say(page, "one")
    expect(last_text(page)).to_have_text("You said: one")
    sent = scripted.requests[-1]
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0, 7, ["a", "b"])
    assert set(sent) == {"messages", "stream", "stream_options", "temperature", "seed", "stop"}
    page.get_by_role("button", name="Reset seed").click()
    page.get_by_label("seed", exact=True).fill("x")
    expect(page.get_by_role("alert")).to_contain_text("Must be a whole number")
    say(page, "two")
    expect(last_text(page)).to_have_text("You said: two")
    assert "seed" not in scripted.requests[-1]


def test_a_format_is_checked_as_one_types_and_the_refusal_stands_at_its_line(
    browser: Browser, scripted: Scripted
) -> None:
    with watched(browser, scripted.url, refusals=(400,)) as watch:
        page = watch.page()
        page.get_by_role("tab", name="Format").click()
        page.get_by_label("The answer is").select_option("json_schema")
        editor = page.get_by_role("textbox", name="JSON Schema")
        expect(page.get_by_text("The server takes it")).to_be_visible()
        editor.fill('{\n "properties": {\n  "a": {\n   "format": "not-supported"\n  }\n }\n}')
        expect(page.get_by_role("alert")).to_contain_text("Line 4")
        expect(page.locator(".gutter .wrong")).to_have_text("4")
        editor.fill('{"type": "object"')
        expect(page.get_by_role("alert")).to_contain_text("JSON")
        editor.fill('{"type": "json", "value": {"type": "object"}}')
        expect(page.get_by_text("The server takes it")).to_be_visible()
        say(page, "one")
        expect(last_text(page)).to_have_text("You said: one")
        assert scripted.requests[-1]["response_format"] == {"type": "json", "value": {"type": "object"}}
        editor.fill('{"type": "integer"}')
        say(page, "two")
        expect(last_text(page)).to_have_text("You said: two")
        wrapped = {"name": "answer", "strict": True, "schema": {"type": "integer"}}
        assert scripted.requests[-1]["response_format"] == {"type": "json_schema", "json_schema": wrapped}


def test_tools_are_sent_as_they_are_defined(page: Page, scripted: Scripted) -> None:
    page.get_by_role("tab", name="Tools").click()
    page.get_by_role("button", name="Begin with an example").click()
    expect(page.get_by_text("The server takes it")).to_be_visible()
    page.get_by_label("tool_choice").fill("required")
    say(page, "one")
    expect(last_text(page)).to_have_text("You said: one")
    sent = scripted.requests[-1]
    assert sent["tools"][0]["function"]["name"] == "get_weather" and sent["tool_choice"] == "required"


def test_a_preset_is_saved_and_taken_after_a_reload(page: Page, scripted: Scripted) -> None:
    page.get_by_label("temperature", exact=True).fill("0.25")
    page.get_by_role("button", name="Save as…").click()
    page.get_by_label("Name of the preset").fill("Cool <b>")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Reset all").click()
    page.reload()
    page.get_by_label("Preset", exact=True).select_option("Cool <b>")
    expect(page.get_by_label("temperature", exact=True)).to_have_value("0.25")
