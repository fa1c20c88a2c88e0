"""The status playbook: its report, exit status, JSON and HTML page."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from selenium.webdriver.common.by import By
from testinfra.host import Host

from tests.support.browser import chromium, is_too_wide, show_as
from tests.support.remote import Site, address, processes, run_playbook

HOST = "ubuntu26"

testinfra_hosts = [f"ansible://{HOST}"]


def test_status_reports_processes_and_fails_when_one_is_stopped(host: Host, tmp_path: Path) -> None:
    site = Site(address(host))

    def run_status(*options: str) -> tuple[int, str]:
        return run_playbook("playbooks/status.yml", HOST, *options)

    running = processes(host, "sample") | processes(host, "plain")
    status, output = run_status("-e", f"json={tmp_path}/status.json")
    assert status == 0, output
    found = json.loads((tmp_path / "status.json").read_text())["hosts"][HOST]["processes"]
    assert {f"{process['app']}-{process['slot']}:{process['process']}": process["pid"] for process in found} == running
    assert {process["open_files_limit"] for process in found} == {16_384, 4_096}
    assert {process["release"] for process in found if process["app"] == "sample"} == {site.get("/whoami").json["release"]}

    name = next(name for name in running if name.startswith("sample"))
    host.run_expect([0], f"supervisorctl stop {name}")
    status, output = run_status()
    host.run_expect([0], f"supervisorctl start {name}")
    assert status != 0
    assert f"sample: process {name.removeprefix('sample-').replace(':', '/')} is STOPPED, health 0" in output


def test_status_page_fits_phone_screen_and_paper(host: Host, tmp_path: Path) -> None:
    page = tmp_path / "status.html"
    status, output = run_playbook("playbooks/status.yml", HOST, "-e", f"html={page}")
    assert status == 0, output
    running = processes(host, "sample") | processes(host, "plain")
    with chromium() as driver:

        def displayed(width: int, **how: str) -> dict[str, str]:
            show_as(driver, width=width, **how)
            driver.get(page.as_uri())
            assert not is_too_wide(driver), width
            head = driver.find_element(By.CSS_SELECTOR, "#processes thead").value_of_css_property("display")
            background = driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
            return {"text": driver.find_element(By.TAG_NAME, "body").text, "head": head, "background": background}

        screen, phone, dark = displayed(1280), displayed(360), displayed(360, scheme="dark")
        paper = displayed(1032, media="print", scheme="dark")  # A4 landscape, without margins
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0, "the page loads another file"
        printed = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    for shown in (screen, phone, dark, paper):
        assert shown["text"].startswith("No problems\n1 of 1 hosts")
        assert {str(pid) for pid in running.values()} <= set(re.findall(r"\d+", shown["text"]))
    assert (screen["head"], phone["head"], paper["head"]) == ("table-header-group", "none", "table-header-group")
    assert dark["background"] != phone["background"] == paper["background"]
    width, height = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", base64.b64decode(printed["data"]))[0]
    assert float(width) > float(height), "the page must be printed in landscape"
