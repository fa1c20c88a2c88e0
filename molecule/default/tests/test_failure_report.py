"""A failed test reports the ends of the logs of its host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from testinfra.host import Host

from tests.support.remote import ROOT, Site, address

HOST = "ubuntu24"
testinfra_hosts = [f"ansible://{HOST}"]

FAILING = f"""
testinfra_hosts = ["ansible://{HOST}"]

def test_fails(host):
    assert host.check_output("echo shown") == ""
"""


def test_failed_test_reports_bounded_logs_of_its_host_without_secrets(host: Host, tmp_path: Path) -> None:
    host.check_output(
        "for n in $(seq 99); do echo nginx-line-$n >> /var/log/nginx/error.log; echo journal-line-$n; done | logger"
    )
    assert Site(address(host)).get("/of-a-failed-test").status == 404
    shutil.copy(ROOT / "molecule/conftest.py", tmp_path)
    test = tmp_path / "test_failing.py"
    test.write_text(FAILING)
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    options = [f"--config-file={ROOT}/pyproject.toml", f"--ansible-inventory={inventory}", "--connection=ansible"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(test)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60).stdout
    report = shown.partition(f"logs of ansible://{HOST} ")[2].partition("short test summary")[0]
    assert "404 GET /of-a-failed-test" in report, shown
    assert len(re.findall(r" journal-line-\d+", report)) <= 40
    assert re.findall(r"^nginx-line-(\d+)$", report, re.MULTILINE) == [str(number) for number in range(85, 100)]
    assert " journal-line-99" in report
    assert "not-for-others" not in report
