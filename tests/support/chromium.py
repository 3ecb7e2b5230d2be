"""Where Chromium or Chrome is: on the PATH, or where `playwright install chromium` has put one, which needs no root.

`python -m tests.support.chromium` succeeds where there is one; `make test` asks so.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The path of the browser, None if there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser, without a window. A process can have one at a time."""
    found = executable()
    assert found, (
        f"none of {', '.join(NAMES)} is on the PATH: install one, or run `playwright install chromium`, which needs no "
        "root, or leave the tests of pages out with -m 'not browser'"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


if __name__ == "__main__":
    sys.exit(executable() is None)
