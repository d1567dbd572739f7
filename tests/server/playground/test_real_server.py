"""The playground on a real server with the default model: what a person does in the first minute."""

import contextlib
import io

import pytest
from playwright.sync_api import expect

from tests.server.playground.browser import Watched, done, last_text, messages, needs_browser, say

pytestmark = [pytest.mark.slow, needs_browser, pytest.mark.timeout(900)]


def test_the_three_examples_run(real: Watched) -> None:
    page = real.page()
    page.get_by_role("button", name="See how sure it is").click()
    done(page)
    expect(messages(page).last.locator("dl")).to_contain_text("tok/s")
    page.get_by_role("tab", name="Tokens").click()
    expect(page.locator(".token-text button").first).to_be_visible()
    page.get_by_role("button", name="New conversation").first.click()
    page.get_by_role("button", name="Get JSON that fits a schema").click()
    expect(last_text(page)).to_contain_text('"population"')
    done(page)


def test_stop_continue_and_fork_with_a_real_model(real: Watched) -> None:
    page = real.page()
    page.get_by_label("logprobs", exact=True).select_option("true")
    page.get_by_label("top_logprobs", exact=True).fill("3")
    page.get_by_label("max_tokens", exact=True).fill("12")
    say(page, "Count from one to a hundred, in words.")
    expect(messages(page).last.get_by_text("Cut off at its length limit")).to_be_visible()
    before = last_text(page).inner_text()
    page.get_by_role("button", name="Continue this answer").click()
    expect(last_text(page)).not_to_have_text(before)
    done(page)
    assert last_text(page).inner_text().startswith(before[:20])
    page.get_by_role("tab", name="Tokens").click()
    page.locator(".token-text button").nth(2).focus()
    other = page.get_by_role("region", name="Alternatives").locator("li button:enabled").first
    other.click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    done(page)
    expect(messages(page).last.get_by_role("alert")).to_have_count(0)


def test_the_prompt_and_the_servers_word_on_a_schema_are_real(real: Watched) -> None:
    page = real.page()
    page.get_by_label("max_tokens", exact=True).fill("4")
    say(page, "Hello")
    done(page)
    expect(page.locator("#composer .count")).to_contain_text("/ 2,048 tokens")
    page.get_by_role("tab", name="Prompt").click()
    rendered = page.get_by_role("region", name="Rendered prompt")
    expect(rendered.locator(".control").first).to_have_text("<|im_start|>")
    expect(rendered).to_contain_text("Hello")
    page.get_by_role("tab", name="Format").click()
    page.get_by_label("The answer is").select_option("json_schema")
    expect(page.get_by_text("The server takes it")).to_be_visible()
    editor = page.get_by_role("textbox", name="JSON Schema")
    editor.fill('{\n"type": "object",\n"properties": {"a": {\n"type": "string",\n"format": "idn-email"}}}')
    expect(page.get_by_role("alert")).to_contain_text("Line 5")


@pytest.mark.parametrize("target", ["Python, huggingface_hub", "Python, openai"])
def test_the_code_of_an_answer_gives_the_same_answer(real: Watched, target: str) -> None:
    page = real.page()
    page.get_by_label("temperature", exact=True).fill("0")
    page.get_by_label("max_tokens", exact=True).fill("12")
    say(page, "What makes the sky blue?")
    done(page)
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("Language").select_option(target)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(page.get_by_role("region", name="The request as code,").inner_text(), {})
    assert said.getvalue().strip() == last_text(page).inner_text().strip() != ""


def test_a_refusal_stands_at_its_field(real: Watched) -> None:
    page = real.page()
    page.get_by_label("min_tokens", exact=True).evaluate("field => field.closest('details').open = true")
    page.get_by_label("min_tokens", exact=True).fill("20")
    page.get_by_label("max_tokens", exact=True).fill("10")
    say(page, "Hello")
    expect(messages(page).last.get_by_role("alert")).to_contain_text("min_tokens")
    expect(page.locator('.field:has(label[for="field-min_tokens"])').get_by_role("alert")).to_be_visible()


def test_the_server_is_seen_at_work(real: Watched) -> None:
    page = real.page()
    expect(page.locator(".server-chip")).to_contain_text("running")
    page.locator(".server-chip").click()
    dialog = page.get_by_role("dialog", name="Server")
    expect(dialog.get_by_role("row", name="HuggingFaceTB/SmolLM2-135M-Instruct")).to_contain_text("ready")
