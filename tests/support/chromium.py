"""Where Chromium or Chrome is: on the PATH, or where `playwright install chromium` has put one, which needs no root.

`python -m tests.support.chromium` succeeds where there is one; `make test` asks so.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The path of the browser, None if there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


if __name__ == "__main__":
    sys.exit(executable() is None)
