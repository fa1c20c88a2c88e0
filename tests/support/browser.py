"""Headless Chromium with its driver, as packaged by Debian."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

#: Options that headless Chromium needs to start as root and to make no requests of its own.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


@contextmanager
def chromium(**addresses: str) -> Iterator[Chrome]:
    """Run a browser that resolves domains to ``addresses``; ``_`` in a domain stands for a dot."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    rules = ",".join(f"MAP {name.replace('_', '.')} {address}" for name, address in addresses.items())
    for flag in (*FLAGS, f"--host-resolver-rules={rules}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def show_as(driver: Chrome, *, width: int, scheme: str = "light", media: str = "screen") -> None:
    """Emulate a screen or paper of ``width`` CSS pixels, with a light or dark color scheme."""
    mobile = width < 700
    metrics = {"width": width, "height": 2 * width if mobile else 800, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def is_too_wide(driver: Chrome) -> bool:
    """Return whether the page scrolls horizontally."""
    script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    return bool(driver.execute_script(script))
