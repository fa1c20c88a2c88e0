"""Fixtures of the release scenario: its hosts, load on them, and a summary of its results at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from testinfra.host import Host

from tests.support import remote
from tests.support.load import Clients, Load, Result, table
from tests.support.remote import address

#: Seconds between two requests of a client, long enough for the load not to starve the hosts under test.
PACE = {"pause": 0.8}

RESULTS = pytest.StashKey[dict[str, Result]]()


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> dict[str, Host]:
    """Return the hosts that a module tests by name: its ``HOST``, or both."""
    names = filter(None, [getattr(request.module, "HOST", None)])
    return remote.hosts(*names)


@pytest.fixture(scope="module")
def clients(pytestconfig: pytest.Config, hosts: dict[str, Host]) -> Clients:
    """Return a context manager that puts load on the hosts of a module and verifies that no request or websocket fails.

    ``title`` names the operation under test. Set ``reload`` if nginx reloads: versions before 1.27.4 then close idle
    connections, so clients may repeat a request. ``requests_fail`` and ``websockets_break`` tolerate these failures. The other
    options are those of `tests.support.load.Shape`.
    """

    @contextmanager
    def clients(
        title: str, *, reload: bool = False, requests_fail: bool = False, websockets_break: bool = False, **shape: Any
    ) -> Iterator[dict[str, Load]]:
        with ExitStack() as stack:
            loads = {name: stack.enter_context(Load(address(host), **PACE | shape)) for name, host in hosts.items()}
            yield loads
        results = {f"{title}, {name}": load.result for name, load in loads.items()}
        pytestconfig.stash.setdefault(RESULTS, {}).update(results)
        shown = "\n".join(table(results))
        for result in results.values():
            assert result.requests > 100, shown
            assert result.posted > 10, shown
            assert result.messages > 10, shown
            assert (result.lost, result.doubled) == (0, 0), shown
            assert result.failed == 0 or requests_fail, shown
            assert result.cut == 0 or websockets_break, shown
            assert result.repeated == 0 or reload or requests_fail, shown
            # Any other reconnect replaces an idle connection that the server closed.
            assert result.reconnects <= sum(result.closes.values()) or reload or requests_fail, shown

    return clients


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the load results, also after failures."""
    results = config.stash.get(RESULTS, {})
    if results:
        terminalreporter.section("load results")
        for line in table(results):
            terminalreporter.write_line(line)
