"""Failure reports of all scenarios: the end of long outputs, and the logs of the hosts."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import testinfra
from testinfra.host import Host

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

#: Number of lines of a long text that a failed assertion shows, from its end, where Ansible reports failures.
SHOWN_LINES = 60

#: Number of characters of a long text with few lines that a failed assertion shows.
SHOWN_CHARACTERS = 6000

#: Number of characters of a log line that are printed.
MAX_LINE = 300

#: Number of failed tests for which host logs are printed. Further failures usually have the same cause.
REPORTED_FAILURES = 5

#: Prints the ends of the logs of a host, with a timeout for hosts that hang.
LOGS = r"""timeout 20 sh -c '
journalctl --no-pager --quiet --lines=400 --output=short-iso |
  grep --invert-match --extended-regexp " (sshd|sudo)[^ ]*: " | tail -n 40
for log in $(ls -t /var/log/*/[ab]-*.log /var/log/nginx/error.log 2>/dev/null | head -4); do
  printf "== %s\n" "$log"; tail -n 15 "$log"
done' 2>&1"""

reported = pytest.StashKey[int]()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show the end of a long output in a failed ``in`` assertion; pytest would show its beginning."""
    if op not in ("in", "not in") or not isinstance(right, str):
        return None
    lines = right.rstrip().split("\n")
    if len(lines) > SHOWN_LINES // 4:
        return [f"{left!r} {op} {len(lines)} lines, which end with:", *lines[-SHOWN_LINES:]]
    if len(right) > SHOWN_CHARACTERS:
        return [f"{left!r} {op} {len(right)} characters, which end with:", right[-SHOWN_CHARACTERS:]]
    return None


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
        lines = host.run(LOGS).stdout_bytes.decode(errors="replace").splitlines()
        return "\n".join(printable(line)[:MAX_LINE] for line in lines)  # Molecule hangs on bytes that are not UTF-8
    except Exception as error:  # must not hide the failure of the test
        return f"The logs cannot be read: {error}"
