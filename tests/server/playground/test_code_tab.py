"""From the interface to code and back, in a real browser."""

import contextlib
import io
import json
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.playground.browser import done, last_text, messages, needs_browser, say, watched
from tests.server.playground.hazards import ODD, PROGRAMS
from tests.server.playground.scripted import Scripted, running_scripted
from tests.server.playground.test_code import needs_curl

pytestmark = [pytest.mark.slow, needs_browser]

PASTED = """curl http://192.0.2.1/v1/chat/completions \\
  -H "Authorization: Bearer $KEY" \\
  -d '{
    "model": "gpt-of-another", "temperature": 0.25, "n": 1,
    "messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "it'\\''s <b>me</b>"}]}
    ],
    "response_format": {"type": "regex", "value": "[a-z]+"}, "function_call": "auto"
  }'
"""


def program(page: Page) -> str:
    """The code that is shown."""
    page.get_by_role("tab", name="Code").click()
    region = page.get_by_role("region", name="The request as code,")
    expect(region).to_be_visible()
    return str(region.inner_text())


def ran(text: str) -> str:
    """What a program in Python says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(text, {})
    return said.getvalue()


def test_what_was_asked_is_code_that_asks_the_same(page: Page, scripted: Scripted) -> None:
    page.get_by_label("temperature", exact=True).fill("0")
    page.get_by_label("min_p", exact=True).fill("0.1")
    say(page, "hello 'you'")
    done(page)
    asked = scripted.requests[-1]
    for target in ("Python, huggingface_hub", "Python, openai"):
        page.get_by_role("tab", name="Code").click()
        page.get_by_label("Language").select_option(target)
        assert ran(program(page)) == "Hello **there**, friend.\n"
        assert scripted.requests[-1] == {"model": "scripted/large-model", **asked, **PROGRAMS}
    page.reload()
    expect(page.get_by_label("Language")).to_have_value("python-openai")
    page.get_by_label("Stream").uncheck()
    assert "stream" not in program(page)
    page.get_by_label("Message", exact=True).fill("what comes next")
    expect(page.get_by_role("region", name="The request as code,")).to_contain_text("what comes next")
    page.get_by_role("button", name="Copy code").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()


@needs_curl
def test_a_command_is_copied_run_and_comes_back(page: Page, scripted: Scripted) -> None:
    say(page, "split")
    done(page)
    asked = scripted.requests[-1]
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("Language").select_option("curl")
    command = program(page)
    answer = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert scripted.requests[-1] == asked | PROGRAMS and answer.endswith(b"[DONE]\r\n\r\n")
    page.get_by_label("A curl command or a JSON body").fill(command)
    page.get_by_role("button", name="Open as a conversation").click()
    expect(messages(page)).to_have_count(1)
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    assert scripted.requests[-1] == asked


def test_a_pasted_command_becomes_the_interface(page: Page, scripted: Scripted) -> None:
    say(page, "hello")
    done(page)
    page.get_by_role("tab", name="Code").click()
    box = page.get_by_label("A curl command or a JSON body")
    opens = page.get_by_role("button", name="Open as a conversation")
    box.fill(PASTED.replace('"n": 1,', '"n": ,'))
    expect(page.get_by_role("alert")).to_contain_text("Line 4: A JSON value cannot begin with")
    expect(page.locator(".gutter .wrong")).to_have_text("4")
    expect(opens).to_be_disabled()
    before = len(scripted.requests)
    box.fill(PASTED)
    opens.click()
    expect(messages(page)).to_have_count(2)
    expect(messages(page).first).to_contain_text("Be brief.")
    expect(last_text(page)).to_have_text("it's <b>me</b>")
    expect(
        page.get_by_text("Opened without the model gpt-of-another, which is not here, function_call")
    ).to_be_visible()
    assert len(scripted.requests) == before, "nothing is sent before one asks for it"
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_label("temperature", exact=True)).to_have_value("0.25")
    page.get_by_role("tab", name="Format").click()
    expect(page.get_by_label("Regular expression", exact=True)).to_have_value("[a-z]+")
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    sent = scripted.requests[-1]
    assert (sent["temperature"], sent["n"]) == (0.25, 1) and "model" not in sent
    assert sent["response_format"] == {"type": "regex", "value": "[a-z]+"}
    assert sent["messages"][1] == {"role": "user", "content": "it's <b>me</b>"}


def test_the_key_is_never_written(browser: Browser) -> None:
    with running_scripted(key="secret") as server, watched(browser, server.url, refusals=(401,)) as watch:
        page = watch.page()
        page.get_by_role("textbox", name="API key").fill("secret")
        page.keyboard.press("Enter")
        say(page, "hello")
        done(page)
        page.get_by_role("tab", name="Code").click()
        for target in page.get_by_label("Language").locator("option").all_inner_texts():
            page.get_by_label("Language").select_option(target)
            expect(page.get_by_role("region", name=f"The request as code, {target}")).to_contain_text(
                "HEADRACE_API_KEY"
            )
            assert "secret" not in page.content()


def test_pictures_are_files_beside_the_program(
    page: Page, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = bytes(range(256)) * 20
    page.locator("#composer input[type=file]").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": photo}
    )
    expect(page.locator(".pictures img")).to_have_count(1)
    say(page, "look")
    done(page)
    asked = scripted.requests[-1]
    text = program(page)
    assert len(text) < 2000 and 'image("image-1.png", "image/png")' in text
    with page.expect_download() as download:
        page.get_by_role("link", name="image-1.png").click()
    download.value.save_as(tmp_path / "image-1.png")
    monkeypatch.chdir(tmp_path)
    ran(text)
    assert scripted.requests[-1] == {"model": "scripted/large-model", **asked, **PROGRAMS}


def test_a_body_with_what_the_page_has_no_place_for_is_shown_and_sent_whole(page: Page, scripted: Scripted) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/pixel.png"}}
    content = [image, {"type": "text", "text": "look"}]
    body = {"messages": [{"role": "user", "content": content}], "speed": {"top": 1}, "temperature": "hot", "top_p": [5]}
    page.get_by_role("tab", name="Code").click()
    odd = {"model": "nobody/none", "response_format": {"type": "regex", "value": 5}}
    page.get_by_label("A curl command or a JSON body").fill(json.dumps(body | odd))
    page.get_by_role("button", name="Open as a conversation").click()
    expect(page.get_by_text("nobody/none, which is not here")).to_be_visible()
    expect(messages(page)).to_contain_text(["http://192.0.2.1/pixel.png"])  # named, and not asked for
    for tab in ("Format", "Tools", "Prompt", "Raw", "Settings"):
        page.get_by_role("tab", name=tab).click()
    group = page.locator("details", has_text="does not know")
    expect(group.get_by_label("speed", exact=True)).to_have_value('{"top":1}')
    page.get_by_role("button", name="Run", exact=True).click()
    done(page)
    sent = {name: scripted.requests[-1][name] for name in body}
    assert sent == body
    page.get_by_role("button", name="Reset speed").click()
    expect(group).to_have_count(0)


def test_an_answer_that_is_to_be_continued_is_code_and_comes_from_code(page: Page, scripted: Scripted) -> None:
    (begun,) = [body for body in ODD if "continue_final_message" in body]
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("A curl command or a JSON body").fill(json.dumps(begun))
    page.get_by_role("button", name="Open as a conversation").click()
    expect(page.get_by_text("Opened as a conversation")).to_be_visible()
    expect(page.get_by_label("Continue the last answer")).to_be_checked()
    ran(program(page))
    sent = scripted.requests[-1]
    assert sent == {"model": "scripted/large-model", **begun, **PROGRAMS}
    page.get_by_role("button", name="Continue", exact=False).first.click()
    done(page)
    expect(last_text(page)).to_have_text("one, two and on.")
    assert scripted.requests[-1] | PROGRAMS | {"model": sent["model"]} == sent
    expect(page.get_by_label("Continue the last answer")).not_to_be_checked()  # how it was answered is known now
    page.get_by_label("Continue the last answer").check()
    expect(page.get_by_role("region", name="The request as code,")).to_contain_text("one, two and on.")
