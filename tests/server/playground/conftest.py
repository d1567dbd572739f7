"""One browser for all tests of the playground, and a scripted server for each module."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.server.playground.browser import CHROMIUM, chromium, watched
from tests.server.playground.scripted import Scripted, running_scripted


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("there is no chromium here (Debian's package of that name)")
    with chromium() as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with running_scripted() as running:
        yield running


@pytest.fixture
def page(browser: Browser, scripted: Scripted) -> Iterator[Page]:
    """The playground of the scripted server; any fault of the page fails the test at its end."""
    with watched(browser, scripted.url) as watch:
        yield watch.page()
