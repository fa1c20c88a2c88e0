"""The page of the sample app in a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from testinfra.host import Host

from tests.support.browser import chromium
from tests.support.remote import Site, address

testinfra_hosts = ["ansible://app_hosts"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


def test_page_shows_its_process_and_receives_websocket_ticks(host: Host, browser: Chrome) -> None:
    site = Site(address(host))
    browser.get(f"http://{site.address}/")

    def text(name: str) -> str:
        return browser.find_element(By.ID, name).text

    who = site.get("/whoami").json
    assert text("hostname") == who["hostname"] == host.check_output("hostname")
    assert text("release") == who["release"]
    assert text("process") in {f"{who['slot']}/{number}" for number in range(int(host.check_output("nproc")))}
    assert text("protocol") == "http"
    assert text("remote_ip") == site.client_address
    WebDriverWait(browser, 10).until(lambda _: text("state") == "connected" and int(text("tick")) >= 2)
    color = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert color != "rgba(0, 0, 0, 0)", "the style sheet was not loaded"
