"""What the browser keeps: conversations over reloads, in two tabs, as files and links, in databases of any age."""

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.clocks import PATIENCE
from tests.server.fakes import wait_until
from tests.server.playground.browser import (
    done,
    last_text,
    messages,
    needs_browser,
    say,
    was_told,
    watched,
)
from tests.server.playground.scripted import Scripted

pytestmark = [pytest.mark.slow, needs_browser]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
READ_MESSAGES = """
() => new Promise((resolve) => {
  const request = indexedDB.open("headrace");
  request.onsuccess = () => {
    const all = request.result.transaction("messages").objectStore("messages").getAll();
    all.onsuccess = () => { request.result.close(); resolve(all.result); };
  };
})
"""
FIRST_VERSION = """
() => new Promise((resolve) => {
  const request = indexedDB.open("headrace", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("talks", { keyPath: "id" });
    request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("talk", "talk");
  };
  request.onsuccess = () => {
    const writes = request.result.transaction(["talks", "messages"], "readwrite");
    writes.objectStore("talks").put({ id: "t1", title: "An old one", created: 1, updated: 2, settings: { params: {} },
      chosen: {}, draft: { text: "", images: [] } });
    const message = { talk: "t1", state: "done" };
    const messages = writes.objectStore("messages");
    messages.put({ ...message, id: "m1", parent: null, order: 1, role: "user", content: "old" });
    messages.put({ ...message, id: "m2", parent: "m1", order: 2, role: "assistant", content: "Older" });
    writes.oncomplete = () => { request.result.close(); resolve(); };
  };
})
"""
"""The database as its first version left it."""


def kept(page: Page, condition: Callable[[list[dict[str, Any]]], object]) -> None:
    """Wait until what the browser keeps is so."""
    wait_until(lambda: condition(page.evaluate(READ_MESSAGES)), PATIENCE)


def test_a_conversation_outlives_a_reload_with_its_branches_and_draft(page: Page) -> None:
    say(page, "one")
    expect(last_text(page)).to_have_text("You said: one")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    done(page)
    page.get_by_label("Message", exact=True).fill("a draft")
    kept(page, lambda found: len(found) == 3 and all(message["state"] == "done" for message in found))
    page.wait_for_timeout(1200)  # the draft is saved within a second
    page.reload()
    expect(messages(page)).to_have_count(2)
    expect(page.get_by_text("2 of 2")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_value("a draft")


def test_an_answer_is_kept_while_it_comes_and_can_be_continued_after_a_crash(page: Page, scripted: Scripted) -> None:
    say(page, "stall")
    kept(page, lambda found: any(message["content"] == "First" for message in found))
    page.reload()
    expect(last_text(page)).to_have_text("First")
    expect(page.get_by_text("Stopped")).to_be_visible()
    page.get_by_role("button", name="Continue").click()
    expect(last_text(page)).to_have_text("First and on.")


def test_two_tabs_see_each_other_and_lose_nothing(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        one = watch.page()
        say(one, "one")
        expect(last_text(one)).to_have_text("You said: one")
        kept(one, lambda found: len(found) == 2)
        two = watch.page(address_of(one))
        expect(messages(two)).to_have_count(2)
        say(two, "from two")
        expect(messages(one)).to_have_count(4)
        say(one, "from one")
        expect(messages(two)).to_have_count(6)
        expect(last_text(two)).to_have_text("You said: from one")
        two.get_by_role("button", name="Open the history").or_(two.get_by_label("Conversations")).first.wait_for()
        two.locator(".entry").first.hover()
        two.locator(".entry").first.get_by_role("button", name="Delete").click()
        expect(one.locator(".entry")).to_have_count(0)
        two.get_by_role("button", name="Undo").click()
        expect(one.locator(".entry")).to_have_count(1)
        expect(messages(two)).to_have_count(6)


def test_streams_beyond_what_a_browser_has_connections_for_wait_and_say_so(
    browser: Browser, scripted: Scripted
) -> None:
    with watched(browser, scripted.url) as watch:
        one, two = watch.page(), watch.page()
        for page in (one, two):
            for _ in range(2):
                page.get_by_role("button", name="Compare").click()
        say(one, "silence")
        wait_until(lambda: len(scripted.requests) == 3, PATIENCE)
        say(two, "silence")
        expect(two.get_by_text("Waiting for a connection of the browser")).to_be_visible()
        wait_until(lambda: len(scripted.requests) == 5, PATIENCE)
        scripted.gate.set()
        for page in (one, two):
            expect(page.get_by_text("At last.")).to_have_count(3)


def test_a_file_brings_every_branch_into_another_browser(browser: Browser, scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        say(page, "one")
        done(page)
        page.get_by_role("button", name="Answer again").click()
        expect(page.get_by_text("2 of 2")).to_be_visible()
        done(page)
        page.get_by_role("button", name="Share, export, import").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export this conversation").click()
        download.value.save_as(path)
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_label("File to import").set_input_files(path)
        expect(messages(page)).to_have_count(2)
        expect(page.get_by_text("2 of 2")).to_be_visible()
        page.reload()
        expect(page.get_by_text("2 of 2")).to_be_visible()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"headrace": 1}', '{"headrace": 1, "talks": []}', '{"headrace": 99, "talks": [{}]}']
)
def test_what_is_no_export_is_refused(page: Page, tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    page.get_by_role("button", name="Share, export, import").click()
    page.get_by_label("File to import").set_input_files(path)
    expect(page.get_by_role("alert")).to_have_text("This is no file of conversations.")


def test_a_file_of_anybody_is_taken_for_what_is_known_of_it(page: Page, scripted: Scripted, tmp_path: Path) -> None:
    message = {
        "id": "m",
        "talk": "x",
        "parent": None,
        "role": "<b>",
        "content": {"no": "text"},
        "images": ["http://a/b"],
    }
    settings = {"params": {"seed": 1, "messages": [{"role": "user", "content": "not what is shown"}]}}
    record = {"id": "t", "title": 7, "settings": settings, "chosen": [], "columns": "x"}
    hostile = {"record": record, "messages": [message]}
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"headrace": 1, "talks": [hostile]}))
    page.get_by_role("button", name="Share, export, import").click()
    page.get_by_label("File to import").set_input_files(path)
    expect(messages(page)).to_have_count(1)
    expect(messages(page).locator("img")).to_have_count(0)
    expect(messages(page).get_by_role("heading", level=2)).to_have_text("You")
    say(page, "hello")
    done(page)
    sent = scripted.requests[-1]
    assert (sent["seed"], [one["content"] for one in sent["messages"]]) == (1, ["", "hello"])


def test_a_link_holds_the_conversation_and_no_key(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        page.evaluate("sessionStorage.setItem('headrace-key', 'secret')")
        page.reload()
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        page.get_by_label("temperature", exact=True).fill("0.75")
        say(page, "Grüße 🌍")
        expect(last_text(page)).to_have_text("You said: Grüße 🌍")
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_role("button", name="Copy a link").click()
        was_told(page, "Link copied")
        link = page.evaluate("window.copied")
    with watched(browser, scripted.url) as watch:
        page = watch.page(link.partition("/#")[2].join(["#", ""]))
        expect(messages(page)).to_have_count(2)
        expect(last_text(page)).to_have_text("You said: Grüße 🌍")
        expect(page.get_by_label("temperature", exact=True)).to_have_value("0.75")
        assert page.evaluate("sessionStorage.getItem('headrace-key')") is None


def test_a_conversation_is_found_by_its_address_as_soon_as_it_has_one(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        one = watch.page()
        for turn in range(2):  # the second begins where a conversation is open already
            one.get_by_role("button", name="New conversation").first.click()
            expect(messages(one)).to_have_count(0)
            one.get_by_label("Message", exact=True).fill("stall")
            one.keyboard.press("Enter")
            expect(messages(one)).to_have_count(2)
            two = watch.page(f"#talk={turn}")
            two.evaluate("(hash) => { location.hash = hash; }", address_of(one))
            expect(messages(two)).to_have_count(2)
            two.close()
            two = watch.page(address_of(one))
            expect(messages(two)).to_have_count(2)
            two.close()


def address_of(page: Page) -> str:
    """The fragment that names what is shown, which is there within a second."""
    wait_until(lambda: page.evaluate("location.hash.startsWith('#talk=')"), PATIENCE)
    return str(page.evaluate("location.hash"))


@pytest.mark.parametrize("leave", ["reload", "close"])
def test_what_was_written_a_moment_ago_outlives_the_page(browser: Browser, scripted: Scripted, leave: str) -> None:
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        say(page, "hello")
        page.get_by_label("Message", exact=True).fill("a draft")
        if leave == "reload":
            page.reload()
        else:
            page.close()
            page = watch.page()
            page.locator(".entry .title").click()
        expect(messages(page).first).to_contain_text("hello")
        expect(page.get_by_label("Message", exact=True)).to_have_value("a draft")


def test_a_draft_of_an_image_alone_outlives_a_reload_and_makes_way_for_a_new_conversation(
    browser: Browser, scripted: Scripted
) -> None:
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        page.locator("#composer input[type=file]").set_input_files(
            [{"name": "a.png", "mimeType": "image/png", "buffer": base64.b64decode(PIXEL)}]
        )
        expect(page.locator(".pictures img")).to_have_count(1)
        address_of(page)  # it is kept
        page.reload()
        expect(page.locator(".pictures img")).to_have_count(1)
        page.get_by_role("button", name="New conversation").first.click()
        expect(page.locator(".pictures img")).to_have_count(0)


def test_a_link_that_would_fill_the_memory_is_refused(browser: Browser, scripted: Scripted) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = "x" * 20_000_000
    talk = {"record": {"id": "a"}, "messages": [{"id": "b", "role": "user", "content": content, "parent": None}]}
    packed = deflate.compress(json.dumps({"headrace": 1, "talks": [talk]}).encode()) + deflate.flush()
    letters = base64.urlsafe_b64encode(packed).decode().rstrip("=")
    assert len(letters) < 32_000
    with watched(browser, scripted.url) as watch:
        page = watch.page(f"#share={letters}")
        expect(page.get_by_text("This link holds no conversation")).to_be_visible()
        expect(messages(page)).to_have_count(0)


def test_what_a_link_brings_is_kept_whole_once_something_is_said(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        page = watch.page()
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        say(page, "one")
        done(page)
        page.get_by_role("button", name="Share, export, import").click()
        page.get_by_role("button", name="Copy a link").click()
        was_told(page, "Link copied")
        fragment = "#" + page.evaluate("window.copied").partition("#")[2]
    with watched(browser, scripted.url) as watch:
        page = watch.page(fragment)
        expect(messages(page)).to_have_count(2)
        page.reload()
        expect(messages(page)).to_have_count(2)
        expect(page.locator(".entry")).to_have_count(0)  # looked at, and so not kept
        say(page, "two")
        done(page)
        kept(page, lambda found: len(found) == 4)
        page.reload()
        expect(messages(page)).to_have_count(4)
        expect(messages(page).first).to_contain_text("one")


def test_a_database_of_the_first_version_is_taken_over(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url) as watch:
        page = watch.context.new_page()
        page.goto(f"{scripted.url}v1/models")  # of the same origin, and no page of the playground
        page.evaluate(FIRST_VERSION)
        page.close()
        page = watch.page("#talk=t1")
        expect(last_text(page)).to_have_text("Older")
        say(page, "new")
        expect(last_text(page)).to_have_text("You said: new")
        page.get_by_role("button", name="Save as…").click()
        page.get_by_label("Name of the preset").fill("Mine")
        page.keyboard.press("Enter")
        kept(page, lambda found: len(found) == 4)
        page.reload()
        expect(messages(page)).to_have_count(4)
        expect(page.get_by_label("Preset", exact=True)).to_contain_text("Mine")
