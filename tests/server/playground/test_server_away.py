"""A server that wants a key, refuses, goes away behind its proxy or without one, is killed and started again."""

import contextlib
import socket
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.server.commands.test_cli import serving
from tests.server.fake_engine import Script
from tests.server.playground.browser import done, last_text, messages, needs_browser, say, watched
from tests.server.playground.scripted import Scripted, running_scripted

pytestmark = [pytest.mark.slow, needs_browser]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_what_came_of_an_answer_is_kept_and_all_goes_on_without_a_reload(
    browser: Browser, tmp_path: Path, smollm2_dir: Path
) -> None:
    port = free_port()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    halts = Script(model_dir=str(smollm2_dir), token_ids=[504], holds={-1: 5})
    ends = Script(model_dir=str(smollm2_dir), token_ids=[504], eos_after=3)  # and a fourth token, which is the end
    with contextlib.ExitStack() as first, watched(browser, f"http://127.0.0.1:{port}/") as watch:
        first.enter_context(serving(tmp_path / "first", halts, port=port))
        page = watch.page()
        say(page, "Hello")
        came = "The" * 5
        expect(last_text(page)).to_have_text(came)
        first.close()  # SIGKILL
        last = messages(page).last
        expect(last.get_by_role("alert")).to_contain_text("The connection ended before the answer did")
        expect(last_text(page)).to_have_text(came)
        expect(last.locator("dl")).to_contain_text("5 tokens")
        away = page.get_by_text("The server cannot be reached; trying again.")
        expect(away).to_be_visible()
        page.get_by_label("Message", exact=True).fill("And now?")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()  # what is typed stays where it is
        with serving(tmp_path / "second", ends, port=port):
            expect(away).to_be_hidden()
            expect(page.get_by_role("button", name="Send")).to_be_enabled()
            last.get_by_role("button", name="Continue").click()
            expect(last.locator("dl")).to_contain_text("5 + 4 tokens")
            assert last_text(page).inner_text().startswith(came)
            say(page, "And now?")
            done(page)
            expect(messages(page)).to_have_count(4)
            expect(messages(page).last.locator("dl")).to_contain_text("4 tokens")


def test_a_key_is_asked_for_and_kept_for_the_session_alone(browser: Browser) -> None:
    with running_scripted(key="secret") as server, watched(browser, server.url, refusals=(401,)) as watch:
        page = watch.page()
        page.get_by_role("textbox", name="API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("did not take this key")
        page.get_by_role("textbox", name="API key").fill("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="scripted/large-model")).to_be_visible()
        say(page, "hello")
        expect(last_text(page)).to_have_text("Hello there, friend.")
        assert page.evaluate("sessionStorage.getItem('headrace-key')") == "secret"
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        assert "secret" not in page.url


def test_a_key_that_was_not_given_can_still_be_given(browser: Browser) -> None:
    with running_scripted(key="secret") as server, watched(browser, server.url, refusals=(401,)) as watch:
        page = watch.page()
        dialog = page.get_by_role("dialog", name="This server asks for an API key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        page.get_by_role("button", name="Enter the API key").click()
        page.get_by_label("API key", exact=True).fill("secret")
        page.keyboard.press("Enter")
        say(page, "hello")
        done(page)


@pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 500, 503])
def test_what_a_server_refuses_is_told_in_its_words_and_can_be_asked_again(
    browser: Browser, scripted: Scripted, status: int
) -> None:
    words = f"Refused with {status}: try again in 7 seconds"
    error = {"error": {"message": words, "type": "server_error", "param": None, "code": "refused"}}
    with watched(browser, scripted.url, refusals=(status,)) as watch:
        page = watch.page()
        refusal = lambda route: route.fulfill(status=status, json=error, headers={"retry-after": "7"})  # noqa: E731
        page.route("**/v1/chat/completions", refusal)
        say(page, "hello")
        expect(messages(page).last.get_by_role("alert")).to_contain_text(words)
        page.unroute("**/v1/chat/completions", refusal)
        if status == 401:
            dialog = page.get_by_role("dialog", name="This server asks for an API key")
            expect(dialog).to_be_visible()
            page.keyboard.press("Escape")
            expect(dialog).to_have_count(0)
        messages(page).last.get_by_role("button", name="Answer again").click()
        expect(last_text(page)).to_have_text("Hello there, friend.")


@pytest.mark.parametrize("behind", ["nothing", "a proxy"])
def test_a_server_that_goes_away_is_told_and_found_again(browser: Browser, scripted: Scripted, behind: str) -> None:
    """What stands before it answers in its place, with a page of its own."""
    with watched(browser, scripted.url, refusals=(502,)) as watch:
        page = watch.page()
        page.get_by_label("Message", exact=True).fill("hello")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        words = "The server cannot be reached" if behind == "nothing" else "The server answered with status 502"
        page.route(
            "**/v1/**",
            lambda route: (
                route.abort() if behind == "nothing" else route.fulfill(status=502, body="<h1>Bad Gateway</h1>")
            ),
        )
        page.keyboard.press("Enter")
        expect(messages(page).last.get_by_role("alert")).to_contain_text(words)
        expect(page.get_by_text("trying again")).to_be_visible()
        page.unroute("**/v1/**")
        expect(page.get_by_text("trying again")).to_be_hidden()
        messages(page).last.get_by_role("button", name="Answer again").click()
        expect(last_text(page)).to_have_text("Hello there, friend.")


def test_what_a_key_may_not_see_is_said_and_not_asked_for_again(browser: Browser, scripted: Scripted) -> None:
    with watched(browser, scripted.url, refusals=(403,)) as watch:
        asked: list[str] = []
        words = {"error": {"message": "This key has not the right 'metrics'", "code": "not_permitted"}}

        def refuse(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(status=403, json=words)

        watch.context.route("**/metrics", refuse)
        page = watch.page()
        say(page, "hello")
        done(page)
        page.locator(".server-chip").click()
        dialog = page.get_by_role("dialog", name="Server")
        expect(dialog).to_contain_text("has not the right 'metrics'")
        expect(dialog.get_by_role("row", name="scripted/small")).to_contain_text("ready")
        page.wait_for_timeout(2500)  # in which it would be asked for again
        assert len(asked) == 1
        page.keyboard.press("Escape")
        watch.context.route("**/v1/models", refuse)
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("has not the right")


def test_a_key_of_few_requests_is_not_used_up_by_what_is_asked_while_one_types(page: Page) -> None:
    asked: list[str] = []

    def count(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"count": len(asked), "max_model_len": 9}, headers={"x-ratelimit-limit-requests": "6"})

    page.route("**/tokenize", count)
    shown = page.locator("#composer .count")
    box = page.get_by_label("Message", exact=True)
    box.fill("a")
    expect(shown).to_have_text("1 / 9 tokens")
    for text in "bcde":
        box.fill(text)
        page.wait_for_timeout(400)  # longer than a count waits where nothing is limited
    assert len(asked) == 1
    expect(shown).to_have_text("2 / 9 tokens")
