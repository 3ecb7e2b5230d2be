"""One headless Chromium for all tests of this folder, and pages of it that must neither fetch nor complain."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.chromium import NAMES, executable


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test that needs the browser is marked, so that `-m "not browser"` leaves out exactly those."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = executable()
    assert found, (
        f"none of {', '.join(NAMES)} is on the PATH: install one, or run `playwright install chromium`, which needs no "
        "root, or leave the tests of pages out with -m 'not browser'"
    )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file as a page; at the end no page has fetched anything, thrown, or written to the console."""
    opened: list[Page] = []
    trouble: list[str] = []

    def visited(path: Path, **options) -> Page:
        page = chromium.new_page(viewport={"width": 1200, "height": 900}, **options)
        opened.append(page)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        own = ("data:", "blob:", "about:srcdoc", path.as_uri())
        page.on("request", lambda r: None if r.url.startswith(own) else trouble.append(f"request: {r.url}"))
        page.goto(path.as_uri())
        return page

    yield visited
    for page in opened:
        page.close()
    assert trouble == []
