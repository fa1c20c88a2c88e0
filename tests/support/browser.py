"""A real browser: headless Chromium, which Debian packages with its driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

#: Without these a headless Chromium of root's does not start, or calls home at every start.
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
    """Run a browser; ``addresses`` are those of names with _ in place of their dots."""
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
    """Show pages as on a screen, or on paper, of ``width`` CSS pixels, to somebody who likes a light or a dark scheme."""
    mobile = width < 700
    metrics = {"width": width, "height": 2 * width if mobile else 800, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def is_too_wide(driver: Chrome) -> bool:
    """Say whether the page has to be scrolled sideways."""
    script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    return bool(driver.execute_script(script))
