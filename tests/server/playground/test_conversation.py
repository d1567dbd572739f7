"""A person's way through a conversation, in a real browser against a scripted server."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.playground.browser import (
    STREAM,
    done,
    last_text,
    messages,
    needs_browser,
    say,
    was_told,
    watched,
)
from tests.server.playground.scripted import SCRIPTS, STALL, Scripted, ended, texts

pytestmark = [pytest.mark.slow, needs_browser]


def test_an_answer_streams_and_its_figures_stand_below(page: Page, scripted: Scripted) -> None:
    say(page, "hello")
    expect(last_text(page)).to_have_text("Hello there, friend.")
    expect(last_text(page).locator("strong")).to_have_text("there")
    expect(messages(page).last.locator("dl")).to_contain_text("First token")
    expect(messages(page).last.locator("dl")).to_contain_text("3 tokens")
    expect(page.get_by_role("status").first).to_have_text("Answer complete, 3 tokens")
    said = [{"role": "user", "content": "hello"}]
    assert scripted.requests == [{"messages": said, **STREAM}], "only what was set is sent"


def test_an_answer_is_stopped_continued_and_asked_for_again(page: Page, scripted: Scripted) -> None:
    say(page, "stall")
    expect(last_text(page)).to_have_text("First")
    expect(last_text(page)).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(messages(page).last.get_by_text("Stopped")).to_be_visible()
    expect(last_text(page)).to_have_text("First")
    figures = messages(page).last.locator("dl")
    expect(figures.locator("dd").last).to_have_text("1 token")
    expect(page.get_by_role("status").first).to_have_text("Stopped after 1 token")
    page.get_by_role("button", name="Continue").click()
    expect(last_text(page)).to_have_text("First and on.")
    expect(figures).to_contain_text("1 + 1 token")
    request = scripted.requests[-1]
    assert request["continue_final_message"] is True and request["add_generation_prompt"] is False
    assert request["messages"][-1] == {"role": "assistant", "content": "First"}
    scripted.gate.set()
    page.get_by_role("button", name="Answer again").click()
    expect(last_text(page)).to_have_text("First second.")
    expect(page.get_by_text("2 of 2")).to_be_visible()
    page.get_by_role("button", name="Version before").click()
    expect(last_text(page)).to_have_text("First and on.")


def test_a_message_is_edited_beside_the_old_one_and_in_its_place(page: Page, scripted: Scripted) -> None:
    say(page, "one")
    expect(last_text(page)).to_have_text("You said: one")
    first = messages(page).first
    first.hover()
    first.get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the message").fill("two")
    page.get_by_role("button", name="Send as a new version").click()
    expect(last_text(page)).to_have_text("You said: two")
    messages(page).first.get_by_role("button", name="Version before").click()
    expect(last_text(page)).to_have_text("You said: one")
    answer = messages(page).last
    answer.get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the message").fill("Changed")
    page.get_by_label("Role").select_option("system")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(messages(page).last).to_contain_text("Changed")
    say(page, "three")
    expect(last_text(page)).to_have_text("You said: three")
    assert [message["role"] for message in scripted.requests[-1]["messages"]] == ["user", "system", "user"]


def test_a_deleted_message_comes_back_and_messages_change_places(page: Page) -> None:
    say(page, "one")
    expect(last_text(page)).to_have_text("You said: one")
    say(page, "two")
    expect(last_text(page)).to_have_text("You said: two")
    messages(page).nth(1).hover()
    messages(page).nth(1).get_by_role("button", name="Delete").click()
    expect(messages(page)).to_have_count(3)
    expect(messages(page).nth(1)).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(messages(page)).to_have_count(4)
    expect(messages(page).nth(1)).to_contain_text("You said: one")
    messages(page).nth(1).get_by_role("button", name="Move up").click()
    expect(messages(page).first).to_contain_text("You said: one")
    expect(messages(page).nth(1)).to_contain_text("one")
    expect(messages(page)).to_have_count(4)


def test_split_characters_are_put_together(page: Page) -> None:
    say(page, "split")
    expect(last_text(page)).to_have_text("Grüße, 日本語 🌍🌎 fin")


def test_what_fails_says_why_and_keeps_what_came(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url, refusals=(400,)) as watch:
        page = watch.page()
        say(page, "broken")
        expect(messages(page).last.get_by_role("alert")).to_contain_text("The <b>engine</b> died")
        expect(last_text(page)).to_have_text("Half an ans")
        say(page, "cut")
        expect(messages(page).last.get_by_role("alert")).to_contain_text("ended before")
        say(page, "refuse")
        expect(messages(page).last.get_by_role("alert")).to_contain_text("temperature must be at most 2.0")
        expect(messages(page).last.get_by_role("alert")).to_contain_text("req-refused")
        expect(page.locator(".field", has_text="temperature").first).to_contain_text("must be at most 2.0, got 3")
        say(page, "short")
        expect(messages(page).last).to_contain_text("Cut off at its length limit")


def test_what_a_model_writes_is_text_and_never_a_page(page: Page, scripted: Scripted) -> None:
    say(page, "hostile")
    expect(last_text(page)).to_contain_text("<script>")
    page.locator("details.reasoning summary").click()
    done(page)
    content = messages(page).last.locator(".content")
    assert content.locator("img, script, iframe, style").count() == 0
    for address in content.locator("a").evaluate_all("links => links.map((link) => link.protocol)"):
        assert address in ("http:", "https:", "mailto:")
    assert page.title() == "Headrace"


def test_markdown_becomes_elements(page: Page) -> None:
    say(page, "show")
    done(page)
    content = last_text(page)
    expect(content.get_by_role("heading", name="Fibonacci")).to_be_visible()
    expect(content.locator("pre code")).to_contain_text("a, b = b, a + b")
    expect(content.locator("figcaption")).to_contain_text("python")
    expect(content.get_by_role("cell", name="55")).to_have_class("align-right")
    expect(content.locator("ol > li > ul > li")).to_have_text("nested")
    expect(content.get_by_role("link", name="here")).to_have_attribute("rel", "noopener noreferrer")
    expect(content).to_contain_text("It costs $5 or $10.")
    content.get_by_role("button", name="Copy code").click()
    expect(content.get_by_role("button", name="Copied")).to_be_visible()


def test_thoughts_are_folded_with_their_length(page: Page, scripted: Scripted) -> None:
    say(page, "think")
    expect(page.locator("details.reasoning summary")).to_contain_text("Thought")
    expect(page.locator("details.reasoning summary")).to_contain_text("3 words")
    expect(page.get_by_text("Let me <i>think</i>.")).not_to_be_visible()
    page.locator("details.reasoning summary").click()
    expect(page.get_by_text("Let me <i>think</i>.")).to_be_visible()


def test_calls_are_cards_and_their_results_are_sent_back(page: Page, scripted: Scripted) -> None:
    say(page, "call")
    cards = page.locator("section.call")
    expect(cards).to_have_count(2)
    expect(cards.first).to_contain_text("get_weather")
    expect(cards.first.locator("pre")).to_contain_text('"city": "Paris"')
    expect(cards.last).to_contain_text("<b>get_time</b>")
    cards.first.get_by_label("Result").fill('{"celsius": 21}')
    cards.last.get_by_label("Result").fill("noon")
    page.get_by_role("button", name="Send results").click()
    expect(last_text(page)).to_have_text("It is warm.")
    sent = scripted.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["content"] is None and [call["id"] for call in sent[1]["tool_calls"]] == ["call_1", "call_2"]
    assert sent[2] == {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": '{"celsius": 21}'}
    assert sent[3]["content"] == "noon"


def test_several_choices_are_versions(page: Page, scripted: Scripted) -> None:
    page.get_by_label("n", exact=True).fill("3")
    say(page, "choose")
    expect(page.get_by_text("1 of 3")).to_be_visible()
    expect(last_text(page)).to_have_text("Choice 0")
    page.get_by_role("button", name="Version after").click()
    expect(last_text(page)).to_have_text("Choice 1")


def test_an_image_goes_with_the_message_where_the_model_sees(page: Page, scripted: Scripted) -> None:
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360f8cf500f00"
        "0385018 0a5a6b8d20000000049454e44ae426082".replace(" ", "")
    )
    page.locator("#composer input[type=file]").set_input_files(
        {"name": "dot.png", "mimeType": "image/png", "buffer": pixel}
    )
    expect(page.locator(".pictures img")).to_have_count(1)
    say(page, "look")
    expect(last_text(page)).to_have_text("You said: look")
    image, text = scripted.requests[-1]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text == {"type": "text", "text": "look"}
    expect(messages(page).first.locator("img")).to_be_visible()
    page.get_by_role("button", name="scripted/large-model").click()
    page.get_by_role("button", name="scripted/small").click()
    expect(page.get_by_role("button", name="Add images")).to_have_count(0)


def test_tokens_are_those_that_the_server_counts(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill("some words")
    expect(page.locator("#composer .count")).to_contain_text("/ 4,096 tokens")


def test_what_was_sent_comes_back_with_the_arrow(page: Page) -> None:
    say(page, "hello")
    done(page)
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Message", exact=True)).to_have_value("hello")


def test_a_long_answer_is_whole_and_what_stands_in_it_is_not_made_again(page: Page, scripted: Scripted) -> None:
    paragraphs = [f"Paragraph {index} with **bold** text.\n\n## Part {index}\n\n" for index in range(60)]
    SCRIPTS["book"] = [*texts(*paragraphs), STALL, *ended(texts("The end."))[1:]]
    say(page, "book")
    parts = last_text(page).locator(".part")
    expect(parts).to_have_count(8)
    expect(parts.last).to_contain_text("Part 59")
    page.evaluate("document.querySelectorAll('.part p').forEach((element, index) => { element.place = index; })")
    scripted.gate.set()
    done(page)
    kept = page.evaluate("[...document.querySelectorAll('.part p')].map((element) => element.place ?? -1)")
    assert len(kept) == 61 and kept[:58] == [*range(58)]  # the last could still have changed
    headings = last_text(page).get_by_role("heading").all_text_contents()
    assert headings == [f"Part {index}" for index in range(60)]
    levels = page.evaluate("[...document.querySelectorAll('.part > [class^=heading]')].map((one) => one.tagName)")
    assert levels == ["H3", *["H4"] * 59]  # the step down is taken once, not anew in each part


def test_what_cannot_be_read_later_is_told_and_the_draft_is_kept(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        watch.context.route("**/app/state/actions.js", lambda route: route.abort())
        page = watch.page()
        page.get_by_label("Message", exact=True).fill("hello")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        page.keyboard.press("Enter")
        expect(page.get_by_text("could not be loaded")).to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_have_value("hello")


def test_files_that_are_no_images_are_told(page: Page) -> None:
    files = [
        {"name": "a.heic", "mimeType": "image/heic", "buffer": b"nothing"},
        {"name": "b.png", "mimeType": "image/png", "buffer": b"\x89PNG"},
        {"name": "c.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"},
    ]
    page.locator("#composer input[type=file]").set_input_files(files)  # type: ignore[arg-type]
    was_told(page, "A file could not be read as an image")
    was_told(page, "c.pdf is no image")
    expect(page.locator(".pictures img")).to_have_count(1)  # of a kind that the server reads, and judges


def test_images_that_the_server_would_refuse_are_named_before_anything_is_sent(
    page: Page, scripted: Scripted, tmp_path: Path
) -> None:
    def add(name: str, megabytes: int) -> None:
        with (tmp_path / name).open("wb") as file:
            file.truncate(megabytes * 1_000_000)
        page.locator("#composer input[type=file]").set_input_files(tmp_path / name)

    pictures = page.locator(".pictures img")
    add("huge.png", 32)
    was_told(page, "huge.png has 32 MB; this server takes images of at most 20 MB")
    add("large.png", 12)
    expect(pictures).to_have_count(1)
    add("more.png", 5)
    was_told(page, "With more.png the request would have 23 MB; this server takes at most 21 MB")
    expect(pictures).to_have_count(1)
    say(page, "look")
    done(page)
    assert len(scripted.requests) == 1
    page.get_by_role("tab", name="Raw").click()
    expect(page.get_by_role("region", name="Request", exact=True)).to_contain_text("16,000,000 letters")
    page.get_by_role("tab", name="Code").click()
    page.get_by_label("Language").select_option("curl")
    expect(page.get_by_text("what is copied has them")).to_be_visible()
