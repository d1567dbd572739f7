"""The server's panel loads models and puts them away, on a real server with scripted engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.fakes import RunningServer, Script
from tests.server.playground.browser import done, needs_browser, say, watched
from tests.server.routes.test_on_demand import serving, starts

pytestmark = needs_browser


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path) -> Iterator[RunningServer]:
    script = Script(
        model_dir=str(smollm2_dir), token_ids=[504], by_model={"org/broken": {"load_fails": "it has no weights"}}
    )
    with serving(monkeypatch, tmp_path, script, "one org/two org/broken") as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    with watched(browser, f"{server.url}/", refusals=(503,)) as watch:
        yield watch.page()


def test_models_are_loaded_and_put_away_in_the_panel(page: Page, server: RunningServer) -> None:
    page.locator(".server-chip").click()
    row = page.get_by_role("row").filter(has_text="org/two")
    expect(row).to_contain_text("unloaded")
    row.get_by_role("button", name="Load org/two", exact=True).click()
    expect(row).to_contain_text("ready")
    assert starts(server, "org/two") == 1
    row.get_by_role("button", name="Unload org/two").click()
    expect(row).to_contain_text("unloaded")
    broken = page.get_by_role("row").filter(has_text="org/broken")
    broken.get_by_role("button", name="Load org/broken").click()
    expect(page.get_by_text("could not be loaded: it has no weights")).to_be_visible()
    expect(broken).to_contain_text("failed")


def test_a_model_that_is_not_loaded_is_asked_like_any_other(page: Page, server: RunningServer) -> None:
    page.locator(".model-button").click()
    page.locator(".model-choice").filter(has_text="org/two").click()
    expect(page.get_by_text("The first message loads it.")).to_be_visible()
    say(page, "Hello")
    done(page)
    assert starts(server, "org/two") == 1
    page.locator(".server-chip").click()
    expect(page.get_by_role("row").filter(has_text="org/two")).to_contain_text("ready")
