"""Take the screenshot of the sample app for the README: `make demo`, then `python -m tests.picture URL docs/page.png`."""

from __future__ import annotations

import sys
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import chromium, show_as

WIDTH = 900


def main(url: str, file: str) -> None:
    """Wait until the page is complete, including its websocket, and write it as a PNG."""
    with chromium() as browser:
        show_as(browser, width=WIDTH)
        browser.get(url)
        WebDriverWait(browser, 10).until(lambda _: browser.find_element(By.ID, "state").text == "connected")
        Path(file).write_bytes(browser.find_element(By.TAG_NAME, "main").screenshot_as_png)


if __name__ == "__main__":
    main(*sys.argv[1:])
