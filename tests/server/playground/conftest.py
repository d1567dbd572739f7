"""One browser and one real server for all tests of the playground, and a scripted server for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.clocks import PATIENCE
from tests.server.playground.browser import CHROMIUM, Watched, chromium, watched
from tests.server.playground.scripted import Scripted, running_scripted
from tests.serving import running_server


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("there is no chromium here (Debian's package of that name)")
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def real_url(smollm2_dir: Path) -> Iterator[str]:
    """The address of a real server with the default model, with a slash behind it."""
    with running_server("smollm2", "--context", "2048", "--memory", "0.25GiB", seconds=5 * PATIENCE) as address:
        yield f"{address}/"


@pytest.fixture
def real(browser: Browser, real_url: str) -> Iterator[Watched]:
    """A browser's context before that server."""
    with watched(browser, real_url, refusals=(400,)) as watch:
        yield watch


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with running_scripted() as running:
        yield running


@pytest.fixture
def page(browser: Browser, scripted: Scripted) -> Iterator[Page]:
    """The playground of the scripted server; any fault of the page fails the test at its end."""
    with watched(browser, scripted.url) as watch:
        yield watch.page()
