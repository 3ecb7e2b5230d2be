"""Pages of a headless Chromium that must neither fetch nor complain."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page


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
