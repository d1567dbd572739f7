"""What the playground is for, on a real server with the default model: each capability as a way that a person goes.

Answers are short, and most are the likeliest ones, so that all of it takes a minute or two.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import validate
from playwright.sync_api import Browser, Page, expect

from tests.clocks import PATIENCE
from tests.server.fakes import wait_until
from tests.server.playground.browser import (
    Watched,
    done,
    last_text,
    messages,
    needs_browser,
    say,
    was_told,
    watched,
)
from tests.server.playground.test_code import needs_curl
from tests.server.playground.test_code_tab import program
from tests.server.playground.test_keeping import kept

pytestmark = [pytest.mark.slow, needs_browser, pytest.mark.timeout(900)]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


def short(page: Page, **params: Any) -> None:
    """Have answers short and always the same, unless `params` say otherwise."""
    page.get_by_role("tab", name="Settings").click()
    for name, value in ({"temperature": 0, "max_tokens": 6} | params).items():
        page.get_by_label(name, exact=True).fill(str(value))


def length(page: Page) -> str:
    """How many tokens the page says that the last message has."""
    figures = messages(page).last.locator("dl")
    expect(figures).to_contain_text("tok/s")
    return str(figures.locator("dd", has_text="token").inner_text())


def all_written(found: list[dict[str, Any]]) -> bool:
    """Whether no message that the browser keeps is still being answered."""
    return all(one["state"] != "writing" for one in found)


def last_kept(page: Page, text: str) -> dict[str, Any]:
    """The answer that begins so, as the browser keeps it once it is written."""
    found: list[dict[str, Any]] = []

    def look(everything: list[dict[str, Any]]) -> bool:
        answers = [one for one in everything if one["role"] == "assistant" and one["state"] != "writing"]
        found.extend(one for one in answers if one["content"].startswith(text))
        return bool(found)

    kept(page, look)
    return found[-1]


def test_an_answer_is_stopped_with_its_figures_and_goes_on(real: Watched, real_url: str) -> None:
    page = real.page()
    short(page, max_tokens=1000)
    page.get_by_label("logprobs", exact=True).select_option("true")
    say(page, "Write a long story about a river and its mill.")
    expect(last_text(page)).to_have_text(re.compile(r"(\S+\s+){8}"))
    page.keyboard.press("Escape")
    expect(messages(page).last.get_by_text("Stopped")).to_be_visible()
    text = last_text(page).inner_text()
    stopped = int(length(page).removesuffix(" tokens"))
    message = last_kept(page, text[:10])
    assert len(message["tokens"]) == stopped >= 8, "as many as came, each of which has its probability"
    speed = messages(page).last.locator("dd", has_text="tok/s").inner_text()
    outcome = message["outcome"]
    rate = (stopped - 1) / (outcome["ms"] - outcome["firstMs"]) * 1000
    assert abs(float(speed.removesuffix(" tok/s")) - rate) <= 1
    short(page)
    page.get_by_role("button", name="Continue").click()
    expect(messages(page).last).to_contain_text(f"{stopped} + 6 tokens")
    assert last_text(page).inner_text().startswith(text[:30])

    def runs_nothing() -> bool:
        found = httpx.get(f"{real_url}metrics", timeout=60).text
        return bool(re.search(r"^headrace_requests_running\S* 0", found, re.MULTILINE))

    wait_until(runs_nothing, PATIENCE)  # nothing goes on for nobody


def test_messages_are_branched_deleted_and_moved(real: Watched) -> None:
    page = real.page()
    short(page)
    say(page, "Name a river.")
    done(page)
    page.get_by_label("seed", exact=True).fill("5")
    page.get_by_label("temperature", exact=True).fill("1.5")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    done(page)
    first = messages(page).first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the message").fill("Name a mountain.")
    page.get_by_role("button", name="Send as a new version").click()
    expect(messages(page).first).to_contain_text("mountain")
    done(page)
    first.get_by_role("button", name="Version before").click()
    expect(messages(page).first).to_contain_text("river")
    expect(messages(page).last.get_by_text("2 of 2")).to_be_visible()
    said = last_text(page).inner_text()
    messages(page).last.get_by_role("button", name="Delete").click()
    expect(last_text(page)).not_to_have_text(said)  # the other version is left
    page.get_by_role("button", name="Undo").click()
    expect(last_text(page)).to_have_text(said)
    messages(page).last.get_by_role("button", name="Move up").click()
    expect(messages(page).first.locator(".content")).to_have_text(said)
    page.get_by_role("button", name="Run", exact=True).click()  # a question stands last again
    done(page)
    expect(messages(page)).to_have_count(3)
    kept(page, all_written)
    page.reload()
    expect(messages(page)).to_have_count(3)
    expect(messages(page).first.locator(".content")).to_have_text(said)


def test_a_preset_and_a_schema_hold_the_answer(real: Watched) -> None:
    page = real.page()
    short(page, max_tokens=100)
    page.get_by_role("tab", name="Format").click()
    page.get_by_label("The answer is").select_option("json_schema")
    page.get_by_role("textbox", name="JSON Schema").fill(json.dumps(SCHEMA, indent=1))
    expect(page.get_by_text("The server takes it")).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    page.get_by_role("button", name="Save as…").click()
    page.get_by_label("Name of the preset").fill("Cities")
    page.keyboard.press("Enter")
    page.reload()
    page.get_by_label("Preset", exact=True).select_option("Cities")
    expect(page.get_by_label("max_tokens", exact=True)).to_have_value("100")
    say(page, "Describe Lisbon.")
    done(page)
    expect(messages(page).last.locator("dl")).to_contain_text("stop")
    validate(json.loads(last_kept(page, "{")["content"]), SCHEMA)


def test_a_call_is_answered_by_hand(real: Watched) -> None:
    page = real.page()
    short(page, max_tokens=100)
    page.get_by_role("tab", name="Tools").click()
    page.get_by_role("button", name="Begin with an example").click()
    expect(page.get_by_text("The server takes it")).to_be_visible()
    page.get_by_label("tool_choice", exact=True).fill("required")
    page.get_by_label("parallel_tool_calls").select_option("false")
    say(page, "What is the weather in Paris?")
    done(page)
    card = page.get_by_role("region", name="Call of get_weather", exact=True)
    assert "city" in json.loads(card.locator("pre").inner_text())
    expect(messages(page).last.locator("dl")).to_contain_text("tool_calls")
    page.get_by_label("tool_choice", exact=True).fill("none")
    card.get_by_label("Result").fill('{"celsius": 21, "sky": "clear"}')
    page.get_by_role("button", name="Send result").click()
    expect(messages(page)).to_have_count(4)
    done(page)
    expect(last_text(page)).to_have_text(re.compile(r"\w+"))
    kept(page, lambda found: sorted(one["role"] for one in found) == ["assistant", "assistant", "tool", "user"])


def test_columns_are_compared(real: Watched) -> None:
    page = real.page()
    short(page, max_tokens=30)
    page.get_by_role("button", name="Compare").click()
    short(page, max_tokens=40)
    page.get_by_label("Answer in turn").check()
    say(page, "Write about three rivers of Europe.")
    columns = page.locator("section.column")
    for column, tokens in zip(columns.all(), (30, 40), strict=True):
        figures = column.locator("article").last.locator("dl")
        for shown in ("First token", "tok/s", f"{tokens} tokens", "length"):
            expect(figures).to_contain_text(shown)
    page.get_by_role("button", name="Differences").click()
    expect(columns.nth(1).locator("ins").last).to_have_text(re.compile(r"\w"))  # the same words, and then more of them


def test_the_inside_is_shown(real: Watched) -> None:
    page = real.page()
    short(page)
    page.get_by_label("logprobs", exact=True).select_option("true")
    page.get_by_label("top_logprobs", exact=True).fill("3")
    for question in ("Tell me about rivers.", "And about mountains."):
        say(page, question)
        done(page)
    page.get_by_role("tab", name="Tokens").click()
    expect(page.locator(".token-text button")).to_have_count(6)
    page.locator(".token-text button").nth(3).focus()
    others = page.get_by_role("region", name="Alternatives").get_by_role("button")
    expect(others).to_have_count(3)
    other = others.and_(page.locator(":enabled")).first
    word = other.locator("code").inner_text().strip("␣⏎")
    other.click()
    expect(messages(page).last.get_by_text("2 of 2")).to_be_visible()
    done(page)
    expect(messages(page).last.locator("dl")).to_contain_text(re.compile(r"4 \+ \d tokens?"))
    expect(last_text(page)).to_contain_text(word)
    page.get_by_role("tab", name="Prompt").click()
    expect(page.get_by_text(re.compile(r"the prefix cache holds the first \d+ now"))).to_be_visible()
    rendered = page.get_by_role("region", name="Rendered prompt")
    expect(rendered.locator(".control").first).to_have_text("<|im_start|>")
    expect(rendered.locator(".cached").first).to_be_visible()
    page.get_by_role("tab", name="Raw").click()
    request = json.loads(page.get_by_role("region", name="Request", exact=True).inner_text())
    assert request["continue_final_message"] is True and request["messages"][-1]["role"] == "assistant"
    expect(page.get_by_role("region", name="Headers of the answer")).to_contain_text("x-request-id")
    events = page.locator("table.events tbody tr")
    expect(events.last).to_contain_text("[DONE]")
    expect(events.nth(1)).to_contain_text('"completion_tokens"')
    page.locator(".server-chip").click()
    row = page.get_by_role("dialog", name="Server").get_by_role("row", name="SmolLM2")
    expect(row).to_contain_text("ready")


@needs_curl
def test_code_goes_out_and_comes_back(real: Watched) -> None:
    page = real.page()
    short(page)
    say(page, "What makes the sky blue?")
    done(page)
    answer = last_text(page).inner_text()
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("Language").select_option("curl")
    page.get_by_label("Stream").uncheck()
    command = program(page)
    ran = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert json.loads(ran)["choices"][0]["message"]["content"].strip() == answer.strip()
    page.get_by_label("A curl command or a JSON body").fill(command)
    page.get_by_role("button", name="Open as a conversation").click()
    expect(messages(page)).to_have_count(1)
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    expect(last_text(page)).to_have_text(answer)


def test_a_conversation_goes_to_another_browser(browser: Browser, real: Watched, real_url: str, tmp_path: Path) -> None:
    page = real.page()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    short(page)
    say(page, "Tell me all about the colours of the sky.")
    done(page)
    answer = last_text(page).inner_text()
    page.get_by_role("button", name="Share, export, import").click()
    page.get_by_role("button", name="Copy a link").click()
    was_told(page, "Link copied")
    fragment = "#" + page.evaluate("window.copied").partition("#")[2]
    with page.expect_download() as download:
        page.get_by_role("button", name="Export this conversation").click()
    download.value.save_as(tmp_path / "file.json")
    with watched(browser, real_url) as watch:
        page = watch.page(fragment)
        expect(last_text(page)).to_have_text(answer)
        expect(page.get_by_label("max_tokens", exact=True)).to_have_value("6")
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_label("File to import").set_input_files(tmp_path / "file.json")
        was_told(page, "Conversation imported")
        expect(messages(page).last.locator("dl")).to_contain_text("6 tokens")
        say(page, "And another.")
        done(page)
        kept(page, lambda found: len(found) == 4 and all_written(found))
        page.reload()
        expect(messages(page)).to_have_count(4)
