"""Settings that the tests of all scenarios share: what a failed test shows."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import testinfra
from testinfra.host import Host

#: Lines of a long text that a failed assertion shows: its end is where Ansible reports failures.
SHOWN_LINES = 60

#: Failed tests of a session whose hosts' logs are printed. More of them usually fail for the same reason.
REPORTED_FAILURES = 5

#: Prints the ends of the logs of a host; a host that hangs does not hold up the tests.
LOGS = r"""timeout 20 sh -c '
journalctl --no-pager --quiet --lines=400 --output=short-iso |
  grep --invert-match --extended-regexp " (sshd|sudo)[^ ]*: " | tail -n 40
for log in $(ls -t /var/log/*/[ab]-*.log /var/log/nginx/error.log 2>/dev/null | head -4); do
  printf "== %s\n" "$log"; tail -n 15 "$log"
done' 2>&1"""

reported = pytest.StashKey[int]()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show the end of an output in which a text was not found, line by line; pytest shows the first characters."""
    if op not in ("in", "not in") or not isinstance(right, str) or right.count("\n") < SHOWN_LINES // 4:
        return None
    lines = right.rstrip().split("\n")
    return [f"{left!r} {op} {len(lines)} lines, which end with:", *lines[-SHOWN_LINES:]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of the hosts that a failed test used to its report."""
    report = yield
    count = item.config.stash.get(reported, 0)
    if report.failed and report.when != "teardown" and count < REPORTED_FAILURES:
        item.config.stash[reported] = count + 1
        report.sections += [(f"logs of {host.backend.get_pytest_id()}", _logs(host)) for host in _used_hosts(item)]
    return report


def _used_hosts(item: pytest.Item) -> list[Host]:
    """Return the host that testinfra passed to the test, or all hosts of the scenario."""
    host = getattr(item, "funcargs", {}).get("host")
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return [host] if isinstance(host, Host) else testinfra.get_hosts(["ansible://all"], ansible_inventory=inventory)


def _logs(host: Host) -> str:
    try:
        return str(host.run(LOGS).stdout)
    except Exception as error:  # the failure of the test matters more than that of its report
        return f"The logs cannot be read: {error}"
